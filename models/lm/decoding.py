"""One song's decoding, wherever the logits come from: mix, constrain, sample, remember. Both backends share it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from torch import Tensor

from models.lm.constraints import Constraint, Rules, Then
from models.lm.sampling import Order, Sampling, penalise, pick
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


class GuidedRow:
    """Logits of one step, guided as far as they are looked at (Ho & Salimans 2021): uncond + scale (cond - uncond)."""

    def __init__(self, cond: Tensor, uncond: Tensor | None, scale: float) -> None:
        self._cond = cond  # (vocabulary)
        self._uncond = uncond
        self._scale = scale

    def cut(self, columns: Columns) -> Tensor:
        cond = columns.cut(self._cond).float()
        if self._uncond is None:
            return cond
        return torch.lerp(columns.cut(self._uncond).float(), cond, self._scale)


class SongDecoder:
    """Chooses a song's tokens one after another. Its draws depend on the seed and on nothing else in the engine."""

    def __init__(self, vocabulary: Vocabulary, decoding: Decoding, prompt: Sequence[int] = ()) -> None:
        self._decoding = decoding
        self._constraint = Constraint(vocabulary, decoding.rules)
        self._random = random.Random(decoding.seed)
        # the reference's PyTorch loop counts the prompt as seen, nano-vllm only what was written
        is_untempered = decoding.sampling.order is Order.UNTEMPERED
        self._seen = list(prompt) if is_untempered else []
        self._written: list[Tensor] = []
        self.steps = 0

    def choose(self, cond: Tensor, uncond: Tensor | None) -> Tensor:
        """The next token's id as a tensor on the logits' device. `cond`, `uncond`: (vocabulary)."""
        sampling = self._decoding.sampling
        if sampling.repetition_penalty != 1.0 and sampling.order is Order.TEMPERED:
            cond = self._penalise(cond.float())
        row = GuidedRow(cond, uncond, self._decoding.scale)
        columns = self._constraint.allow(row)
        logits = row.cut(columns)
        if sampling.repetition_penalty != 1.0 and sampling.order is Order.UNTEMPERED:
            logits = columns.cut(self._penalise(_spread(columns, logits, len(cond))))
        token = columns.ids[pick(logits, sampling, self._random.random())]
        self._constraint.advance(int(token) if self._constraint.needs_token else None)
        if sampling.repetition_penalty != 1.0:
            self._written.append(token)
        self.steps += 1
        return token

    def _penalise(self, logits: Tensor) -> Tensor:
        seen = torch.tensor(self._seen, dtype=torch.long, device=logits.device)
        written = torch.stack(self._written) if self._written else seen[:0]
        return penalise(logits, torch.cat([seen, written]), self._decoding.sampling.repetition_penalty)


def _spread(columns: Columns, values: Tensor, size: int) -> Tensor:
    """Values back at their ids, -inf elsewhere: (vocabulary)."""
    return values.new_full((size,), -torch.inf).index_copy(0, columns.ids, values)
