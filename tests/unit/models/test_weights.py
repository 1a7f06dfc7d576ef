import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.errors import CheckpointError
from models.weights import DitWeights, load_strictly, original_name, read_dit, read_text_encoder, read_vae

PARTS = ("transformer", "condition_encoder", "audio_tokenizer", "audio_detokenizer")


@pytest.fixture
def turbo(tiny: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    folder = tmp_path / "acestep-v15-turbo"
    shutil.copytree(tiny / "acestep-v15-turbo", folder)
    return folder


def assert_equal(one: DitWeights, other: DitWeights) -> None:
    for part in PARTS:
        seen, wanted = getattr(one, part), getattr(other, part)
        assert seen.keys() == wanted.keys()
        assert all(torch.equal(seen[name], wanted[name]) for name in wanted)
    assert torch.equal(one.silence, other.silence)
    assert torch.equal(one.null_condition, other.null_condition)


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_tensors_come_in_the_precision_asked_for(turbo: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        weights = read_dit(turbo, dtype)
        assert {tensor.dtype for part in PARTS for tensor in getattr(weights, part).values()} == {dtype}


def test_shards_are_read_like_one_file(turbo: Path) -> None:
    whole = read_dit(turbo, torch.float32)
    tensors = load_file(turbo / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, turbo / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (turbo / "model.safetensors.index.json").write_text(json.dumps(index))
    (turbo / "model.safetensors").unlink()
    assert_equal(read_dit(turbo, torch.float32), whole)


def test_a_shard_without_what_its_index_promises_is_named(turbo: Path) -> None:
    tensors = load_file(turbo / "model.safetensors")
    index = {"weight_map": dict.fromkeys([*tensors, "decoder.more"], "model.safetensors")}
    (turbo / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"missing decoder\.more"):
        read_dit(turbo, torch.float32)


def test_diffusers_layout_is_read_like_the_original(turbo: Path, tmp_path: Path) -> None:
    original = read_dit(turbo, torch.float32)
    folder = tmp_path / "diffusers"
    places = dict(
        zip(PARTS, ("transformer", "condition_encoder", "audio_tokenizer", "audio_token_detokenizer"), strict=True)
    )
    for part, place in places.items():
        (folder / place).mkdir(parents=True)
        tensors = dict(getattr(original, part))
        if part == "condition_encoder":
            tensors |= {
                "null_condition_emb": original.null_condition,
                "silence_latent": original.silence[None].contiguous(),
            }
        save_file(tensors, folder / place / "diffusion_pytorch_model.safetensors")
        config = {"_class_name": place, **getattr(original.config, part)}
        (folder / place / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text("{}")
    seen = read_dit(folder, torch.float32)
    assert_equal(seen, original)
    assert seen.config == original.config


def test_a_name_goes_to_diffusers_and_back(turbo: Path) -> None:
    weights = read_dit(turbo, torch.float32)
    names = {original_name(part, name) for part in PARTS for name in getattr(weights, part)}
    assert names | {"null_condition_emb"} == load_file(turbo / "model.safetensors").keys()


def test_a_tensor_from_nowhere_is_named(turbo: Path) -> None:
    rewrite(turbo, lambda tensors: tensors.update({"head.weight": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match=r"unexpected head\.weight"):
        read_dit(turbo, torch.float32)


def test_a_missing_null_condition_is_named(turbo: Path) -> None:
    rewrite(turbo, lambda tensors: tensors.pop("null_condition_emb"))
    with pytest.raises(CheckpointError, match="missing null_condition_emb"):
        read_dit(turbo, torch.float32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "silence_latent.pt"])
def test_a_missing_file_is_named(turbo: Path, name: str) -> None:
    (turbo / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_dit(turbo, torch.float32)


def test_a_file_cut_short_is_named(turbo: Path) -> None:
    path = turbo / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole"):
        read_dit(turbo, torch.float32)


def test_every_fault_of_a_state_is_named_at_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    state = {
        "0.weight": torch.zeros(2, 2),
        "0.bias": torch.zeros(3),
        "1.weight": torch.zeros(2, 2),
        "x": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, state, "DiT")
    assert str(caught.value) == "DiT: missing 1.bias; unexpected x; of another shape 0.bias (3,) instead of (2,)"


def test_an_xl_checkpoint_is_known_by_its_width(tiny: Path) -> None:
    xl = read_dit(tiny / "acestep-v15-xl-turbo", torch.float32).config
    assert xl.has_timbre_token
    assert xl.transformer["hidden_size"] != xl.condition_encoder["hidden_size"]
    assert not read_dit(tiny / "acestep-v15-turbo", torch.float32).config.has_timbre_token


def test_the_vae_is_read_with_its_config(tiny: Path) -> None:
    weights = read_vae(tiny / "vae")
    assert weights.config["sampling_rate"] == 48_000
    assert "decoder.conv1.weight_g" in weights.tensors


def test_a_text_encoder_without_a_tensor_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny / "Qwen3-Embedding-0.6B", folder)
    rewrite(folder, lambda tensors: tensors.pop("norm.weight"))
    with pytest.raises(CheckpointError, match=r"missing norm\.weight"):
        read_text_encoder(folder, torch.float32)
