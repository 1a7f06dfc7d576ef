"""Attention over packed rows of different length, behind one face: one CUDA kernel, or SDPA row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many tokens of a packed sequence belong to each row: on the host and, as running sums, on the device.

    A compiled forward must not look at `own`, or there would be one for each mix of songs.
    """

    own: tuple[int, ...]
    sums: Tensor  # (row + 1,) int32, from 0

    @classmethod
    def of(cls, own: tuple[int, ...], device: torch.device) -> Lengths:
        return cls(own, torch.tensor((0, *own), device=device).cumsum(0).int())


class Attention(Protocol):
    """Query, key and value are (token, head, width), row after row, keys and values perhaps of fewer heads (GQA).

    A query sees the keys of its own row; with a window, only those at most that many tokens away.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, lengths: tuple[Lengths, Lengths], window: int | None
    ) -> Tensor: ...


def attend_row_by_row(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[Lengths, Lengths], window: int | None
) -> Tensor:
    """SDPA, one call a row: nothing is padded, so nothing of a neighbour has to be masked."""
    queries, keys = lengths
    rows = zip(_rows(query, queries), _rows(key, keys), _rows(value, keys), strict=True)
    return torch.cat([_attend(q, k, v, window) for q, k, v in rows])


def attend_packed(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[Lengths, Lengths], window: int | None
) -> Tensor:
    """All rows in one CUDA kernel (FlashAttention), the band included."""
    queries, keys = lengths
    answer = varlen_attn(
        query,
        key,
        value,
        queries.sums,
        keys.sums,
        len(query),  # no row is longer: all that the kernel asks, whose blocks beyond a row's end return at once
        len(key),
        window_size=(-1, -1) if window is None else (window, window),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(answer, Tensor)  # a tuple only where auxiliary output is asked for
    return answer


@torch.library.custom_op("acestep::attend_row_by_row", mutates_args=())
def _row_by_row_on_a_cpu(
    query: Tensor, key: Tensor, value: Tensor, query_sums: Tensor, key_sums: Tensor, *, window: int | None
) -> Tensor:
    lengths = [Lengths(tuple(sums.diff().tolist()), sums) for sums in (query_sums, key_sums)]
    return attend_row_by_row(query, key, value, (lengths[0], lengths[1]), window)


@_row_by_row_on_a_cpu.register_fake
def _(query: Tensor, *others: object, **more: object) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


def attend_opaquely(
    query: Tensor, key: Tensor, value: Tensor, lengths: tuple[Lengths, Lengths], window: int | None
) -> Tensor:
    """Row by row, as one operator that no compiler looks into; on a CPU, where reading the sums costs nothing."""
    queries, keys = lengths
    answer: Tensor = _row_by_row_on_a_cpu(query, key, value, queries.sums, keys.sums, window=window)
    return answer


def attention_for(device: torch.device, is_compiled: bool = False) -> Attention:
    if device.type == "cuda":
        return attend_packed
    return attend_opaquely if is_compiled else attend_row_by_row


def _rows(packed: Tensor, lengths: Lengths) -> tuple[Tensor, ...]:
    return torch.split(packed, list(lengths.own))


def _attend(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    q, k, v = (part.transpose(0, 1)[None] for part in (query, key, value))  # (1, head, token, width)
    mask = None if window is None or len(query) <= window + 1 else _band(len(query), window, query.device)
    answer = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])
    return answer[0].transpose(0, 1)


def _band(tokens: int, window: int, device: torch.device) -> Tensor:
    position = torch.arange(tokens, device=device)
    return (position[:, None] - position[None]).abs() <= window
