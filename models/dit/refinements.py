"""What may be done to a trajectory on top of its sampler, all off unless asked for. (frame, channel) in and out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Damping:
    """Of velocities: no longer than `norm_limit` times x (0: as long as they are), and a share of the one before."""

    norm_limit: float = 0.0
    inertia: float = 0.0

    def damped(self, velocity: Tensor, x: Tensor, before: Tensor | None) -> Tensor:
        if self.norm_limit > 0:
            velocity = velocity * (self.norm_limit * x.norm() / velocity.norm()).clamp(max=1.0)
        if self.inertia > 0 and before is not None:
            velocity = (1 - self.inertia) * velocity + self.inertia * before
        return velocity


@dataclass(frozen=True, slots=True)
class Correction:
    """The reference's differential correction in the wavelet domain (DCW), with Haar's: moves x away from the music
    predicted at this step, slow changes by `low` early on, quick ones by `high` late."""

    low: float
    high: float

    def corrected(self, x: Tensor, music: Tensor, t: float) -> Tensor:
        away = functional.pad(x - music, (0, 0, 0, len(x) % 2)).reshape(-1, 2, x.shape[1])  # (pair, 2, channel)
        mean = away.mean(dim=1, keepdim=True)
        moved = t * self.low * mean + (1 - t) * self.high * (away - mean)
        return x + moved.reshape(-1, x.shape[1])[: len(x)]


def retaken(noise: Tensor, other: Tensor, variance: float) -> Tensor:
    """Noise turned towards another one: 0 is the first, 1 the second, and in between it is as loud as either."""
    angle = variance * math.pi / 2
    return math.cos(angle) * noise + math.sin(angle) * other
