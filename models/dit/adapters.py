"""Low-rank adapters (LoRA, arXiv 2106.09685) of the DiT: read from a folder, shared by songs, added to its layers.

A layer's answer W x becomes W x + scale * alpha / rank * B A x; the weights themselves stay as they are, so that songs
with other adapters, or none, follow in the next forward.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoints import adapter_named
from models.errors import CheckpointError, InvalidRequest
from models.music import Lora
from models.weights import diffusers_name

IDLE_ADAPTERS = 8
METADATA = "lora_adapter_metadata"  # where diffusers keeps what PEFT writes to adapter_config.json
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "decoder.")
WEIGHT = re.compile(r"(?P<layer>.+)\.lora_(?P<part>A|B|down|up)(\.[^.]+)?\.weight")
ALPHA = re.compile(r"(?P<layer>.+)\.alpha")


@dataclass(frozen=True, slots=True)
class Pair:
    """The two halves of one layer's addition, with alpha / rank in the second."""

    down: Tensor  # (rank, in)
    up: Tensor  # (out, rank)


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    name: str
    pairs: Mapping[str, Pair]  # by the layer's name in diffusers' transformer


@dataclass(frozen=True, slots=True)
class Blend:
    """The adapters of a song, each at its strength. Songs with equal blends share a forward."""

    parts: tuple[tuple[Adapter, float], ...] = ()

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """The model answers with this blend while the context lasts."""
        layers = [
            (model.get_submodule(name), pair, scale)
            for adapter, scale in self.parts
            for name, pair in adapter.pairs.items()
        ]
        hooks = [layer.register_forward_hook(_addition(pair, scale)) for layer, pair, scale in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


NO_ADAPTERS = Blend()


def _addition(pair: Pair, scale: float) -> Any:
    def add(layer: nn.Module, given: tuple[Tensor], answer: Tensor) -> Tensor:
        return answer + scale * functional.linear(functional.linear(given[0], pair.down), pair.up)

    return add


class AdapterCache:
    """Adapters on the device, read when the first song asks for them. One that no song uses is kept until it is the
    longest unused of too many. May be called from any thread; reading blocks."""

    def __init__(self, folder: Path | None, model: nn.Module, idle: int = IDLE_ADAPTERS) -> None:
        self._folder = folder
        self._layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        self._idle = idle
        self._held: OrderedDict[str, Adapter] = OrderedDict()  # the longest unused first
        self._users: dict[str, int] = {}
        self._reading = threading.Lock()  # one at a time, so that none is read twice; may be held for seconds
        self._counting = threading.Lock()  # the books; never held for long, so that an event loop may wait for it

    def borrow(self, loras: Sequence[Lora]) -> Blend:
        """To be given back. Raises UnknownAdapter, InvalidRequest for one of another model, CheckpointError."""
        with self._reading:
            adapters = [self._held.get(lora.name) or self._read(lora.name) for lora in loras]
            with self._counting:
                for adapter in adapters:
                    self._held[adapter.name] = adapter
                    self._held.move_to_end(adapter.name)
                    self._users[adapter.name] = self._users.get(adapter.name, 0) + 1
        named = zip(adapters, (lora.scale for lora in loras), strict=True)
        return Blend(tuple(sorted(named, key=lambda part: part[0].name)))

    def give_back(self, blend: Blend) -> None:
        with self._counting:
            for adapter, _ in blend.parts:
                self._users[adapter.name] -= 1
            unused = [name for name in self._held if not self._users[name]]
            for name in unused[: max(0, len(unused) - self._idle)]:
                del self._held[name], self._users[name]

    def held(self) -> tuple[str, ...]:
        with self._counting:
            return tuple(self._held)

    def _read(self, name: str) -> Adapter:
        pairs = {}
        for layer, pair in read_adapter(adapter_named(name, self._folder)).items():
            own = self._layers.get(layer)
            if own is None or (pair.down.shape[1], pair.up.shape[0]) != (own.in_features, own.out_features):
                raise InvalidRequest(f"adapter {name!r} is of another model: {_misfit(layer, pair, own)}")
            pairs[layer] = Pair(pair.down.to(own.weight), pair.up.to(own.weight))
        return Adapter(name, pairs)


def _misfit(layer: str, pair: Pair, own: nn.Linear | None) -> str:
    if own is None:
        return f"this one has no layer {layer}"
    seen, wanted = (pair.down.shape[1], pair.up.shape[0]), (own.in_features, own.out_features)
    return f"{layer} is {seen[0]} to {seen[1]} in it and {wanted[0]} to {wanted[1]} here"


def read_adapter(path: Path) -> dict[str, Pair]:
    """The pairs of a safetensors file by layer: PEFT's, diffusers' and kohya's names. Raises CheckpointError.

    alpha is what the file, or the adapter_config.json beside it, says; where nobody says, alpha is the rank.
    """
    tensors, settings = _read(path)
    halves: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        if weight := WEIGHT.fullmatch(name):
            part = "down" if weight["part"] in ("A", "down") else "up"
            halves.setdefault(weight["layer"], {})[part] = tensor
        elif alpha := ALPHA.fullmatch(name):
            alphas[alpha["layer"]] = float(tensor)
        else:
            raise CheckpointError(f"adapter {path}: {name} is no part of a LoRA; DoRA, LoKr and biases are not read")
    if not halves:
        raise CheckpointError(f"adapter {path} holds no LoRA")
    return {layer_name(layer): _pair(path, layer, half, settings, alphas) for layer, half in halves.items()}


def layer_name(name: str) -> str:
    """A layer's name in diffusers' transformer."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return diffusers_name("transformer", f"{name}.").removesuffix(".")


def _pair(
    path: Path, layer: str, half: Mapping[str, Tensor], settings: Mapping[str, Any], alphas: Mapping[str, float]
) -> Pair:
    down, up = half.get("down"), half.get("up")
    if down is None or up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        shapes = {part: tuple(tensor.shape) for part, tensor in half.items()}
        raise CheckpointError(f"adapter {path}: {layer} is no pair of matrices of one rank: {shapes}")
    rank = down.shape[0]
    alpha = alphas.get(layer, _of_layer(settings.get("alpha_pattern") or {}, layer, settings.get("lora_alpha", rank)))
    divisor = rank**0.5 if settings.get("use_rslora") else rank
    return Pair(down.float(), up.float() * (float(alpha) / divisor))


def _of_layer(patterns: Mapping[str, float], layer: str, default: float) -> float:
    """PEFT's rule: a pattern is a regular expression for the end of a layer's name."""
    return next((value for end, value in patterns.items() if re.fullmatch(rf"(.*\.)?({end})", layer)), default)


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            stored: Mapping[str, str] = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"adapter {path} cannot be read: {error}") from error
    config = path.parent / "adapter_config.json"
    try:
        if path.name == "adapter_model.safetensors" and config.is_file():
            settings: Mapping[str, Any] = json.loads(config.read_text())
        else:
            settings = {
                name.removeprefix("transformer."): value
                for name, value in json.loads(stored.get(METADATA, "{}")).items()
            }
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the settings of adapter {path} cannot be read: {error}") from error
    if settings.get("use_dora"):
        raise CheckpointError(f"adapter {path} is a DoRA, which is not read; a plain LoRA is")
    return tensors, settings
