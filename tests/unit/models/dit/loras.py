"""Adapters of the tiny DiT, written as PEFT writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, WIDTH, KEYS = 4, 64, 32  # of the tiny DiT: 64 wide, two key heads of 16
LAYERS = (
    "layers.0.self_attn.q_proj",
    "layers.1.cross_attn.k_proj",
    "layers.2.self_attn.o_proj",
    "layers.3.mlp.up_proj",
)
SIZES = {"k_proj": (WIDTH, KEYS), "up_proj": (WIDTH, 160)}


def halves(layer: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """The two matrices of a layer, of another song's worth of change for another seed."""
    own, into = SIZES.get(layer.rpartition(".")[2], (WIDTH, WIDTH))
    generator = torch.Generator().manual_seed(1000 * seed + LAYERS.index(layer))
    return torch.randn(RANK, own, generator=generator) * 0.2, torch.randn(into, RANK, generator=generator) * 0.2


def peft(folder: Path, name: str, seed: int = 0, **config: Any) -> None:
    tensors: dict[str, Tensor] = {}
    for layer in LAYERS:
        down, up = halves(layer, seed)
        tensors |= {f"base_model.model.{layer}.lora_A.weight": down, f"base_model.model.{layer}.lora_B.weight": up}
    (folder / name).mkdir(parents=True)
    save_file(tensors, folder / name / "adapter_model.safetensors")
    (folder / name / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": RANK, **config}))
