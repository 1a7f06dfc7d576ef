"""LoRAs: their files, what they do to a song, and how songs with and without them share an engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.batching import BatchLimits
from models.dit.adapters import AdapterCache, layer_name, read_adapter
from models.dit.engine import DitEngine
from models.dit.transformer import Row, Transformer
from models.errors import CheckpointError, InvalidRequest, UnknownAdapter
from models.music import Lora
from models.weights import DitWeights, read_dit
from tests.unit.models.dit.loras import LAYERS, RANK, halves, peft
from tests.unit.models.dit.songs import distance, edited, song, values

CPU = torch.device("cpu")
TURBO = "acestep-v15-turbo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    peft(folder, "jazz", seed=1, lora_alpha=2 * RANK)
    peft(folder, "choir", seed=2)
    return folder


@pytest.fixture(scope="module")
def weights(tiny: Path) -> DitWeights:
    return read_dit(tiny / TURBO, torch.float32)


@pytest.fixture(scope="module")
def transformer(weights: DitWeights) -> Transformer:
    return Transformer(weights, CPU, torch.float32)


@pytest.fixture(scope="module")
def engine(tiny: Path, folder: Path) -> Iterator[DitEngine]:
    engine = DitEngine(tiny, TURBO, BatchLimits(), CPU, packs_rows=True, adapters=folder)
    yield engine
    engine.close()


def row(seed: int = 0, frames: int = 20) -> Row:
    generator = torch.Generator().manual_seed(seed)
    x, context, condition = (torch.randn(size, generator=generator) for size in ((frames, 64), (frames, 128), (5, 64)))
    return Row(x, 0.6, context, condition)


def merged(weights: DitWeights, changes: Mapping[int, float]) -> Transformer:
    """A DiT with the adapters of these seeds in its weights, each times its factor."""
    tensors = {name: tensor.clone() for name, tensor in weights.transformer.items()}
    for seed, factor in changes.items():
        for layer in LAYERS:
            down, up = halves(layer, seed)
            tensors[f"{layer_name(layer)}.weight"] += factor * up @ down
    changed = DitWeights(**{name: getattr(weights, name) for name in weights.__slots__} | {"transformer": tensors})
    return Transformer(changed, CPU, torch.float32)


@torch.inference_mode()
def answer(transformer: Transformer, asked: Row) -> Tensor:
    return transformer.velocities([asked])[0]


def apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def with_adapters(asked: Row, cache: AdapterCache, *loras: Lora) -> Row:
    return Row(asked.x, asked.t, asked.context, asked.condition, cache.borrow(loras))


def test_adapters_answer_as_if_they_were_in_the_weights(
    weights: DitWeights, transformer: Transformer, folder: Path
) -> None:
    plain = answer(transformer, row())
    cache = AdapterCache(folder, transformer.model)

    one = answer(transformer, with_adapters(row(), cache, Lora(name="jazz", scale=0.5)))
    both = answer(transformer, with_adapters(row(), cache, Lora(name="jazz"), Lora(name="choir", scale=-0.7)))

    assert apart(one, answer(merged(weights, {1: 2.0 * 0.5}), row())) < 1e-5  # alpha is twice the rank
    assert apart(both, answer(merged(weights, {1: 2.0, 2: -0.7}), row())) < 1e-5
    assert apart(one, plain) > 1e-3
    assert torch.equal(answer(transformer, row()), plain)


@torch.inference_mode()
def test_rows_with_other_adapters_and_none_are_each_themselves(transformer: Transformer, folder: Path) -> None:
    cache = AdapterCache(folder, transformer.model)
    jazz, choir = Lora(name="jazz"), Lora(name="choir")
    blends: list[tuple[Lora, ...]] = [(), (jazz,), (choir,), (jazz,), (choir, jazz), (jazz, choir)]
    rows = [with_adapters(row(seed), cache, *blend) for seed, blend in enumerate(blends)]

    together = transformer.velocities(rows)

    assert rows[1].adapters == rows[3].adapters
    assert rows[4].adapters == rows[5].adapters
    for asked, seen in zip(rows, together, strict=True):
        assert apart(seen, answer(transformer, asked)) < 1e-5


@pytest.mark.parametrize(
    ("rename", "alphas", "metadata"),
    [
        (lambda layer, half: f"transformer.{layer_name(layer)}.lora_{half}.weight", {}, {"transformer.lora_alpha": 8}),
        (lambda layer, half: f"base_model.model.{layer}.lora_{half}.default.weight", {}, {"lora_alpha": 8}),
        (lambda layer, half: f"decoder.{layer}.lora_{half}.weight", {"decoder.": 8.0}, {}),
        (
            lambda layer, half: f"diffusion_model.{layer}.lora_{'down' if half == 'A' else 'up'}.weight",
            {"diffusion_model.": 8.0},
            {"lora_alpha": 1},
        ),
    ],
)
def test_one_adapter_in_every_format_is_the_same(
    tmp_path: Path, rename: Any, alphas: dict[str, float], metadata: dict[str, Any]
) -> None:
    tensors = {rename(layer, half): halves(layer)["AB".index(half)] for layer in LAYERS for half in "AB"}
    for prefix, alpha in alphas.items():
        tensors |= {f"{prefix}{layer}.alpha": torch.tensor(alpha) for layer in LAYERS}
    save_file(
        tensors, tmp_path / "one.safetensors", {"lora_adapter_metadata": json.dumps(metadata)} if metadata else {}
    )
    peft(tmp_path, "other", lora_alpha=8)

    seen, wanted = (
        read_adapter(tmp_path / "one.safetensors"),
        read_adapter(tmp_path / "other/adapter_model.safetensors"),
    )

    assert seen.keys() == wanted.keys() == {layer_name(layer) for layer in LAYERS}
    for layer, pair in seen.items():
        assert torch.equal(pair.down, wanted[layer].down)
        assert torch.equal(pair.up, wanted[layer].up)


def strengths(folder: Path, **config: Any) -> list[float]:
    """What the second matrices of the layers were multiplied by."""
    peft(folder, "one", **config)
    pairs = read_adapter(folder / "one" / "adapter_model.safetensors")
    return [float(pairs[layer_name(layer)].up[0, 0] / halves(layer)[1][0, 0]) for layer in LAYERS]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"lora_alpha": 4}, [1, 1, 1, 1]),
        ({"lora_alpha": 6}, [1.5, 1.5, 1.5, 1.5]),
        ({"lora_alpha": 6, "use_rslora": True}, [3, 3, 3, 3]),
        ({"lora_alpha": 4, "alpha_pattern": {"self_attn.o_proj": 8, "mlp.up": 2}}, [1, 1, 2, 1]),
    ],
)
def test_alpha_is_honoured(tmp_path: Path, config: dict[str, Any], wanted: list[float]) -> None:
    assert strengths(tmp_path, **config) == pytest.approx(wanted)


def test_without_an_alpha_it_is_the_rank(tmp_path: Path) -> None:
    peft(tmp_path, "one")
    (tmp_path / "one" / "adapter_config.json").unlink()
    pairs = read_adapter(tmp_path / "one" / "adapter_model.safetensors")
    assert torch.equal(pairs[layer_name(LAYERS[0])].up, halves(LAYERS[0])[1])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "holds no LoRA"),
        ({"layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}, "no pair of matrices"),
        ({"layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(4)}, "no part of a LoRA"),
        ({"layers.0.self_attn.q_proj.lokr_w1": torch.ones(4, 4)}, "no part of a LoRA"),
    ],
)
def test_a_file_that_is_no_lora_is_refused(tmp_path: Path, tensors: dict[str, Tensor], said: str) -> None:
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=said):
        read_adapter(tmp_path / "one.safetensors")


def test_a_file_that_is_broken_or_a_dora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter(tmp_path / "broken.safetensors")
    peft(tmp_path, "dora", use_dora=True)
    with pytest.raises(CheckpointError, match="DoRA"):
        read_adapter(tmp_path / "dora" / "adapter_model.safetensors")


def test_an_adapter_of_another_model_is_refused_by_layer(tmp_path: Path) -> None:
    peft(tmp_path, "jazz")
    narrow, other = nn.ModuleDict({"layers": nn.Linear(1, 1)}), nn.Module()
    other.layers = nn.ModuleList([nn.ModuleDict({"self_attn": nn.ModuleDict({"to_q": nn.Linear(8, 8)})})])
    with pytest.raises(InvalidRequest, match=r"has no layer layers\.0"):
        AdapterCache(tmp_path, narrow).borrow([Lora(name="jazz")])
    with pytest.raises(InvalidRequest, match="64 to 64 in it and 8 to 8 here"):
        AdapterCache(tmp_path, other).borrow([Lora(name="jazz")])


def test_an_adapter_that_is_not_there_is_refused_with_those_that_are(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "adapter_model.bin").write_bytes(b"")
    for place, known in ((folder, "choir, jazz"), (tmp_path, "none"), (tmp_path / "absent", "none"), (None, "none")):
        with pytest.raises(UnknownAdapter, match=f"'pickled'; known are {known}"):
            AdapterCache(place, nn.Module()).borrow([Lora(name="pickled")])


def test_adapters_in_use_are_kept_and_of_the_others_the_last_used(transformer: Transformer, tmp_path: Path) -> None:
    for number in range(4):
        peft(tmp_path, f"a{number}", seed=number)
    cache = AdapterCache(tmp_path, transformer.model, idle=1)
    used = cache.borrow([Lora(name="a0")])
    blends = [cache.borrow([Lora(name=f"a{number}")]) for number in (1, 2, 3)]
    for blend in blends:
        cache.give_back(blend)
    assert cache.held() == ("a0", "a3")

    again = cache.borrow([Lora(name="a0")])
    cache.give_back(used)
    assert again == used
    assert cache.held() == ("a3", "a0")
    cache.give_back(again)
    assert cache.held() == ("a0",)


async def test_songs_with_adapters_share_an_engine_and_stay_themselves(engine: DitEngine) -> None:
    jazz, choir = Lora(name="jazz", scale=0.8), Lora(name="choir")
    songs = [
        edited("cover", seed=7),
        edited("cover", seed=7, loras=(jazz,)),
        edited("cover", seed=7, loras=(choir,), inference_steps=5),
        edited("repaint", seed=3, loras=(jazz,)),
        edited("cover", seed=7, loras=(choir, jazz)),
    ]
    alone = [await values(engine, asked) for asked in songs]

    together = await asyncio.gather(*(values(engine, asked) for asked in songs))

    assert max(distance(one, other) for one, other in zip(together, alone, strict=True)) <= 1e-5
    assert min(distance(one, other) for one in alone for other in alone if one is not other) > 1e-3


async def test_an_unknown_adapter_fails_its_song_only(engine: DitEngine) -> None:
    good, bad = await asyncio.gather(
        values(engine, song(loras=(Lora(name="jazz"),), inference_steps=1)),
        values(engine, song(loras=(Lora(name="rock"),))),
        return_exceptions=True,
    )

    assert not isinstance(good, BaseException)
    assert isinstance(bad, UnknownAdapter)


async def test_a_song_cancelled_while_its_adapter_is_read_gives_it_back(tiny: Path, folder: Path) -> None:
    engine = DitEngine(tiny, TURBO, BatchLimits(), CPU, adapters=folder)
    doomed = asyncio.create_task(values(engine, song(loras=(Lora(name="jazz"),))))
    await asyncio.sleep(0)

    doomed.cancel()

    with pytest.raises(asyncio.CancelledError):
        await doomed
    assert (await values(engine, song(loras=(Lora(name="jazz"),), inference_steps=1))).shape == (250, 64)
    engine.close()
