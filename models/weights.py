"""Reads checkpoints from disk, strictly: a tensor missing, left over or of another shape is an error that names it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3Model

from models.errors import CheckpointError

NAMED_AT_MOST = 8
TIMBRE_FRAMES = 750  # thirty seconds of reference audio

# original name, diffusers name; within an attention only
_ATTENTION_NAMES = (
    (".q_proj.", ".to_q."),
    (".k_proj.", ".to_k."),
    (".v_proj.", ".to_v."),
    (".o_proj.", ".to_out.0."),
    (".q_norm.", ".norm_q."),
    (".k_norm.", ".norm_k."),
)
_PATCH_NAMES = (("proj_in.1.", "proj_in_conv."), ("proj_out.1.", "proj_out_conv."))
_PARTS = {
    "decoder": "transformer",
    "encoder": "condition_encoder",
    "tokenizer": "audio_tokenizer",
    "detokenizer": "audio_detokenizer",
}
_DIFFUSERS_FOLDERS = {
    "transformer": "transformer",
    "condition_encoder": "condition_encoder",
    "audio_tokenizer": "audio_tokenizer",
    "audio_detokenizer": "audio_token_detokenizer",
}


@dataclass(frozen=True, slots=True)
class DitConfig:
    """Constructor arguments of the four diffusers modules, and what is needed around them."""

    transformer: Mapping[str, Any]
    condition_encoder: Mapping[str, Any]
    audio_tokenizer: Mapping[str, Any]
    audio_detokenizer: Mapping[str, Any]
    is_turbo: bool
    timbre_frames: int  # of reference audio, as the timbre encoder takes it
    has_timbre_token: bool  # XL: a token of its own is prepended to the reference


@dataclass(frozen=True, slots=True)
class DitWeights:
    """A DiT checkpoint on the CPU; tensors of each part under the names of diffusers' module."""

    config: DitConfig
    transformer: dict[str, Tensor]
    condition_encoder: dict[str, Tensor]
    audio_tokenizer: dict[str, Tensor]
    audio_detokenizer: dict[str, Tensor]
    null_condition: Tensor  # (1, 1, width)
    silence: Tensor  # (frame, channel)


@dataclass(frozen=True, slots=True)
class VaeWeights:
    config: Mapping[str, Any]
    tensors: dict[str, Tensor]


def read_dit(folder: Path, dtype: torch.dtype) -> DitWeights:
    """A DiT folder in ACE-Step's own or in diffusers' layout. Raises CheckpointError."""
    if (folder / "model_index.json").is_file():
        return _read_diffusers(folder, dtype)
    return _read_original(folder, dtype)


def read_vae(folder: Path) -> VaeWeights:
    """Tensors stay as stored (fp32 in the published one)."""
    config = _read_json(folder / "config.json")
    return VaeWeights(_without_private(config), read_tensors(folder, "diffusion_pytorch_model", None))


def read_text_encoder(folder: Path, dtype: torch.dtype) -> tuple[Any, nn.Module]:
    """The Qwen3 tokenizer and model that turn prompts into hidden states, through transformers."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, info = Qwen3Model.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"text encoder {folder}: {error}") from error
    faults = [*_listed("missing", info["missing_keys"]), *_listed("unexpected", info["unexpected_keys"])]
    if faults:
        raise CheckpointError(f"text encoder {folder}: {'; '.join(faults)}")
    return tokenizer, model.eval()


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Loads a whole state; anything missing, unexpected or of another shape is a CheckpointError that names it."""
    wanted = module.state_dict()
    faults = [
        *_listed("missing", wanted.keys() - tensors.keys()),
        *_listed("unexpected", tensors.keys() - wanted.keys()),
        *_listed(
            "of another shape",
            (
                f"{name} {tuple(tensor.shape)} instead of {tuple(wanted[name].shape)}"
                for name, tensor in tensors.items()
                if name in wanted and tensor.shape != wanted[name].shape
            ),
        ),
    ]
    if faults:
        raise CheckpointError(f"{what}: {'; '.join(faults)}")
    module.load_state_dict(tensors, strict=True, assign=True)


def read_tensors(folder: Path, stem: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """One safetensors file, or the shards that its index lists; cloned, since a mapped tensor may be badly aligned."""
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shard_of: dict[str, str] = _read_json(index)["weight_map"]
        tensors: dict[str, Tensor] = {}
        for shard in sorted(set(shard_of.values())):
            tensors |= _read_shard(folder / shard, dtype)
        faults = [
            *_listed("missing", shard_of.keys() - tensors.keys()),
            *_listed("unexpected", tensors.keys() - shard_of.keys()),
        ]
        if faults:
            raise CheckpointError(f"shards of {index}: {'; '.join(faults)}")
        return tensors
    return _read_shard(folder / f"{stem}.safetensors", dtype)


def _read_shard(path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError(f"no weights: {path} does not exist")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    return {name: _cast(tensor, dtype) for name, tensor in stored.items()}


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.clone() if dtype is None or not tensor.is_floating_point() else tensor.to(dtype, copy=True)


def _read_original(folder: Path, dtype: torch.dtype) -> DitWeights:
    config = dit_config(_read_json(folder / "config.json"))
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in _PARTS.values()}
    null_condition = None
    for name, tensor in read_tensors(folder, "model", dtype).items():
        prefix, _, rest = name.partition(".")
        if name == "null_condition_emb":
            null_condition = tensor
        elif prefix in _PARTS:
            parts[_PARTS[prefix]][diffusers_name(_PARTS[prefix], rest)] = tensor
        else:
            raise CheckpointError(
                f"{folder}: unexpected {name}; names start with {', '.join(_PARTS)} or null_condition_emb"
            )
    if null_condition is None:
        raise CheckpointError(f"{folder}: missing null_condition_emb")
    silence = _read_silence(folder / "silence_latent.pt").to(dtype)
    return DitWeights(config, **parts, null_condition=null_condition, silence=silence)


def _read_diffusers(folder: Path, dtype: torch.dtype) -> DitWeights:
    configs = {part: _read_json(folder / place / "config.json") for part, place in _DIFFUSERS_FOLDERS.items()}
    parts = {
        part: read_tensors(folder / place, "diffusion_pytorch_model", dtype)
        for part, place in _DIFFUSERS_FOLDERS.items()
    }
    condition = parts["condition_encoder"]
    try:
        null_condition, silence = condition.pop("null_condition_emb"), condition.pop("silence_latent")
    except KeyError as error:
        raise CheckpointError(f"{folder / 'condition_encoder'}: missing {error.args[0]}") from error
    transformer = configs["transformer"]
    config = DitConfig(
        **{part: _without_private(config) for part, config in configs.items()},
        is_turbo=bool(transformer.get("is_turbo", False)),
        timbre_frames=int(configs["condition_encoder"].get("timbre_fix_frame", TIMBRE_FRAMES)),
        has_timbre_token=_is_xl(transformer),
    )
    return DitWeights(config, **parts, null_condition=null_condition, silence=silence[0])


def dit_config(raw: Mapping[str, Any]) -> DitConfig:
    """The encoder side of XL checkpoints has widths of its own, named `encoder_*`; elsewhere they are the DiT's."""
    shared = {key: raw[key] for key in ("head_dim", "rope_theta", "attention_bias", "rms_norm_eps", "sliding_window")}
    widths = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    side = shared | {key: raw.get(f"encoder_{key}", raw[key]) for key in widths}
    pooler = side | {
        "audio_acoustic_hidden_dim": raw["audio_acoustic_hidden_dim"],
        "pool_window_size": raw["pool_window_size"],
        "num_attention_pooler_hidden_layers": raw["num_attention_pooler_hidden_layers"],
    }
    transformer = (
        shared
        | {key: raw[key] for key in widths}
        | {
            "num_hidden_layers": raw["num_hidden_layers"],
            "in_channels": raw["in_channels"],
            "audio_acoustic_hidden_dim": raw["audio_acoustic_hidden_dim"],
            "patch_size": raw["patch_size"],
            "layer_types": list(raw["layer_types"]),
            "encoder_hidden_size": side["hidden_size"],
            "is_turbo": bool(raw.get("is_turbo", False)),
        }
    )
    return DitConfig(
        transformer=transformer,
        condition_encoder=side
        | {
            "text_hidden_dim": raw["text_hidden_dim"],
            "timbre_hidden_dim": raw["timbre_hidden_dim"],
            "num_lyric_encoder_hidden_layers": raw["num_lyric_encoder_hidden_layers"],
            "num_timbre_encoder_hidden_layers": raw["num_timbre_encoder_hidden_layers"],
        },
        audio_tokenizer=pooler
        | {
            "fsq_dim": raw["fsq_dim"],
            "fsq_input_levels": list(raw["fsq_input_levels"]),
            "fsq_input_num_quantizers": raw["fsq_input_num_quantizers"],
        },
        audio_detokenizer=pooler,
        is_turbo=transformer["is_turbo"],
        timbre_frames=int(raw["timbre_fix_frame"]),
        has_timbre_token=_is_xl(transformer),
    )


def _is_xl(transformer: Mapping[str, Any]) -> bool:
    """XL checkpoints are those whose DiT is wider than their encoders."""
    encoder = transformer.get("encoder_hidden_size")
    return encoder is not None and encoder != transformer["hidden_size"]


def diffusers_name(part: str, name: str) -> str:
    """A tensor's name in diffusers' module, from its name below the part's prefix in the original layout."""
    for original, diffusers in _renames(part, name):
        name = name.replace(original, diffusers)
    return name


def original_name(part: str, name: str) -> str:
    """The inverse of `diffusers_name`, prefix included."""
    if name == "null_condition_emb":
        return name
    for original, diffusers in _renames(part, name):
        name = name.replace(diffusers, original)
    return f"{next(prefix for prefix, of in _PARTS.items() if of == part)}.{name}"


def _renames(part: str, name: str) -> tuple[tuple[str, str], ...]:
    if part == "transformer" and name.startswith("proj_"):
        return _PATCH_NAMES
    return _ATTENTION_NAMES if "attn." in name else ()


def _read_silence(path: Path) -> Tensor:
    """(1, channel, frame) on disk, (frame, channel) here."""
    if not path.is_file():
        raise CheckpointError(f"no silence latent: {path} does not exist")
    silence: Tensor = torch.load(path, map_location="cpu", weights_only=True)
    return silence[0].T.clone()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from error
    return content


def _without_private(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def _listed(fault: str, names: Iterable[str]) -> list[str]:
    ordered = sorted(names)
    if not ordered:
        return []
    rest = f" and {len(ordered) - NAMED_AT_MOST} more" if len(ordered) > NAMED_AT_MOST else ""
    return [f"{fault} {', '.join(ordered[:NAMED_AT_MOST])}{rest}"]
