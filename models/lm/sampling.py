"""From logits to one token a song. Pure functions over songs side by side, none of which sees another.

The reference's two backends filter in different orders, and at temperatures other than one their nuclei differ, so both
orders are kept: `TEMPERED` (nano-vllm: temperature, then top-k and top-p) and `UNTEMPERED` (its PyTorch loop: top-k and
top-p on the logits as they are, then temperature).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

BLOCK = 256  # entries summed at a time
LEAST_DRAWN = 0.5  # nuclei below are sorted out, since most draws would miss them
UNLIKELY = 1e-12  # chance that every try misses a nucleus and the likeliest entry is taken
COLDEST = 1e-5  # temperatures below are greedy: nothing but the likeliest entry would weigh anything
MOST_AT_ONCE = 2**25  # entries compared side by side, 128 MiB of them


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


def pick_(logits: Tensor, sampling: Sampling, randoms: Sequence[Random]) -> Tensor:
    """A column for each row of `logits` (row, column), drawn by its own generator: (row), on the same device.

    What `logits` hold afterwards is undefined.
    """
    if sampling.temperature < COLDEST:
        return _likeliest(logits)
    if sampling.order is Order.UNTEMPERED or not LEAST_DRAWN <= sampling.top_p < 1.0:
        return draw(probabilities(logits, sampling), [random.random() for random in randoms])
    logits = _top_k(logits, sampling.top_k)
    shift = -logits.amax(-1, keepdim=True) / sampling.temperature
    weights = torch.add(shift, logits, alpha=1 / sampling.temperature, out=logits).exp_()
    tries = math.ceil(math.log(UNLIKELY) / math.log1p(-sampling.top_p))
    uniforms = [[random.random() for _ in range(tries)] for random in randoms]
    return draw_in_nucleus(weights, sampling.top_p, uniforms, at_once=not _is_on_host(weights))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What is drawn from: (row, column), 0 where top-k or top-p leaves an entry out."""
    if sampling.order is Order.TEMPERED:
        return torch.softmax(_top_p(_top_k(logits / sampling.temperature, sampling.top_k), sampling.top_p), -1)
    return torch.softmax(_top_p(_top_k(logits, sampling.top_k), sampling.top_p) / sampling.temperature, -1)


def draw_in_nucleus(weights: Tensor, p: float, uniforms: Sequence[Sequence[float]], at_once: bool) -> Tensor:
    """Draws from all of a row of `weights` (row, column) until an entry lies among the likeliest that hold `p` of it.

    Such rejections follow the nucleus exactly and need no sorting, which would take most of a step (FlashInfer's way).
    `uniforms` are each row's tries. `at_once` makes all of them side by side, for a device that no host should wait
    for; the entries are the same.
    """
    if at_once:
        rows = max(1, MOST_AT_ONCE // (len(uniforms[0]) * weights.shape[-1]))
        parts = range(0, len(weights), rows)
        return torch.cat([_first_inside(weights[i : i + rows], p, uniforms[i : i + rows]) for i in parts])
    drawn, totals = _draw_on_host(weights, [tries[0] for tries in uniforms])
    for row, (tries, total) in enumerate(zip(uniforms, totals, strict=True)):
        left = iter(tries[1:])
        while not _is_inside(weights[row], int(drawn[row]), p * total, total):
            uniform = next(left, None)
            if uniform is None:
                drawn[row] = int(weights[row].argmax())
                break
            drawn[row] = _draw_on_host(weights[row : row + 1], [uniform])[0][0]
    return torch.from_numpy(drawn)


def _first_inside(weights: Tensor, p: float, uniforms: Sequence[Sequence[float]]) -> Tensor:
    indices = _draw_at_once(weights, uniforms)
    least = weights.gather(-1, indices)
    above = torch.where(weights[:, None] > least[:, :, None], weights[:, None], 0.0).sum(-1)
    is_inside = above <= p * weights.sum(-1, keepdim=True)
    first = indices.gather(-1, is_inside.int().argmax(-1, keepdim=True))[:, 0]
    return torch.where(is_inside.any(-1), first, weights.argmax(-1))


def _is_inside(weights: Tensor, index: int, most: float, total: float) -> bool:
    weight = float(weights[index])
    if total - weight <= most:  # even if all others were likelier
        return True
    return float(functional.threshold(weights, weight, 0.0).sum()) <= most


def draw(weights: Tensor, uniforms: Sequence[float]) -> Tensor:
    """The first column whose running sum exceeds `uniforms` (row), in [0, 1), of its row's total: (row)."""
    if _is_on_host(weights):
        return torch.from_numpy(_draw_on_host(weights, uniforms)[0])
    return _draw_at_once(weights, [[uniform] for uniform in uniforms])[:, 0]


def _draw_on_host(weights: Tensor, uniforms: Sequence[float]) -> tuple[NDArray[np.int64], list[float]]:
    """As `draw`, and each row's total. In two steps: a running sum of every entry would take longer than all else."""
    rows, columns = np.arange(len(weights)), weights.shape[-1]
    whole = functional.pad(weights, (0, -columns % BLOCK)) if columns % BLOCK else weights
    blocks = whole.view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1).numpy()
    ends = sums.cumsum(-1, dtype=np.float64)
    totals = ends[:, -1]
    # rounding may come out at a sum itself; the last entry below it that weighs anything is meant then
    targets = np.minimum(np.asarray(uniforms) * totals, np.nextafter(totals, 0.0))
    block = (ends > targets[:, None]).argmax(-1)
    inside = blocks.numpy()[rows, block].cumsum(-1, dtype=np.float64)
    rest = np.minimum(targets - (ends[rows, block] - sums[rows, block]), np.nextafter(inside[:, -1], 0.0))
    return block * BLOCK + (inside > rest[:, None]).argmax(-1), totals.tolist()


def penalise_(logits: Tensor, places: Tensor, penalty: float) -> Tensor:
    """Makes the entries at `places` less likely, each once however often it is named (Keskar et al. 2019, CTRL)."""
    values = logits[places]
    return logits.index_copy_(0, places, torch.where(values < 0, values * penalty, values / penalty))


def _draw_at_once(weights: Tensor, uniforms: Sequence[Sequence[float]]) -> Tensor:
    """As `draw`, several a row and without a word from the device: (row, try)."""
    sums = weights.cumsum(-1, dtype=torch.float64)
    targets = sums[:, -1:] * torch.tensor(uniforms, dtype=torch.float64, device=weights.device)
    return torch.searchsorted(sums, targets, right=True).clamp(max=weights.shape[-1] - 1)


def _top_k(logits: Tensor, k: int) -> Tensor:
    if k <= 0 or k >= logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < torch.topk(logits, k).values[:, -1:], -torch.inf)


def _top_p(logits: Tensor, p: float) -> Tensor:
    """Keeps the likeliest entries until they hold `p`, the one that crosses it included (Holtzman et al. 2019)."""
    if p >= 1.0:
        return logits
    ordered, places = torch.sort(logits, descending=True)
    before = torch.softmax(ordered, -1).cumsum(-1).roll(1, -1)
    before[:, 0] = 0.0
    return logits.masked_fill(torch.empty_like(before, dtype=torch.bool).scatter_(-1, places, before > p), -torch.inf)


def _likeliest(logits: Tensor) -> Tensor:
    """NumPy's argmax takes a twentieth of PyTorch's on a CPU."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if _is_on_host(logits) else logits.argmax(-1)


def _is_on_host(weights: Tensor) -> bool:
    return weights.device.type == "cpu"
