"""A run told again for people: where the constraint stood at each step, how much it allowed, what was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from models.lm.constraints import Constraint, Rules
from models.lm.vocabulary import Columns, Vocabulary

MOST_WALKS = 64  # tried before the last one is told as it is


class _Written:
    """Logits that prefer one token: all that a constraint needs to walk the same way again."""

    def __init__(self, token: int) -> None:
        self._token = token
        self.was_read = False

    def cut(self, columns: Columns) -> Tensor:
        self.was_read = True
        return (columns.ids == self._token).to(torch.float32)


def trace(vocabulary: Vocabulary, rules: Rules, tokens: Sequence[int]) -> tuple[str, ...]:
    """One line a step.

    After a line of the caption the constraint looks at the likeliest token, which need not be the one drawn: whether
    the caption went on or a field's name began is found by trying which of the two leads through all tokens.
    """
    others: dict[int, int] = {}  # steps at which another token than the one written was the likeliest
    indented, unindented = vocabulary.encode(" ")[0], vocabulary.encode("b")[0]
    lines: list[str] = []
    for _ in range(MOST_WALKS):
        lines, read_at, failed_at = _walk(vocabulary, rules, tokens, others)
        if failed_at is None:
            break
        last = next((step for step in reversed(read_at) if step not in others), None)
        if last is None:
            break
        others = {step: token for step, token in others.items() if step < last}
        is_indented = vocabulary.decode([tokens[last]])[:1] in (" ", "\t")
        others[last] = unindented if is_indented else indented
    return tuple(lines)


def _walk(
    vocabulary: Vocabulary, rules: Rules, tokens: Sequence[int], others: Mapping[int, int]
) -> tuple[list[str], list[int], int | None]:
    """The lines; the steps at which a rule read the logits before the walk failed; the step at which it did, if so."""
    constraint = Constraint(vocabulary, rules)
    lines: list[str] = []
    read_at: list[int] = []
    failed_at = None
    for step, token in enumerate(tokens):
        where, row = constraint.where, _Written(others.get(step, token))
        columns = constraint.allow(row)
        if failed_at is None and not bool((columns.ids == token).any()):
            failed_at = step
        if failed_at is None and row.was_read:
            read_at.append(step)
        lines.append(f"{step}: {where}, {len(columns)} allowed, wrote {vocabulary.decode([token])!r}")
        constraint.advance(token)
    return lines, read_at, failed_at
