"""Schedules and steps of flow matching, as pure functions: x runs from noise at t=1 to music at t=0 along a velocity.

Source: the reference's `generate_audio` of the turbo and base models. A song's x, t and step widths stay in float32
whatever the transformer's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from models.checkpoints import Variant
from models.dit.guidance import Guidance
from models.dit.refinements import Correction, Damping, retaken
from models.editing import TASKS_OF, WINDOWED, keeping_of, source_of
from models.music import LATENT_CHANNELS, MusicRequest, Song, Task

TURBO_STEPS = 8
TURBO_SHIFTS = (1.0, 2.0, 3.0)


class Method(StrEnum):
    ODE = "ode"
    SDE = "sde"
    HEUN = "heun"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one song is denoised, settled before its first step.

    `timesteps` has one value more than there are steps: t at each of them, then the 0 where the last one lands.
    `noise_levels`, for the SDE, is the t that each step goes back up to. At `switch_step` a song lets go of its source.
    After each of the first `injected_steps` its source is put back outside the window, and at the end blended in over
    `crossfade_frames`. Where it `begins_at_source`, `timesteps` begin at less than 1.
    """

    timesteps: tuple[float, ...]
    method: Method = Method.ODE
    guidance: Guidance | None = None
    noise_levels: tuple[float, ...] = ()
    switch_step: int | None = None
    injected_steps: int = 0
    crossfade_frames: int = 0
    begins_at_source: bool = False
    damping: Damping | None = None
    correction: Correction | None = None
    ends_in_one_call: bool = False  # turbo's last step has no Heun corrector

    @property
    def steps(self) -> int:
        return len(self.timesteps) - 1

    @property
    def rows(self) -> int:
        """Rows of one forward the song may take: a guided one has a second, without its condition."""
        return 1 if self.guidance is None else 2

    @property
    def calls(self) -> int:
        """Rows of all its forwards together."""
        return self.rows * (self.steps + sum(self.corrects(step) for step in range(self.steps)))

    def corrects(self, step: int) -> bool:
        """Whether a step has a second forward, at the place where the first one led."""
        return self.method is Method.HEUN and not (self.ends_in_one_call and step == self.steps - 1)


def resolve(request: MusicRequest, variant: Variant, has_source: bool = False) -> tuple[Sampling, tuple[str, ...]]:
    """The request's wishes completed by the variant's defaults, and what of them does not apply here.

    Turbo: 8 steps take the distilled table, its shift the nearest of 1, 2 and 3; any other count takes the formula
    behind the tables, at the shift asked for. `has_source`: whether the song is made from audio or from audio codes.
    """
    timesteps, remarks = _timesteps(request, variant)
    begins_at_source = has_source and request.cover_noise_strength > 0 and request.task_type is not Task.REPAINT
    if begins_at_source:
        timesteps = cut_short(timesteps, 1.0 - request.cover_noise_strength)
    guidance, not_guided = _guidance(request, variant)
    method, strength, steps = Method(request.infer_method), request.audio_cover_strength, len(timesteps) - 1
    keeping = keeping_of(request)
    is_windowed = request.task_type in WINDOWED
    settings = Sampling(
        timesteps,
        method,
        guidance,
        noise_levels=noise_levels(timesteps, variant.is_turbo) if method is Method.SDE else (),
        switch_step=int(steps * strength) if strength < 1.0 else None,
        # the reference's turbo leaves its loop before the last step could be followed by one
        injected_steps=min(round(keeping.injection * steps), steps - variant.is_turbo) if is_windowed else 0,
        crossfade_frames=keeping.crossfade_frames if is_windowed else 0,
        begins_at_source=begins_at_source,
        damping=_damping(request),
        correction=Correction(request.dcw_scaler, request.dcw_high_scaler) if request.dcw_enabled else None,
        ends_in_one_call=variant.is_turbo,
    )
    return settings, (*remarks, *not_guided, *_task_remarks(request, begins_at_source))


def schedule(steps: int, shift: float) -> tuple[float, ...]:
    """`steps` + 1 values of t from 1 down to 0: `shift` above 1 spends more of them near the noise."""
    even = torch.linspace(1.0, 0.0, steps + 1)
    return tuple((shift * even / (1 + (shift - 1) * even)).tolist())


def custom_schedule(given: Sequence[float], is_turbo: bool) -> tuple[float, ...]:
    """The caller's own values of t with exactly one 0 at the end; turbo takes the nearest values it was trained on."""
    own: list[float] = np.trim_zeros(np.asarray(given, dtype=np.float32), "b").tolist()
    return (*(nearest(t, turbo_timesteps()) for t in own), 0.0) if is_turbo else (*own, 0.0)


def cut_short(timesteps: Sequence[float], level: float) -> tuple[float, ...]:
    """A schedule from its value nearest to `level` on; its closing 0 is no beginning."""
    first = timesteps.index(nearest(level, timesteps[:-1]))
    return tuple(timesteps[first:])


def turbo_timesteps() -> tuple[float, ...]:
    """The 20 values of t in the three distilled tables."""
    tables = (schedule(TURBO_STEPS, shift)[:-1] for shift in TURBO_SHIFTS)
    return tuple(sorted({t for table in tables for t in table}))


def nearest(value: float, allowed: Sequence[float]) -> float:
    return min(allowed, key=lambda candidate: abs(candidate - value))


def noise_levels(timesteps: Sequence[float], is_turbo: bool) -> tuple[float, ...]:
    """The reference's base models go back up to even values of t, whatever the schedule."""
    steps = len(timesteps) - 1
    return tuple(timesteps[1:]) if is_turbo else tuple(1 - (step + 1) / steps for step in range(steps))


def noises_of(song: Song, frames: int) -> Iterator[Tensor]:
    """A song's noise without end, each (frame, channel) fp32: first x at t=1, then what an SDE adds on the way.

    Drawn on the CPU at the song's own length, so that a seed is one song on every device and in every batch. A retake
    begins between this noise and that of another seed.
    """
    own = draws(song.seed, frames)
    if song.retake_seed is None:
        return own
    other = next(draws(song.retake_seed, frames))
    return chain([retaken(next(own), other, song.request.retake_variance)], own)


def draws(seed: int, frames: int) -> Iterator[Tensor]:
    generator = torch.Generator("cpu").manual_seed(seed)
    while True:
        yield torch.randn((frames, LATENT_CHANNELS), generator=generator)


def noised(latents: Tensor, t: float, noise: Tensor) -> Tensor:
    """Where latents are at t on their way to or from noise."""
    return t * noise + (1 - t) * latents


def euler(x: Tensor, velocity: Tensor, t: float, t_next: float) -> Tensor:
    return x - velocity * (t - t_next)


def heun(x: Tensor, velocity: Tensor, corrected: Tensor, t: float, t_next: float) -> Tensor:
    """The step along the mean of the velocity at t and of the one found where Euler's step led."""
    return x - (velocity + corrected) * (0.5 * (t - t_next))


def renoise(x: Tensor, velocity: Tensor, t: float, level: float, noise: Tensor) -> Tensor:
    """The stochastic step: to the predicted music, then back up to `level` with new noise."""
    return noised(x - velocity * t, level, noise)


def _timesteps(request: MusicRequest, variant: Variant) -> tuple[tuple[float, ...], list[str]]:
    if request.timesteps is not None:
        return _given_timesteps(request, request.timesteps, variant)
    steps = request.inference_steps or variant.default_steps
    shift = variant.default_shift if request.shift is None else request.shift
    if not variant.is_turbo or steps != TURBO_STEPS:
        return schedule(steps, shift), []
    snapped = nearest(shift, TURBO_SHIFTS)
    remark = f"shift: {snapped:g} applied instead of {shift:g}, the nearest this turbo model knows"
    return schedule(steps, snapped), [] if snapped == shift else [remark]


def _given_timesteps(
    request: MusicRequest, given: tuple[float, ...], variant: Variant
) -> tuple[tuple[float, ...], list[str]]:
    unused = [name for name in ("inference_steps", "shift") if getattr(request, name) is not None]
    remarks = [f"{name}: not applied, timesteps were given" for name in unused]
    own, taken = custom_schedule(given, is_turbo=False), custom_schedule(given, variant.is_turbo)
    if not np.allclose(own, taken, rtol=0, atol=1e-6):
        remarks.append("timesteps: moved to the nearest of the 20 this turbo model knows")
    return taken, remarks


def _guidance(request: MusicRequest, variant: Variant) -> tuple[Guidance | None, list[str]]:
    """The reference guides above 1 only."""
    interval = (request.cfg_interval_start, request.cfg_interval_end)
    scale = variant.default_guidance if request.guidance_scale is None else request.guidance_scale
    if not variant.is_turbo and scale > 1.0:
        return Guidance(scale, request.use_adg, *interval), []
    reason = f"{variant.name} is not guided" if variant.is_turbo else f"nothing is guided at scale {scale:g}"
    asked = {
        "guidance_scale": request.guidance_scale not in (None, 1.0),
        "use_adg": request.use_adg,
        "cfg_interval_start, cfg_interval_end": interval != (0.0, 1.0),
    }
    return None, [f"{name}: not applied, {reason}" for name, is_asked in asked.items() if is_asked]


def _damping(request: MusicRequest) -> Damping | None:
    damping = Damping(request.velocity_norm_threshold, request.velocity_ema_factor)
    return None if damping == Damping() else damping


def _task_remarks(request: MusicRequest, begins_at_source: bool) -> list[str]:
    """Fields of tasks other than the one asked for."""
    task, fields = request.task_type, MusicRequest.model_fields
    remarks = [
        f"{name}: not applied to task_type {task.value}"
        for name, tasks in TASKS_OF.items()
        if task not in tasks and getattr(request, name) != fields[name].default
    ]
    if source_of(request) is not None and request.audio_duration is not None:
        remarks.append("audio_duration: not applied, a song made from a source is as long as it")
    if request.cover_noise_strength > 0 and not begins_at_source:
        remarks.append("cover_noise_strength: not applied, there is no source to begin at")
    return remarks
