"""Schedules and steps of flow matching, as pure functions: x runs from noise at t=1 to music at t=0 along a velocity.

Source: the reference's `generate_audio` of the turbo and base models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.checkpoints import Variant
from models.music import LATENT_CHANNELS, MusicRequest

TURBO_STEPS = 8
TURBO_SHIFTS = (1.0, 2.0, 3.0)
TURBO_TIMESTEPS_AT_MOST = 20


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one song is denoised. `timesteps` are those at which the DiT is called; after the last, t is 0."""

    timesteps: tuple[float, ...]
    guidance_scale: float
    method: Literal["ode", "sde"]
    use_adg: bool
    cfg_interval: tuple[float, float]

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 1.0

    def next_of(self, step: int) -> float:
        return self.timesteps[step + 1] if step + 1 < len(self.timesteps) else 0.0


def resolve(request: MusicRequest, variant: Variant) -> tuple[Sampling, tuple[str, ...]]:
    """The request's wishes completed by the variant's defaults, and what of them does not apply to this variant."""
    timesteps, remarks = _timesteps(request, variant)
    guidance = variant.default_guidance if request.guidance_scale is None else request.guidance_scale
    use_adg, interval = request.use_adg, (request.cfg_interval_start, request.cfg_interval_end)
    if variant.is_turbo:
        asked = {
            "guidance_scale": request.guidance_scale not in (None, 1.0),
            "use_adg": use_adg,
            "cfg_interval_start, cfg_interval_end": interval != (0.0, 1.0),
        }
        remarks += [
            f"{name}: not applied, {variant.name} is not guided" for name, is_asked in asked.items() if is_asked
        ]
        guidance, use_adg, interval = 1.0, False, (0.0, 1.0)
    return Sampling(timesteps, guidance, request.infer_method, use_adg, interval), tuple(remarks)


def _timesteps(request: MusicRequest, variant: Variant) -> tuple[tuple[float, ...], list[str]]:
    steps = variant.default_steps if request.inference_steps is None else request.inference_steps
    shift = variant.default_shift if request.shift is None else request.shift
    if request.timesteps is not None:
        remarks = ["inference_steps, shift: not applied, timesteps were given"] if request.inference_steps else []
        return custom_schedule(request.timesteps, variant.is_turbo), remarks
    if not variant.is_turbo or steps != TURBO_STEPS:
        return schedule(steps, shift), []
    snapped = nearest(shift, TURBO_SHIFTS)
    remarks = (
        []
        if snapped == shift
        else [f"shift: {snapped:g} applied instead of {shift:g}, the nearest this turbo model knows"]
    )
    return schedule(steps, snapped), remarks


def schedule(steps: int, shift: float) -> tuple[float, ...]:
    """`steps` values of t from 1 down, 0 left out: `shift` above 1 spends more of them near the noise."""
    even = torch.linspace(1.0, 0.0, steps + 1)[:-1]
    return tuple((shift * even / (1 + (shift - 1) * even)).tolist())


def custom_schedule(timesteps: Sequence[float], is_turbo: bool) -> tuple[float, ...]:
    """The caller's own values of t, zeros at the end left out; turbo models take the nearest values they were trained on."""
    given = list(timesteps)
    while given and given[-1] == 0:
        given.pop()
    if not is_turbo:
        return tuple(given)
    trained = sorted({t for shift in TURBO_SHIFTS for t in schedule(TURBO_STEPS, shift)})
    return tuple(nearest(t, trained) for t in given[:TURBO_TIMESTEPS_AT_MOST])


def nearest(value: float, allowed: Sequence[float]) -> float:
    return min(allowed, key=lambda candidate: abs(candidate - value))


def noise_of(seed: int, frames: int) -> tuple[Tensor, torch.Generator]:
    """(frame, channel) in fp32 on the CPU, so that a seed is one song on every device, and the generator to draw on from."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn((1, frames, LATENT_CHANNELS), generator=generator)[0], generator


def euler(x: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
    return x - velocity * (t - t_next)


def renoise(x: Tensor, velocity: Tensor, t: float, t_next: float, noise: Tensor) -> Tensor:
    """The stochastic step: to the predicted music, then back up to t_next with new noise."""
    return t_next * noise + (1 - t_next) * (x - velocity * t)
