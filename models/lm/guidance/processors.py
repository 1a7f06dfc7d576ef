"""The two shapes in which vLLM 0.32 takes a logits processor, both thin over `Pairs`.

The CPU build runs model runner V1, the GPU build V2, and each refuses the other's class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as LogitsProcessorV2

from models.lm.guidance.lifetime import die_with_parent
from models.lm.guidance.pairs import Half, Pairs, RowOfHalf
from models.lm.vocabulary import Vocabulary, read_genres

GENRES = "genres"  # the key in VllmConfig.additional_config: a path, or nothing


class PairedProcessor(LogitsProcessor):
    """For model runner V1, which tells which requests came, went and moved between rows."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        die_with_parent()
        self._pairs = Pairs(load_vocabulary(vllm_config, device))
        self._rows: dict[int, tuple[Half, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, written in batch_update.added:
            half = Half.from_extra_args(params.extra_args)
            if half is None:
                self._rows.pop(row, None)
            else:
                self._rows[row] = (half, written)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction is MoveDirectionality.SWAP and replaced is not None:
                self._rows[source] = replaced
        self._pairs.keep(half.uid for half, _ in self._rows.values())

    def apply(self, logits: Tensor) -> Tensor:
        # the list of written tokens is alive; under async scheduling its values are not, so only its length is read
        rows = [RowOfHalf(row, len(written), half) for row, (half, written) in self._rows.items() if row < len(logits)]
        self._pairs.write(logits, rows)
        return logits


class PairedProcessorV2(LogitsProcessorV2):
    """For model runner V2, which keeps requests in slots and shuffles the rows every step."""

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        die_with_parent()
        self._requests = req_states
        self._pairs = Pairs(load_vocabulary(vllm_config, req_states.device))
        self._slots: dict[int, Half] = {}

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        # nobody tells when a slot's request has gone; its song is forgotten when the slot is used again
        self._slots.pop(req_idx, None)
        half = Half.from_extra_args(sampling_params.extra_args)
        if half is not None:
            self._slots[req_idx] = half
        self._pairs.keep(kept.uid for kept in self._slots.values())
        return half is not None

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        rows = []
        for row, slot in enumerate(ctx.idx_mapping_np.tolist()):
            half = self._slots.get(slot)
            if half is None:
                continue
            step = int(ctx.seq_lens_upper_bound_np[row]) - int(self._requests.prompt_len.np[slot])
            if step >= 0:  # below, only a part of the prompt was read, and what is sampled is thrown away
                rows.append(RowOfHalf(row, step, half))
        self._pairs.write(logits, rows)
        return logits


def load_vocabulary(vllm_config: VllmConfig, device: torch.device) -> Vocabulary:
    tokenizer: Any = AutoTokenizer.from_pretrained(vllm_config.model_config.tokenizer)
    additional: Any = vllm_config.additional_config
    path = additional.get(GENRES) if isinstance(additional, dict) else None
    return Vocabulary(tokenizer, read_genres(Path(path)) if path else (), device)
