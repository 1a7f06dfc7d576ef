"""Reads what the reference computed: see tests/golden, made from its code at 6c1b2ef on tiny random weights in fp32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

DIT = Path(__file__).resolve().parents[1] / "golden" / "dit"
CASES = DIT / "cases"


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    checkpoint: Path
    parameters: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    tolerance: dict[str, float]

    def check(self, key: str, seen: Tensor) -> None:
        """Both limits of the case: relative L2 and, where it gives one, the largest absolute difference."""
        wanted = self.expected[key]
        assert seen.shape == wanted.shape, f"{self.name} {key}: {tuple(seen.shape)} instead of {tuple(wanted.shape)}"
        error = float((wanted - seen).norm() / wanted.norm())
        assert error <= self.tolerance["relative_l2"], f"{self.name} {key}: relative L2 {error:.2e}"
        if key != "layer_outputs":  # up to 90: judged by relative L2 alone
            largest = float((wanted - seen).abs().max())
            assert largest <= self.tolerance["max_abs"], f"{self.name} {key}: largest difference {largest:.2e}"


def read_case(name: str) -> Case:
    described = json.loads((CASES / f"{name}.json").read_text())
    tensors = load_file(CASES / f"{name}.safetensors")
    inputs = {key[3:]: tensor.clone() for key, tensor in tensors.items() if key.startswith("in.")}
    checkpoint = DIT / (described.get("checkpoint") or "")
    for key, told in described["inputs"].items():
        parts = [_elsewhere(part, checkpoint) for part in told.get("stored_elsewhere", [])]
        if parts:
            inputs[key] = torch.cat(parts)
    return Case(
        name=name,
        checkpoint=checkpoint,
        parameters=described.get("parameters", {}),
        inputs=inputs,
        expected={key[4:]: tensor.clone() for key, tensor in tensors.items() if key.startswith("out.")},
        tolerance=described["tolerance"],
    )


def names(*prefixes: str) -> list[str]:
    """Cases whose names start with one of these."""
    found = sorted(path.stem for path in CASES.glob("*.safetensors") if path.stem.startswith(prefixes))
    assert found
    return found


def _elsewhere(part: dict[str, Any], checkpoint: Path) -> Tensor:
    if "silence_frames" in part:
        first, last = part["silence_frames"]
        silence: Tensor = torch.load(checkpoint / "silence_latent.pt", weights_only=True)
        return silence.transpose(1, 2)[:, first:last].float()
    tensor = load_file(CASES / part["file"])[part["key"]]
    return tensor[..., slice(*part["last_axis_slice"])] if "last_axis_slice" in part else tensor
