"""One forward over songs of different length, condition and timestep; each comes out as if it were alone.

Weights and layers are those of diffusers' `AceStepTransformer1DModel`, whose own forward knows no padding. Here rows
lie one after another in one sequence, so there is none: only attention has to know where a row begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AceStepTransformer1DModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from models.dit.adapters import NO_ADAPTERS, Blend
from models.dit.attention import Attention, Lengths, attention_for
from models.weights import DitWeights, load_strictly


@dataclass(frozen=True, slots=True)
class Row:
    """One call of the DiT for one song. A guided song has two, the second with the null condition."""

    x: Tensor  # (frame, channel) fp32
    t: float
    context: Tensor  # (frame, 2 x channel): source latents, chunk mask
    condition: Tensor  # (token, width)
    adapters: Blend = NO_ADAPTERS


class Transformer:
    """The DiT of one variant on one device."""

    def __init__(self, weights: DitWeights, device: torch.device, dtype: torch.dtype) -> None:
        with torch.device("meta"):
            model: Any = AceStepTransformer1DModel(**weights.config.transformer)
        load_strictly(model, weights.transformer, "DiT")
        self._model: Any = nn.Module.to(model, device, dtype).eval().requires_grad_(False)
        self._device = device
        self._dtype = dtype
        self._attention = attention_for(device)

    @property
    def model(self) -> nn.Module:
        module: nn.Module = self._model
        return module

    def velocities(self, rows: Sequence[Row]) -> list[Tensor]:
        """The velocity of each row, (frame, channel) in fp32. One forward for all rows with the same adapters."""
        answers: dict[int, Tensor] = {}
        for adapters in dict.fromkeys(row.adapters for row in rows):
            places = [place for place, row in enumerate(rows) if row.adapters == adapters]
            with adapters.on(self._model):
                answers |= zip(places, self._forward([rows[place] for place in places]), strict=True)
        return [answers[place] for place in range(len(rows))]

    def _forward(self, rows: Sequence[Row]) -> list[Tensor]:
        frames = tuple(len(row.x) for row in rows)
        tokens = Lengths.of(tuple((count + 1) // 2 for count in frames), self._device)
        conditions = Lengths.of(tuple(len(row.condition) for row in rows), self._device)
        row_of_token = torch.repeat_interleave(
            torch.arange(len(rows), device=self._device),
            torch.tensor(tokens.own, device=self._device),
            output_size=sum(tokens.own),  # known here; else the host would wait for the device
        )
        time, time_of_block = self._embed_time(torch.tensor([row.t for row in rows], device=self._device))
        layout = _Layout(
            lengths=tokens,
            conditions=conditions,
            rotary=self._rotary(tokens.own),
            row_of_token=row_of_token,
            time=time_of_block,
            attention=self._attention,
        )
        hidden = self._patchify(rows)
        condition = self._model.condition_embedder(torch.cat([row.condition for row in rows]).to(self._dtype))
        for kind, block in zip(self._model.layer_types, self._model.layers, strict=True):
            window = self._model.config.sliding_window if kind == "sliding_attention" else None
            hidden = _through_block(block, hidden, condition, layout, window)
        shift, scale = _spread(self._model.scale_shift_table + time[:, None], row_of_token)
        hidden = (self._model.norm_out(hidden) * (1 + scale) + shift).type_as(hidden)
        latents = self._model.proj_out_conv(hidden.T[None])[0].T.float()  # (frame, channel), rows of even length
        return [
            latent[:count] for latent, count in zip(latents.split([2 * own for own in tokens.own]), frames, strict=True)
        ]

    def _embed_time(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(row, width) and (row, 6, width). The second embedder is of t minus a second time, the same in inference."""
        time, time_of_block = _embed_time(self._model.time_embed, t)
        gap, gap_of_block = _embed_time(self._model.time_embed_r, torch.zeros_like(t))
        return time + gap, time_of_block + gap_of_block

    def _patchify(self, rows: Sequence[Row]) -> Tensor:
        """(token, width): two frames a token; a row of odd length is completed by a zero frame, as when it is alone."""
        latents = [torch.cat([row.context.to(self._dtype), row.x.to(self._dtype)], -1) for row in rows]
        even = torch.cat([functional.pad(latent, (0, 0, 0, len(latent) % 2)) for latent in latents])
        hidden: Tensor = self._model.proj_in_conv(even.T[None])[0].T
        return hidden

    def _rotary(self, tokens: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Cosine and sine, (token, 1, head width); positions start anew with each row."""
        longest = torch.arange(max(tokens), device=self._device, dtype=torch.float32)
        cos, sin = get_1d_rotary_pos_embed(
            self._model.head_dim, longest, theta=self._model.rope_theta, use_real=True, repeat_interleave_real=False
        )
        packed = [torch.cat([table[:count] for count in tokens])[:, None] for table in (cos, sin)]
        return packed[0], packed[1]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What every block of one forward shares."""

    lengths: Lengths
    conditions: Lengths
    rotary: tuple[Tensor, Tensor]
    row_of_token: Tensor  # (token,)
    time: Tensor  # (row, 6, width)
    attention: Attention


def _embed_time(embedder: Any, t: Tensor) -> tuple[Tensor, Tensor]:
    """Waves in fp32 whatever the weights: in bfloat16 1000 t loses all but its first three digits."""
    waves = embedder.time_sinusoid(t * embedder.scale).to(embedder.linear_1.weight.dtype)
    embedded = embedder.linear_2(embedder.act1(embedder.linear_1(waves)))
    return embedded, embedder.time_proj(embedder.act2(embedded)).unflatten(1, (6, -1))


def _spread(modulation: Tensor, row_of_token: Tensor) -> list[Tensor]:
    """(row, part, width) to one (token, width) for each part."""
    return [part[row_of_token] for part in modulation.unbind(1)]


def _through_block(block: Any, hidden: Tensor, condition: Tensor, layout: _Layout, window: int | None) -> Tensor:
    """AdaLN self-attention, cross-attention, AdaLN feed-forward."""
    modulation = _spread(block.scale_shift_table + layout.time, layout.row_of_token)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation
    normed = (block.self_attn_norm(hidden) * (1 + scale) + shift).type_as(hidden)
    hidden = (hidden + _attend_self(block.self_attn, normed, layout, window) * gate).type_as(hidden)
    normed = block.cross_attn_norm(hidden).type_as(hidden)
    hidden = hidden + _attend_condition(block.cross_attn, normed, condition, layout)
    normed = (block.mlp_norm(hidden) * (1 + mlp_scale) + mlp_shift).type_as(hidden)
    out: Tensor = (hidden + block.mlp(normed) * mlp_gate).type_as(hidden)
    return out


def _attend_self(attention: Any, hidden: Tensor, layout: _Layout, window: int | None) -> Tensor:
    query, key, value = _heads(attention, hidden, hidden)
    query, key = _rotated(query, layout.rotary), _rotated(key, layout.rotary)
    answer = layout.attention(query, key, value, (layout.lengths, layout.lengths), window)
    merged: Tensor = attention.to_out[0](answer.flatten(1))
    return merged


def _attend_condition(attention: Any, hidden: Tensor, condition: Tensor, layout: _Layout) -> Tensor:
    query, key, value = _heads(attention, hidden, condition)
    answer = layout.attention(query, key, value, (layout.lengths, layout.conditions), None)
    merged: Tensor = attention.to_out[0](answer.flatten(1))
    return merged


def _heads(attention: Any, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    query = attention.to_q(queries).unflatten(-1, (attention.heads, attention.head_dim))
    key = attention.to_k(keys).unflatten(-1, (attention.kv_heads, attention.head_dim))
    value = attention.to_v(keys).unflatten(-1, (attention.kv_heads, attention.head_dim))
    return attention.norm_q(query), attention.norm_k(key), value


def _rotated(heads: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE in Qwen3's layout: the halves of a head turn against each other."""
    cos, sin = rotary
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (heads.float() * cos + turned.float() * sin).to(heads.dtype)
