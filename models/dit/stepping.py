"""One step of diffusion for songs that are each at their own: what a song's state is, and how a step changes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.dit import guidance, sampling
from models.dit.sampling import Sampling
from models.dit.transformer import Row, Transformer
from models.errors import BadLatents


@dataclass(slots=True, eq=False)
class Trajectory:
    """One song on its way from noise to music; everything that decides its sound is in here."""

    sampling: Sampling
    condition: Tensor  # (token, width)
    context: Tensor  # (frame, 2 x channel)
    x: Tensor  # (frame, channel) fp32
    generator: torch.Generator  # for methods that draw noise on the way
    momentum: Tensor | None = None  # of projected guidance
    step: int = 0

    @property
    def t(self) -> float:
        return self.sampling.timesteps[self.step]

    @property
    def is_done(self) -> bool:
        return self.step == len(self.sampling.timesteps)

    @property
    def is_guided_now(self) -> bool:
        return self.sampling.is_guided and guidance.is_active(self.t, *self.sampling.cfg_interval)


class Stepper:
    """`packs_rows`: all songs in one forward; otherwise each row in its own."""

    def __init__(self, transformer: Transformer, null: Tensor, is_turbo: bool, packs_rows: bool) -> None:
        self._transformer = transformer
        self._null = null  # (1, width): one token does for any number of them
        self._is_turbo = is_turbo
        self._packs_rows = packs_rows

    def predict(self, batch: Sequence[Trajectory]) -> list[list[Tensor]]:
        """For each song its conditional velocity and, where guidance is on at its t, the null one. Changes nothing."""
        rows = [self._rows_of(song) for song in batch]
        if not self._packs_rows:
            return [[self._transformer.velocities([row])[0] for row in of_song] for of_song in rows]
        velocities = iter(self._transformer.velocities([row for of_song in rows for row in of_song]))
        return [[next(velocities) for _ in of_song] for of_song in rows]

    def advance(self, song: Trajectory, velocities: Sequence[Tensor]) -> None:
        """Raises BadLatents when the song is no longer finite."""
        t, t_next = song.t, song.sampling.next_of(song.step)
        velocity = _guided(song, velocities)
        if song.sampling.method == "ode" or t_next == 0.0:
            song.x = sampling.euler(song.x, velocity, t, t_next)
        else:
            noise = torch.randn((1, *song.x.shape), generator=song.generator)[0].to(song.x.device)
            song.x = sampling.renoise(song.x, velocity, t, self._renoised_to(song, t_next), noise)
        song.step += 1
        if not bool(torch.isfinite(song.x).all()):
            raise BadLatents(f"NaN or infinity came out of step {song.step} of the DiT")

    def _renoised_to(self, song: Trajectory, t_next: float) -> float:
        """The reference's base models go back up to even values of t, whatever the schedule."""
        return t_next if self._is_turbo else 1.0 - (song.step + 1) / len(song.sampling.timesteps)

    def _rows_of(self, song: Trajectory) -> list[Row]:
        rows = [Row(song.x, song.t, song.context, song.condition)]
        if song.is_guided_now:
            rows.append(Row(song.x, song.t, song.context, self._null))
        return rows


def _guided(song: Trajectory, velocities: Sequence[Tensor]) -> Tensor:
    if len(velocities) == 1:
        return velocities[0]
    cond, null = velocities
    scale = song.sampling.guidance_scale
    if song.sampling.use_adg:
        return guidance.adg(song.x, cond, null, song.t, scale)
    velocity, song.momentum = guidance.apg(cond, null, scale, song.momentum)
    return velocity
