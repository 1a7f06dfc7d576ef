"""Real engines on tiny checkpoints."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.batching import BatchLimits
from models.dit.engine import DitEngine
from models.dit.transformer import Row, Transformer
from models.errors import DeadlineExceeded, InvalidRequest, OutOfMemory
from tests.unit.models.dit.songs import distance, song, values

CPU = torch.device("cpu")
CODES = tuple(range(0, 64_000, 1000))


@pytest.fixture(scope="module")
def turbo(tiny: Path) -> Iterator[DitEngine]:
    yield from running(DitEngine(tiny, "acestep-v15-turbo", BatchLimits(), CPU, packs_rows=True))


@pytest.fixture(scope="module")
def base(tiny: Path) -> Iterator[DitEngine]:
    yield from running(DitEngine(tiny, "acestep-v15-base", BatchLimits(songs=16), CPU, packs_rows=True))


def running(engine: DitEngine) -> Iterator[DitEngine]:
    yield engine
    engine.close()


async def test_a_seed_is_a_song_to_the_last_bit(turbo: DitEngine) -> None:
    first, again = await values(turbo, song(seed=5)), await values(turbo, song(seed=5))

    assert first.shape == (250, 64)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert distance(await values(turbo, song(seed=6)), first) > 0.1


async def test_a_song_among_seven_others_is_the_song_alone(turbo: DitEngine) -> None:
    asked = song(seconds=12.3, seed=3)
    others = [song(seconds=10.0 + 1.7 * number, seed=number, inference_steps=3 + number) for number in range(7)]
    alone = await values(turbo, asked)

    among, *_ = await asyncio.gather(values(turbo, asked), *(values(turbo, other) for other in others))

    assert distance(among, alone) <= 1e-5


async def test_guided_songs_of_every_method_share_a_batch_and_stay_themselves(base: DitEngine) -> None:
    songs = [
        song(inference_steps=4),
        song(11.0, 2, inference_steps=3, use_adg=True, guidance_scale=4.0),
        song(12.0, 3, inference_steps=5, infer_method="sde", cfg_interval_end=0.7),
        song(10.5, 4, inference_steps=3, infer_method="heun", guidance_scale=1.0),
        song(13.0, 5, inference_steps=4, plan={"codes": CODES}, audio_cover_strength=0.5),
    ]
    alone = [await values(base, asked) for asked in songs]

    together = await asyncio.gather(*(values(base, asked) for asked in songs))

    assert max(distance(one, other) for one, other in zip(together, alone, strict=True)) <= 1e-5


async def test_without_packing_neighbours_do_not_change_a_bit(tiny: Path) -> None:
    engine = DitEngine(tiny, "acestep-v15-xl-turbo", BatchLimits(), CPU, packs_rows=False)
    alone = await values(engine, song(inference_steps=2))

    among, _ = await asyncio.gather(
        values(engine, song(inference_steps=2)), values(engine, song(11.0, 9, inference_steps=3))
    )

    engine.close()
    assert np.array_equal(among, alone)


async def test_words_codes_and_how_long_they_hold_change_a_song(turbo: DitEngine) -> None:
    plain = await values(turbo, song())

    coded = await values(turbo, song(plan={"codes": CODES}))
    let_go = await values(turbo, song(plan={"codes": CODES}, audio_cover_strength=0.5))
    instrumental = await values(turbo, song(plan={"lyrics": ""}))

    seen = [plain, coded, let_go, instrumental]
    assert min(distance(one, other) for one in seen for other in seen if one is not other) > 1e-4


async def test_what_was_cut_off_or_not_applied_is_remarked_on(turbo: DitEngine) -> None:
    long = song(plan={"caption": "piano " * 300}, guidance_scale=3.0, audio_cover_strength=0.5, inference_steps=1)

    remarks = (await turbo.denoise(long)).remarks

    assert [remark.split(":")[0] for remark in remarks] == [
        "guidance_scale",
        "caption and metadata",
        "audio_cover_strength",
    ]


async def test_progress_arrives_in_the_callers_own_thread(turbo: DitEngine) -> None:
    told: list[tuple[int, int]] = []

    await values(turbo, song(inference_steps=3), lambda done, planned: told.append((done, planned)))
    await asyncio.sleep(0)

    assert told == [(1, 3), (2, 3), (3, 3)]


async def test_a_cancelled_song_leaves_and_the_next_one_is_made(turbo: DitEngine) -> None:
    started = asyncio.Event()
    doomed = asyncio.create_task(values(turbo, song(60.0, inference_steps=20), lambda done, planned: started.set()))
    await started.wait()

    doomed.cancel()

    with pytest.raises(asyncio.CancelledError):
        await doomed
    await values(turbo, song(inference_steps=1))
    assert turbo.health().songs <= 1


class Watched:
    """A forward in which nothing is computed. Knows the rows it was asked for, and which of their tensors live on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames: list[list[int]] = []
        self.tensors: list[tuple[int, weakref.ref[Tensor]]] = []  # with the frames of their song
        self.may_go = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)

        def velocities(transformer: Transformer, rows: Sequence[Row]) -> list[Tensor]:
            self.frames.append([len(row.x) for row in rows])
            for row in rows:
                own = [row.x, row.context, *([] if len(row.condition) == 1 else [row.condition])]  # null is everybody's
                self.tensors += [(len(row.x), weakref.ref(tensor)) for tensor in own]
            self.arrived.release()
            assert self.may_go.acquire(timeout=20)
            return [torch.ones_like(row.x) for row in rows]

        monkeypatch.setattr(Transformer, "velocities", velocities)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.arrived.acquire, timeout=20)

    def alive(self, frames: int) -> list[Tensor]:
        return [tensor for own, reference in self.tensors if own == frames and (tensor := reference()) is not None]


async def test_a_ten_minute_song_that_is_cancelled_is_gone_after_one_step_and_so_is_its_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Watched(monkeypatch)
    engine = DitEngine(tiny, "acestep-v15-base", BatchLimits(), CPU, packs_rows=True)
    long = asyncio.create_task(values(engine, song(600.0, inference_steps=50)))
    await forward.wait()
    short = asyncio.create_task(values(engine, song(10.0, inference_steps=2, guidance_scale=1.0)))
    assert forward.frames == [[15_000, 15_000]]
    assert len(forward.alive(15_000)) == 5

    long.cancel()
    await asyncio.wait([long])
    forward.may_go.release(10)

    assert len(await short) == 250
    assert forward.frames == [[15_000, 15_000], [250], [250]]
    assert forward.alive(15_000) == []
    engine.close()


async def test_songs_that_do_not_fit_beside_each_other_are_made_all_the_same(
    tiny: Path, turbo: DitEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, batches = Transformer.velocities, []
    most_frames = 600

    def velocities(transformer: Transformer, rows: Sequence[Row]) -> list[Tensor]:
        batches.append([len(row.x) for row in rows])
        if sum(batches[-1]) > most_frames:
            raise torch.OutOfMemoryError("out of memory")
        return real(transformer, rows)

    fitting = [song(10.0 + number, number, inference_steps=3) for number in range(3)]
    alone = [await values(turbo, own) for own in fitting]
    monkeypatch.setattr(Transformer, "velocities", velocities)
    engine = DitEngine(tiny, "acestep-v15-turbo", BatchLimits(), CPU, packs_rows=True)

    *together, failed = await asyncio.gather(
        *(values(engine, own) for own in [*fitting, song(30.0, inference_steps=3)]), return_exceptions=True
    )

    engine.close()
    assert isinstance(failed, OutOfMemory)
    for made, wanted in zip(together, alone, strict=True):
        assert isinstance(made, np.ndarray)
        assert distance(made, wanted) <= 1e-5
    assert any(len(batch) > 1 and sum(batch) <= most_frames for batch in batches)


async def test_a_song_is_given_no_longer_than_it_has(turbo: DitEngine) -> None:
    late = dataclasses.replace(song(inference_steps=20), deadline_s=-1.0)
    with pytest.raises(DeadlineExceeded):
        await turbo.denoise(late)
    in_time = dataclasses.replace(song(inference_steps=1), deadline_s=60.0)
    assert (await turbo.denoise(in_time)).values.shape == (250, 64)


def test_a_caller_whose_event_loop_has_ended_does_no_harm(turbo: DitEngine) -> None:
    async def ask_and_leave() -> None:
        asyncio.get_running_loop().create_task(values(turbo, song(inference_steps=20)))
        await asyncio.sleep(0.01)

    asyncio.run(ask_and_leave())

    assert asyncio.run(values(turbo, song(inference_steps=1))).shape == (250, 64)
    turbo.check_health()


async def test_what_the_engine_cannot_make_is_refused(turbo: DitEngine) -> None:
    with pytest.raises(InvalidRequest, match="inference_steps 99"):
        await turbo.denoise(song(inference_steps=99))


def test_warming_up_needs_no_event_loop(turbo: DitEngine) -> None:
    turbo.warm_up()
    turbo.check_health()
