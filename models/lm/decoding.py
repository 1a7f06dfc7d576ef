"""One song's decoding, wherever the logits come from: mix, constrain, sample, remember. Both backends share it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from models.lm.constraints import Constraint, Rules, Then
from models.lm.sampling import Order, Sampling, penalise_, pick_
from models.lm.vocabulary import Columns, Vocabulary


@dataclass(frozen=True, slots=True)
class Decoding:
    """Everything that decides one run of tokens, given the model. `scale` 1 or less means unguided."""

    rules: Rules
    sampling: Sampling
    scale: float
    seed: int

    @property
    def is_guided(self) -> bool:
        return self.scale > 1.0

    def to_plain(self) -> dict[str, Any]:
        """For the trip to the engine's process, which carries plain values only."""
        plain = asdict(self)
        plain["rules"]["skipped"] = sorted(self.rules.skipped)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        rules, sampling = dict(plain["rules"]), dict(plain["sampling"])
        rules |= {"skipped": frozenset(rules["skipped"]), "then": Then(rules["then"])}
        sampling |= {"order": Order(sampling["order"])}
        return cls(Rules(**rules), Sampling(**sampling), plain["scale"], plain["seed"])


class Seen:
    """Tokens written so far, kept on the device: a host that asks for each would wait for it at every step."""

    def __init__(self, tokens: Sequence[int], device: torch.device) -> None:
        self._tokens = torch.tensor(tokens, dtype=torch.long, device=device)
        self._count = len(tokens)

    def add(self, token: Tensor) -> None:
        if self._count == len(self._tokens):
            room = self._tokens.new_empty(max(256, self._count))
            self._tokens = torch.cat([self._tokens, room])
        self._tokens[self._count] = token
        self._count += 1

    def places_in(self, columns: Columns) -> Tensor:
        """Where these columns hold a token seen."""
        tokens = self._tokens[: self._count]
        places = torch.searchsorted(columns.ids, tokens).clamp_(max=len(columns) - 1)
        return places[columns.ids[places] == tokens]


class GuidedRow:
    """Logits of one step, guided as far as they are looked at (Ho & Salimans 2021): uncond + scale (cond - uncond).

    With `seen`, tokens are made less likely by `penalty` before guidance.
    """

    def __init__(self, cond: Tensor, uncond: Tensor | None, scale: float, seen: Seen | None, penalty: float) -> None:
        self._cond = cond  # (vocabulary)
        self._uncond = uncond
        self._scale = scale
        self._seen = seen
        self._penalty = penalty

    def cut(self, columns: Columns) -> Tensor:
        return self.write(columns, self._cond.new_empty(len(columns), dtype=torch.float32))

    def write(self, columns: Columns, out: Tensor) -> Tensor:
        """`out`: (column)."""
        cond = columns.cut(self._cond).float()
        if self._seen is not None:
            cond = penalise_(cond.clone(), self._seen.places_in(columns), self._penalty)
        if self._uncond is None:
            return out.copy_(cond)
        return torch.lerp(columns.cut(self._uncond).float(), cond, self._scale, out=out)


class SongDecoder:
    """Chooses a song's tokens one after another. Its draws depend on the seed and on nothing else in the engine."""

    def __init__(self, vocabulary: Vocabulary, decoding: Decoding, prompt: Sequence[int] = ()) -> None:
        self.sampling = decoding.sampling
        self.random = random.Random(decoding.seed)
        self.steps = 0
        self._scale = decoding.scale
        self._constraint = Constraint(vocabulary, decoding.rules)
        self._penalty = self.sampling.repetition_penalty
        # the reference's PyTorch loop counts the prompt as seen, nano-vllm only what was written
        self._is_late = self.sampling.order is Order.UNTEMPERED
        self._seen = Seen(prompt if self._is_late else (), vocabulary.device) if self._penalty != 1.0 else None

    def look(self, cond: Tensor, uncond: Tensor | None) -> tuple[Columns, GuidedRow]:
        """What the next token may be, and the logits it is drawn by. `cond`, `uncond`: (vocabulary)."""
        row = GuidedRow(cond, uncond, self._scale, None if self._is_late else self._seen, self._penalty)
        return self._constraint.allow(row), row

    def write(self, row: GuidedRow, columns: Columns, out: Tensor) -> None:
        """The columns' logits as they are drawn from. `out`: (column)."""
        row.write(columns, out)
        if self._is_late and self._seen is not None:
            penalise_(out, self._seen.places_in(columns), self._penalty)

    def take(self, token: Tensor) -> None:
        """Goes on with the token chosen."""
        self._constraint.advance(int(token) if self._constraint.needs_token else None)
        if self._seen is not None:
            self._seen.add(token)
        self.steps += 1


class Chooser:
    """Chooses the next tokens of songs side by side. Those drawn alike from the same columns share the arithmetic, and
    nothing else."""

    def __init__(self) -> None:
        self._scratch = torch.empty(0)  # new memory every step would cost as much as the arithmetic

    def choose(self, songs: Sequence[tuple[SongDecoder, Tensor, Tensor | None]]) -> Tensor:
        """The tokens (song) of at least one song. Each comes with its `cond` and `uncond` logits (vocabulary)."""
        alike: dict[tuple[int, Sampling], list[int]] = {}
        looks = [song.look(cond, uncond) for song, cond, uncond in songs]
        for place, ((song, _, _), (columns, _)) in enumerate(zip(songs, looks, strict=True)):
            alike.setdefault((id(columns), song.sampling), []).append(place)
        tokens = looks[0][0].ids.new_empty(len(songs))
        for (_, sampling), places in alike.items():
            columns = looks[places[0]][0]
            if len(columns) == 1:
                tokens[places] = columns.ids[0]
                continue
            logits = self._room(len(places), columns)
            for place, out in zip(places, logits, strict=True):
                songs[place][0].write(looks[place][1], columns, out)
            tokens[places] = columns.ids[pick_(logits, sampling, [songs[place][0].random for place in places])]
        for (song, _, _), token in zip(songs, tokens, strict=True):
            song.take(token)
        return tokens

    def _room(self, rows: int, columns: Columns) -> Tensor:
        size = rows * len(columns)
        if self._scratch.numel() < size:
            self._scratch = torch.empty(size, device=columns.ids.device)
        return self._scratch[:size].view(rows, len(columns))
