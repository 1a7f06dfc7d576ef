"""Guided songs inside an engine that samples row by row: which rows are halves of a pair, and what both must write."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.lm.decoding import Decoding, SongDecoder
from models.lm.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

SONG = "song"  # the key in SamplingParams.extra_args


@dataclass(frozen=True, slots=True)
class Half:
    """One request of a song: the conditional half, or the unconditional one that guides it."""

    uid: str
    is_cond: bool
    decoding: Decoding

    @classmethod
    def from_extra_args(cls, extra_args: Mapping[str, Any] | None) -> Half | None:
        plain = (extra_args or {}).get(SONG)
        return plain and cls(plain["uid"], plain["is_cond"], Decoding.from_plain(plain["decoding"]))

    def to_extra_args(self) -> dict[str, Any]:
        return {SONG: {"uid": self.uid, "is_cond": self.is_cond, "decoding": self.decoding.to_plain()}}


@dataclass(frozen=True, slots=True)
class RowOfHalf:
    """Where a half stands this step. `step` counts the tokens it has written, as the engine knows it."""

    row: int
    step: int
    half: Half


class Pairs:
    """Writes the same token into both rows of every song, by a logit nothing else can reach under greedy sampling.

    The engine's own sampler could not do it: its noise differs by row, so equal logits would still part the halves.
    A song whose halves are not side by side at the same step is broken. Its halves are then made to write different
    tokens, for that is what the caller of both looks for: nothing ever goes on unguided.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._songs: dict[str, SongDecoder] = {}
        self._broken: set[str] = set()

    def keep(self, uids: Iterable[str]) -> None:
        """Forgets every other song."""
        kept = set(uids)
        self._songs = {uid: song for uid, song in self._songs.items() if uid in kept}
        self._broken &= kept

    def write(self, logits: Tensor, rows: Iterable[RowOfHalf]) -> None:
        """Chooses every song's token and writes it in place. `logits`: (row, vocabulary)."""
        by_song: dict[str, list[RowOfHalf]] = {}
        for row in rows:
            by_song.setdefault(row.half.uid, []).append(row)
        for uid, halves in by_song.items():
            if not self._write_song(uid, sorted(halves, key=lambda row: not row.half.is_cond), logits):
                self._part(uid, halves, logits)

    def _write_song(self, uid: str, halves: list[RowOfHalf], logits: Tensor) -> bool:
        decoding = halves[0].half.decoding
        song = self._songs.setdefault(uid, SongDecoder(self._vocabulary, decoding))
        is_whole = [row.half.is_cond for row in halves] == ([True, False] if decoding.is_guided else [True])
        if uid in self._broken or not is_whole or any(row.step != song.steps for row in halves):
            return False
        token = song.choose(logits[halves[0].row], logits[halves[1].row] if decoding.is_guided else None)
        for row in halves:
            logits[row.row, token] = torch.finfo(logits.dtype).max
        return True

    def _part(self, uid: str, halves: list[RowOfHalf], logits: Tensor) -> None:
        if uid not in self._broken:
            places = [(row.half.is_cond, row.step) for row in halves]
            logger.error("song %s lost its lockstep: (is_cond, step) %s", uid, places)
            self._broken.add(uid)
        for row in halves:
            token = self._vocabulary.eos if row.half.is_cond else self._vocabulary.newline
            logits[row.row, token] = torch.finfo(logits.dtype).max
