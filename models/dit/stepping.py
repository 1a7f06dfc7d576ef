"""One step of diffusion for songs that are each at their own: what a song's state is, and how a step changes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.dit import guidance, sampling
from models.dit.adapters import NO_ADAPTERS, Blend
from models.dit.sampling import Method, Sampling
from models.dit.transformer import Row
from models.editing import weights


@dataclass(frozen=True, slots=True)
class Condition:
    """What steers a song."""

    tokens: Tensor  # (token, width), for the cross-attention
    context: Tensor  # (frame, 2 x channel), beside the noisy latents: source latents, chunk mask


@dataclass(frozen=True, slots=True)
class Kept:
    """What a song keeps of its source: (frame, channel) fp32, outside the frames `first` to `last`."""

    latents: Tensor
    first: int
    last: int

    def window(self, crossfade: int) -> Tensor:
        """(frame, 1): 1 inside the window, 0 outside, with ramps of so many frames just outside its edges."""
        window = torch.from_numpy(weights(len(self.latents), self.first, self.last, crossfade))
        return window[:, None].to(self.latents)


@dataclass(frozen=True, slots=True)
class Conditions:
    """A song's condition and, where it lets go of its source, the one that takes over at `switch_step`.

    `start` (frame, channel) fp32 is what it may begin from instead of noise alone.
    """

    first: Condition
    then: Condition | None = None
    start: Tensor | None = None
    kept: Kept | None = None
    remarks: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        return len(self.first.context)


@dataclass(frozen=True, slots=True)
class _Prediction:
    """The first half of a Heun step: where Euler led, and along which velocity."""

    x: Tensor
    velocity: Tensor


class Trajectory:
    """One song on its way from noise to music; everything that decides its sound is in here.

    `noises` gives (frame, channel) fp32: x at t=1 first, then what an SDE adds on the way.
    """

    def __init__(
        self,
        settings: Sampling,
        conditions: Conditions,
        null: Tensor,
        noises: Iterator[Tensor],
        adapters: Blend = NO_ADAPTERS,
    ) -> None:
        self.sampling = settings
        self.step = 0
        self._conditions = conditions
        self._null = null  # (1, width): one token does for any number of them, since they are all the same
        self._noises = noises
        self._adapters = adapters
        self._momentum: Tensor | None = None  # of projected guidance
        self._prediction: _Prediction | None = None
        self._velocity: Tensor | None = None  # of the step before
        kept = conditions.kept
        self._window = None if kept is None else kept.window(crossfade=0)
        self._noise = self._draw()
        self.x = self._beginning()  # (frame, channel) fp32

    @property
    def is_done(self) -> bool:
        return self.step == self.sampling.steps

    def rows(self) -> list[Row]:
        """What the DiT is to be asked next: with the condition and, where guidance is on at this t, without."""
        condition, x = self._condition, self._probed_x
        row = Row(x, self._t, condition.context, condition.tokens, self._adapters)
        guided = self.sampling.guidance
        if guided is None or not guided.is_active(self._t):
            return [row]
        return [row, replace(row, condition=self._null)]

    def advance(self, velocities: Sequence[Tensor]) -> None:
        """Takes the answers to `rows()`. A step ends with them, but for the first of a Heun step's two calls."""
        velocity = self._guided(velocities)
        if self.sampling.damping is not None:
            velocity = self.sampling.damping.damped(velocity, self._probed_x, self._velocity)
        self._velocity = first = velocity if self._prediction is None else self._prediction.velocity
        t, t_next = self.sampling.timesteps[self.step : self.step + 2]
        x = self.x
        if self._prediction is not None:
            self.x = sampling.heun(self.x, self._prediction.velocity, velocity, t, t_next)
            self._prediction = None
        elif self.sampling.corrects(self.step):
            self._prediction = _Prediction(sampling.euler(self.x, velocity, t, t_next), velocity)
            return
        elif self.sampling.method is Method.SDE and t_next > 0:
            level = self.sampling.noise_levels[self.step]
            self.x = sampling.renoise(self.x, velocity, t, level, self._draw())
        else:
            self.x = sampling.euler(self.x, velocity, t, t_next)
        if self.sampling.correction is not None:
            self.x = self.sampling.correction.corrected(self.x, x - first * t, t)
        self.step += 1
        self._keep(t_next)

    def _beginning(self) -> Tensor:
        start = self._conditions.start
        if start is None or not self.sampling.begins_at_source:
            return self._noise
        return sampling.noised(start, self.sampling.timesteps[0], self._noise)

    def _keep(self, t: float) -> None:
        """Puts the source back outside the window: at the noise of t after a step, blended in at the end."""
        kept, settings = self._conditions.kept, self.sampling
        if kept is None or self._window is None:
            return
        if self.step <= settings.injected_steps:
            self.x = torch.lerp(sampling.noised(kept.latents, t, self._noise), self.x, self._window)
        if self.is_done and settings.crossfade_frames > 0:
            self.x = torch.lerp(kept.latents, self.x, kept.window(settings.crossfade_frames))

    @property
    def _t(self) -> float:
        return self.sampling.timesteps[self.step + (self._prediction is not None)]

    @property
    def _probed_x(self) -> Tensor:
        return self.x if self._prediction is None else self._prediction.x

    @property
    def _condition(self) -> Condition:
        switch, then = self.sampling.switch_step, self._conditions.then
        has_let_go = switch is not None and self.step >= switch
        return then if then is not None and has_let_go else self._conditions.first

    def _guided(self, velocities: Sequence[Tensor]) -> Tensor:
        """Momentum rests while guidance is off. A Heun corrector is guided plainly where the rule is projection."""
        settings = self.sampling.guidance
        if settings is None or len(velocities) == 1:
            return velocities[0]
        cond, null = velocities
        if settings.by_angle and self._t > 0:
            return guidance.adg(self._probed_x, cond, null, self._t, settings.scale)
        if self._prediction is not None:
            return guidance.cfg(cond, null, settings.scale)
        velocity, self._momentum = guidance.apg(cond, null, settings.scale, self._momentum)
        return velocity

    def _draw(self) -> Tensor:
        return next(self._noises).to(self._conditions.first.context.device)
