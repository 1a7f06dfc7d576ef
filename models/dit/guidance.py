"""Classifier-free guidance on velocities of one song: (frame, channel) in, (frame, channel) out. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

APG_MOMENTUM = -0.75
APG_NORM_LIMIT = 2.5
ADG_ANGLE_LIMIT = 3.14 / 6  # the reference's pi
EPSILON = 1e-6  # also keeps angles above 1e-3, so that their sine divides


@dataclass(frozen=True, slots=True)
class Guidance:
    """How far a song is guided, by angle or by projection, and between which t, bounds included."""

    scale: float
    by_angle: bool = False
    start: float = 0.0
    end: float = 1.0

    def is_active(self, t: float) -> bool:
        """Compared in float32, as the reference does: a bound of 0.9 is the float32 nearest to it."""
        low, value, high = torch.tensor((self.start, t, self.end), dtype=torch.float32).tolist()
        return bool(low <= value <= high)


def cfg(cond: Tensor, null: Tensor, scale: float) -> Tensor:
    """Plain guidance (Ho & Salimans, arXiv 2207.12598)."""
    return null + scale * (cond - null)


def apg(cond: Tensor, null: Tensor, scale: float, momentum: Tensor | None) -> tuple[Tensor, Tensor]:
    """Adaptive projected guidance (Sadat et al., arXiv 2410.02416); returns the velocity and the new momentum.

    Norms and the projection run over time, channel by channel, as in the reference's `apg_guidance.py`.
    """
    running = cond - null if momentum is None else cond - null + APG_MOMENTUM * momentum
    norm = running.norm(p=2, dim=0, keepdim=True)
    clipped = running * torch.minimum(torch.ones_like(norm), APG_NORM_LIMIT / norm)
    along = torch.nn.functional.normalize(cond.double(), dim=0)
    parallel = (clipped.double() * along).sum(dim=0, keepdim=True) * along
    orthogonal = (clipped.double() - parallel).to(cond.dtype)
    return cond + (scale - 1.0) * orthogonal, running


def adg(x: Tensor, cond: Tensor, null: Tensor, t: float, scale: float) -> Tensor:
    """Angle-based guidance: turns each frame of the predicted music away from the unconditional one, within a limit.

    After the reference's `adg_forward`, in fp64 since the angles are small. `t` must be above 0.
    """
    weight = max(scale - 1.0, 0.0) + 1e-3
    music, other = (x - t * cond).double(), (x - t * null).double()
    angle = torch.acos(
        torch.nn.functional.cosine_similarity(music, other, dim=-1)[:, None].clamp(EPSILON - 1, 1 - EPSILON)
    )
    turned = (angle * weight).clamp(-ADG_ANGLE_LIMIT, ADG_ANGLE_LIMIT)
    difference = music - other
    share = (difference * other).sum(dim=-1, keepdim=True) / ((other * other).sum(dim=-1, keepdim=True) + EPSILON)
    guided = music * torch.cos(turned) + (difference - share * other) * (torch.sin(turned) / torch.sin(angle))
    return ((x - guided) / t).to(cond.dtype)
