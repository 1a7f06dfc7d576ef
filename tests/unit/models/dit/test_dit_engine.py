import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.batching import BatchLimits
from models.dit.engine import DitEngine
from models.dit.stepping import Stepper
from models.errors import BadLatents, EngineError, OutOfMemory, TooLong
from models.music import Latents, Metas, MusicRequest, Song, SongPlan

CPU = torch.device("cpu")
LIMITS = BatchLimits(songs=8, cost=24_000)


def song(seed: int = 1, seconds: float = 10.0, model: str = "acestep-v15-turbo", **fields: Any) -> Song:
    words = {"caption": fields.pop("caption", "jazz"), "lyrics": "la la", "codes": fields.pop("codes", ())}
    request = MusicRequest.model_validate({"model": model, "seeds": (seed,), **fields})
    return Song(request, 0, SongPlan(language="en", metas=Metas(duration=seconds), **words))


@pytest.fixture(scope="module")
def turbo(tiny: Path) -> Iterator[DitEngine]:
    engine = DitEngine(tiny, "acestep-v15-turbo", LIMITS, CPU)
    yield engine
    engine.close()


def assert_alike(one: Latents, other: Latents, relative: float) -> None:
    assert np.linalg.norm(one.values - other.values) <= relative * np.linalg.norm(other.values)


async def test_a_song_has_the_length_of_its_plan(turbo: DitEngine) -> None:
    assert (await turbo.denoise(song(seconds=12.3))).values.shape == (307, 64)


async def test_a_seed_is_one_song_to_the_last_bit(turbo: DitEngine) -> None:
    first, again, other = [await turbo.denoise(song(seed)) for seed in (5, 5, 6)]
    assert np.array_equal(first.values, again.values)
    assert not np.allclose(first.values, other.values, atol=0.1)


@pytest.mark.parametrize("changed", [{"caption": "rock"}, {"codes": (7,) * 50}, {"instruction": "Be loud:"}], ids=str)
async def test_what_is_asked_for_is_heard(turbo: DitEngine, changed: dict[str, Any]) -> None:
    plain, other = await turbo.denoise(song()), await turbo.denoise(song(**changed))
    assert np.abs(plain.values - other.values).max() > 1e-3


MIX: list[dict[str, Any]] = [
    {"seed": 1, "seconds": 10.0},
    {"seed": 2, "seconds": 23.5, "codes": (3,) * 100},
    {"seed": 3, "seconds": 14.0, "inference_steps": 3},
    {"seed": 4, "seconds": 10.1, "infer_method": "sde"},
    {"seed": 5, "seconds": 17.0, "timesteps": (0.9, 0.5, 0.2)},
    {"seed": 6, "seconds": 31.0, "shift": 1.0},
    {"seed": 7, "seconds": 12.0, "inference_steps": 12},
    {"seed": 8, "seconds": 10.0, "caption": "a choir"},
]


@pytest.mark.parametrize("packs_rows", [False, True])
async def test_a_song_is_the_same_alone_and_beside_seven_others(tiny: Path, packs_rows: bool) -> None:
    engine = DitEngine(tiny, "acestep-v15-turbo", LIMITS, CPU, packs_rows)
    alone = [await engine.denoise(song(**fields)) for fields in MIX]
    together = await asyncio.gather(*(engine.denoise(song(**fields)) for fields in MIX))
    for one, other in zip(together, alone, strict=True):
        assert_alike(one, other, 1e-5 if packs_rows else 0.0)
    engine.close()


@pytest.mark.parametrize("packs_rows", [False, True])
async def test_guided_and_unguided_songs_share_a_batch(tiny: Path, packs_rows: bool) -> None:
    mix: list[dict[str, Any]] = [
        {"seed": 1, "inference_steps": 5},
        {"seed": 2, "inference_steps": 7, "guidance_scale": 3.0, "cfg_interval_start": 0.3, "cfg_interval_end": 0.8},
        {"seed": 3, "inference_steps": 4, "guidance_scale": 1.0, "seconds": 15.0},
        {"seed": 4, "inference_steps": 6, "use_adg": True},
    ]
    engine = DitEngine(tiny, "acestep-v15-base", LIMITS, CPU, packs_rows)
    base = [song(model="acestep-v15-base", **fields) for fields in mix]
    alone = [await engine.denoise(one) for one in base]
    for one, other in zip(await asyncio.gather(*map(engine.denoise, base)), alone, strict=True):
        assert_alike(one, other, 1e-5 if packs_rows else 0.0)
    engine.close()


async def test_an_xl_checkpoint_makes_a_song(tiny: Path) -> None:
    engine = DitEngine(tiny, "acestep-v15-xl-turbo", LIMITS, CPU)
    assert np.isfinite((await engine.denoise(song(model="acestep-v15-xl-turbo"))).values).all()
    engine.close()


async def test_every_step_is_reported_in_order(turbo: DitEngine) -> None:
    seen: list[tuple[int, int]] = []
    await turbo.denoise(song(inference_steps=6), lambda done, planned: seen.append((done, planned)))
    await asyncio.sleep(0)  # the last report is on its way when the answer is
    assert seen == [(step, 6) for step in range(1, 7)]


async def test_what_does_not_apply_to_the_variant_is_remarked(turbo: DitEngine) -> None:
    made = await turbo.denoise(song(guidance_scale=7.0, use_adg=True, shift=2.9, cfg_interval_end=0.5))
    told = "\n".join(made.remarks)
    for name in ("guidance_scale", "use_adg", "shift", "cfg_interval_start, cfg_interval_end"):
        assert f"{name}: " in told


async def test_words_that_do_not_fit_are_remarked(turbo: DitEngine) -> None:
    made = await turbo.denoise(song(caption="very " * 400))
    assert made.remarks[0].startswith("caption and metadata: cut to the 256 tokens")


async def test_a_song_longer_than_the_checkpoint_can_is_refused_and_the_next_one_made(turbo: DitEngine) -> None:
    with pytest.raises(TooLong, match="at most 600 s"):
        plan = SongPlan(caption="", lyrics="", language="en", metas=Metas.model_construct(duration=601.0))
        await turbo.denoise(Song(song().request, 0, plan))
    await turbo.denoise(song())


async def test_a_cancelled_song_leaves_and_its_neighbour_stays(turbo: DitEngine) -> None:
    started = asyncio.Event()
    long = asyncio.create_task(turbo.denoise(song(seconds=200.0, inference_steps=20), lambda *_: started.set()))
    await started.wait()
    neighbour = asyncio.create_task(turbo.denoise(song(9)))
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    made = await neighbour
    assert np.array_equal(made.values, (await turbo.denoise(song(9))).values)


async def test_a_poisoned_song_fails_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = DitEngine(tiny, "acestep-v15-turbo", LIMITS, CPU, packs_rows=True)
    advance = Stepper.advance

    def poison(self: Stepper, trajectory: Any, velocities: Any) -> None:
        if trajectory.generator.initial_seed() == 13:
            velocities = [velocity * float("nan") for velocity in velocities]
        advance(self, trajectory, velocities)

    alone = await engine.denoise(song(1))
    monkeypatch.setattr(Stepper, "advance", poison)
    poisoned, healthy = await asyncio.gather(engine.denoise(song(13)), engine.denoise(song(1)), return_exceptions=True)
    assert isinstance(poisoned, BadLatents)
    assert isinstance(healthy, Latents)
    assert_alike(healthy, alone, 1e-5)
    engine.close()


async def test_what_does_not_fit_together_is_tried_in_halves_and_at_last_alone(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = DitEngine(tiny, "acestep-v15-turbo", LIMITS, CPU, packs_rows=True)
    predict = Stepper.predict
    alone = [await engine.denoise(song(seed, seconds)) for seed, seconds in ((1, 10.0), (2, 11.0))]

    def small_device(self: Stepper, batch: Any) -> Any:
        if sum(len(one.x) for one in batch) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, batch)

    monkeypatch.setattr(Stepper, "predict", small_device)
    one, two, large = await asyncio.gather(
        engine.denoise(song(1)), engine.denoise(song(2, 11.0)), engine.denoise(song(3, 20.0)), return_exceptions=True
    )
    assert isinstance(one, Latents)
    assert isinstance(two, Latents)
    assert_alike(one, alone[0], 1e-5)
    assert_alike(two, alone[1], 1e-5)
    assert isinstance(large, OutOfMemory)
    assert "a song of 20 s" in str(large)
    engine.close()


async def test_an_engine_that_was_closed_says_so(tiny: Path) -> None:
    engine = DitEngine(tiny, "acestep-v15-turbo", LIMITS, CPU)
    engine.check_health()
    waiting = asyncio.create_task(engine.denoise(song(seconds=300.0, inference_steps=20)))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(engine.close)
    with pytest.raises(EngineError, match="was closed"):
        await waiting
    with pytest.raises(EngineError, match="is closed"):
        await engine.denoise(song())
    with pytest.raises(EngineError, match="has died"):
        engine.check_health()


def test_a_checkpoint_that_is_not_what_its_name_says_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "acestep-v15-sft").symlink_to(tiny / "acestep-v15-turbo")
    (tmp_path / "Qwen3-Embedding-0.6B").symlink_to(tiny / "Qwen3-Embedding-0.6B")
    with pytest.raises(EngineError, match="is_turbo True"):
        DitEngine(tmp_path, "acestep-v15-sft", LIMITS, CPU)
