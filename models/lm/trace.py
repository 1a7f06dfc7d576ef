"""A run told again for people: where the constraint stood at each step, how much it allowed, what was written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.lm.constraints import Constraint, Rules
from models.lm.vocabulary import Columns, Vocabulary


class _Written:
    """Logits that prefer the token which was written: all that a constraint needs to walk the same way again."""

    def __init__(self, token: int) -> None:
        self._token = token

    def cut(self, columns: Columns) -> Tensor:
        return (columns.ids == self._token).to(torch.float32)


def trace(vocabulary: Vocabulary, rules: Rules, tokens: Sequence[int]) -> tuple[str, ...]:
    constraint = Constraint(vocabulary, rules)
    lines = []
    for step, token in enumerate(tokens):
        where = constraint.where
        allowed = len(constraint.allow(_Written(token)))
        lines.append(f"{step}: {where}, {allowed} allowed, wrote {vocabulary.decode([token])!r}")
        constraint.advance(token)
    return tuple(lines)
