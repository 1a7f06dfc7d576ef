"""From logits to one token. Pure functions over one row of logits.

The reference's two backends filter in different orders, and at temperatures other than one their nuclei differ, so both
orders are kept: `TEMPERED` (nano-vllm: temperature, then top-k and top-p) and `UNTEMPERED` (its PyTorch loop: top-k and
top-p on the logits as they are, then temperature).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import torch
from torch import Tensor


class Order(StrEnum):
    TEMPERED = "tempered"
    UNTEMPERED = "untempered"


@dataclass(frozen=True, slots=True)
class Sampling:
    """`temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off."""

    temperature: float = 0.85
    top_k: int = 0
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    order: Order = Order.TEMPERED


def pick(logits: Tensor, sampling: Sampling, uniform: float) -> Tensor:
    """Index of one entry of `logits` (column), drawn by `uniform` in [0, 1), as a tensor that stays on its device."""
    if sampling.temperature <= 0:
        return logits.argmax()
    return draw(probabilities(logits, sampling), uniform)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What is drawn from: (column), 0 where top-k or top-p leaves an entry out."""
    if sampling.order is Order.TEMPERED:
        return torch.softmax(_top_p(_top_k(logits / sampling.temperature, sampling.top_k), sampling.top_p), -1)
    return torch.softmax(_top_p(_top_k(logits, sampling.top_k), sampling.top_p) / sampling.temperature, -1)


def draw(weights: Tensor, uniform: float) -> Tensor:
    """The first index whose running sum exceeds `uniform` of the total: one random number a token, on any device."""
    sums = torch.cumsum(weights, -1, dtype=torch.float64)
    return torch.searchsorted(sums, sums[-1:] * uniform, right=True)[0].clamp(max=len(weights) - 1)


def penalise(logits: Tensor, seen: Collection[int] | Tensor, penalty: float) -> Tensor:
    """Makes the tokens `seen` less likely, each once (Keskar et al. 2019, CTRL)."""
    ids = seen if isinstance(seen, Tensor) else torch.tensor(sorted(set(seen)), dtype=torch.long, device=logits.device)
    values = logits[ids]
    return logits.index_copy(0, ids, torch.where(values < 0, values * penalty, values / penalty))


def _top_k(logits: Tensor, k: int) -> Tensor:
    if k <= 0 or k >= len(logits):
        return logits
    return logits.masked_fill(logits < torch.topk(logits, k).values[-1], -torch.inf)


def _top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the likeliest entries until they hold `p`, the one that crosses it included (Holtzman et al. 2019)."""
    if p >= 1.0:
        return logits
    ordered, places = torch.sort(logits, descending=True)
    before = torch.softmax(ordered, -1).cumsum(-1).roll(1)
    before[0] = 0.0
    return logits.masked_fill(torch.empty_like(before, dtype=torch.bool).scatter_(0, places, before > p), -torch.inf)
