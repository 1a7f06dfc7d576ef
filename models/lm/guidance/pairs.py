"""Guided songs inside an engine that samples row by row: which rows are halves of a pair, and what both must write."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.lm.decoding import Chooser, Decoding, SongDecoder
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
        self._chooser = Chooser()

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
        logits_of = logits.unbind(0)
        whole: list[list[RowOfHalf]] = []
        songs: list[tuple[SongDecoder, Tensor, Tensor | None]] = []
        for uid, halves in by_song.items():
            song = self._songs.get(uid)
            if song is None:
                song = self._songs[uid] = SongDecoder(self._vocabulary, halves[0].half.decoding)
            if self._is_whole(song, halves):
                whole.append(halves)
                by_kind = {row.half.is_cond: logits_of[row.row] for row in halves}
                songs.append((song, by_kind[True], by_kind.get(False)))
            else:
                self._part(uid, halves, logits)
        if not songs:
            return
        try:
            self._write_tokens(logits, whole, self._chooser.choose(songs))
        except Exception:  # one song's fault must end neither its neighbours nor the engine
            logger.exception("choosing tokens for %d songs failed; each is tried alone", len(songs))
            for halves, step in zip(whole, songs, strict=True):
                self._write_alone(logits, halves, step)

    def _write_alone(
        self, logits: Tensor, halves: list[RowOfHalf], song: tuple[SongDecoder, Tensor, Tensor | None]
    ) -> None:
        if song[0].steps > halves[0].step:  # it had its token before another failed
            self._part(halves[0].half.uid, halves, logits)
            return
        try:
            self._write_tokens(logits, [halves], self._chooser.choose([song]))
        except Exception:
            logger.exception("song %s failed", halves[0].half.uid)
            self._part(halves[0].half.uid, halves, logits)

    @staticmethod
    def _write_tokens(logits: Tensor, whole: list[list[RowOfHalf]], tokens: Tensor) -> None:
        numbers = [row.row for halves in whole for row in halves]
        songs_of_rows = [song for song, halves in enumerate(whole) for _ in halves]
        logits[numbers, tokens[songs_of_rows]] = torch.finfo(logits.dtype).max

    def _is_whole(self, song: SongDecoder, halves: list[RowOfHalf]) -> bool:
        first = halves[0].half
        kinds = {True, False} if first.decoding.is_guided else {True}
        are_there = len(halves) == len(kinds) and {row.half.is_cond for row in halves} == kinds
        return are_there and first.uid not in self._broken and all(row.step == song.steps for row in halves)

    def _part(self, uid: str, halves: list[RowOfHalf], logits: Tensor) -> None:
        if uid not in self._broken:
            places = [(row.half.is_cond, row.step) for row in halves]
            logger.error("song %s lost its lockstep: (is_cond, step) %s", uid, places)
            self._broken.add(uid)
        for row in halves:
            token = self._vocabulary.eos if row.half.is_cond else self._vocabulary.newline
            logits[row.row, token] = torch.finfo(logits.dtype).max
