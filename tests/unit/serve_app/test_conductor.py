"""The conductor over a real store, with stages that are fakes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from models.editing import WHOLE, Splice, Window
from models.errors import BadAudio
from models.music import (
    Encoding,
    Latents,
    MusicRequest,
    OnProgress,
    Song,
    SongPlan,
    Source,
    Track,
    frames_of,
    ignore,
)
from models.pipeline import Stages
from serve_app.conductor import Conductor, Pace
from serve_app.jobs.database import Patience
from serve_app.jobs.job import Job, Status, Terms
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.remote import StageLost

TURBO = "acestep-v15-turbo"
LIMITS = QueueLimits(jobs=50, attempts=2)
PACE = Pace(jobs=2, lease_s=60, poll_s=0.02, heartbeat_s=0.02)


class FakeStages:
    """Makes a song when `may_go` is set; what it raises is set by a test."""

    def __init__(self) -> None:
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.fails_with: Exception | None = None
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.songs: list[Song] = []

    async def plan(self, request: MusicRequest, on_progress: OnProgress = ignore) -> tuple[SongPlan, ...]:
        raise AssertionError("no LM in these tests")

    async def codes(self, source: Source) -> tuple[int, ...]:
        raise AssertionError("nothing is heard in these tests")

    async def denoise(self, song: Song, on_progress: OnProgress = ignore) -> Latents:
        self.songs.append(song)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            on_progress(1, 2)
            await self.may_go.wait()
            if self.fails_with is not None:
                raise self.fails_with
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return Latents(np.ones((frames_of(10), 64), np.float32))

    async def encode(self, audio: str, window: Window = WHOLE) -> Source:
        return Source(np.ones((frames_of(10), 64), np.float32), 480_000)

    async def encode_reference(self, audio: str) -> Latents:
        return Latents(np.ones((750, 64), np.float32))

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        return Track(ref="0" * 32 + ".mp3", audio_format=encoding.audio_format, seconds=10.0, size=1, sha256="")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    store = await JobStore.open(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}", LIMITS)
    yield store
    await store.close()


@pytest.fixture
def stages() -> FakeStages:
    return FakeStages()


@pytest.fixture
async def conductor(store: JobStore, stages: FakeStages) -> AsyncIterator[Conductor]:
    conductor = Conductor("w", store, {TURBO: Stages(None, stages, stages)}, PACE)
    work = asyncio.create_task(conductor.work())
    yield conductor
    await conductor.drain()
    await work


async def submit(store: JobStore) -> Job:
    return await store.submit(MusicRequest(model=TURBO, seeds=(1,), audio_duration=10.0), "")


async def read(store: JobStore, job: Job) -> Job:
    (seen,) = await store.get([job.id], "")
    assert seen is not None
    return seen


async def until(store: JobStore, job: Job, *statuses: Status) -> Job:
    async with asyncio.timeout(5):
        while (seen := await read(store, job)).status not in statuses:
            await asyncio.sleep(0.01)
    return seen


async def test_a_queued_job_is_made_and_kept(store: JobStore, conductor: Conductor) -> None:
    done = await until(store, await submit(store), Status.SUCCEEDED)
    assert done.made is not None
    assert done.made.dit_model == TURBO
    assert done.progress == 1.0


async def test_a_failed_song_fails_its_job_with_its_own_words_and_the_next_is_made(
    store: JobStore, stages: FakeStages, conductor: Conductor
) -> None:
    stages.fails_with = BadAudio("silence came out of the VAE")
    failed = await until(store, await submit(store), Status.FAILED)
    assert (failed.error_code, failed.error_message) == ("bad_audio", "silence came out of the VAE")
    stages.fails_with = None
    await until(store, await submit(store), Status.SUCCEEDED)


async def test_what_nobody_foresaw_fails_the_job_and_keeps_its_words_inside(
    store: JobStore, stages: FakeStages, conductor: Conductor
) -> None:
    stages.fails_with = ZeroDivisionError("the password is swordfish")
    failed = await until(store, await submit(store), Status.FAILED)
    assert failed.error_code == "internal"
    assert "swordfish" not in (failed.error_message or "")


async def test_no_more_jobs_run_at_once_than_the_pace_says(
    store: JobStore, stages: FakeStages, conductor: Conductor
) -> None:
    stages.may_go.clear()
    jobs = [await submit(store) for _ in range(5)]
    await until(store, jobs[1], Status.RUNNING)
    await asyncio.sleep(0.1)
    stages.may_go.set()
    for job in jobs:
        await until(store, job, Status.SUCCEEDED)
    assert stages.most_running == PACE.jobs


async def test_progress_reaches_the_store(store: JobStore, stages: FakeStages, conductor: Conductor) -> None:
    stages.may_go.clear()
    job = await submit(store)
    async with asyncio.timeout(5):
        while (await read(store, job)).stage != "denoise":
            await asyncio.sleep(0.01)
    assert 0.5 < (await read(store, job)).progress < 0.8


async def test_a_cancelled_job_is_stopped_and_ends_cancelled(
    store: JobStore, stages: FakeStages, conductor: Conductor
) -> None:
    stages.may_go.clear()
    job = await submit(store)
    await until(store, job, Status.RUNNING)
    await store.cancel(job.id, "")
    await until(store, job, Status.CANCELLED)
    assert (stages.cancelled, stages.running) == (1, 0)


async def test_a_job_that_is_claimed_while_the_drain_begins_is_given_back_before_the_work_ends(
    store: JobStore, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = store.claim

    async def claim_slowly(worker: str, lease_s: float, models: Collection[str]) -> Job | None:
        claimed = await claim(worker, lease_s, models)
        await asyncio.sleep(0.1)
        return claimed

    monkeypatch.setattr(store, "claim", claim_slowly)
    stages.may_go.clear()
    job = await submit(store)
    conductor = Conductor("w", store, {TURBO: Stages(None, stages, stages)}, PACE)
    work = asyncio.create_task(conductor.work())
    await until(store, job, Status.RUNNING)
    await conductor.drain()
    await work
    assert (await read(store, job)).status is Status.QUEUED


async def test_draining_gives_running_jobs_back_for_another_to_finish(store: JobStore, stages: FakeStages) -> None:
    stages.may_go.clear()
    job = await submit(store)
    first = Conductor("w1", store, {TURBO: Stages(None, stages, stages)}, PACE)
    work = asyncio.create_task(first.work())
    await until(store, job, Status.RUNNING)
    await first.drain()
    await work
    given_back = await read(store, job)
    assert (given_back.status, given_back.attempt) == (Status.QUEUED, 0)
    stages.may_go.set()
    second = Conductor("w2", store, {TURBO: Stages(None, stages, stages)}, PACE)
    work = asyncio.create_task(second.work())
    await until(store, job, Status.SUCCEEDED)
    await second.drain()
    await work


async def test_a_conductor_that_lost_its_lease_stops_and_drops_what_it_made(
    store: JobStore, stages: FakeStages
) -> None:
    full_with_one = Pace(jobs=1, lease_s=60, poll_s=0.02, heartbeat_s=0.02)  # or it might be its own heir
    conductor = Conductor("w", store, {TURBO: Stages(None, stages, stages)}, full_with_one)
    work = asyncio.create_task(conductor.work())
    stages.may_go.clear()
    job = await submit(store)
    running = await until(store, job, Status.RUNNING)
    await store.give_back(running)
    heir = await store.claim("another", 60, [TURBO])
    assert heir is not None
    async with asyncio.timeout(5):
        while stages.cancelled == 0:
            await asyncio.sleep(0.01)
    assert (await read(store, job)).fence == heir.fence
    await store.fail(heir, "bad_audio", "silence")
    assert (await read(store, job)).status == Status.FAILED
    await conductor.drain()
    await work


async def test_a_lost_stage_leaves_the_job_to_be_claimed_again(store: JobStore, stages: FakeStages) -> None:
    stages.fails_with = StageLost("the DiT was lost 4 times")
    hasty = Pace(jobs=2, lease_s=0.1, poll_s=0.02, heartbeat_s=0.02)
    conductor = Conductor("w", store, {TURBO: Stages(None, stages, stages)}, hasty)
    job = await submit(store)
    work = asyncio.create_task(conductor.work())
    failed = await until(store, job, Status.FAILED)
    assert (failed.error_code, failed.attempt) == ("worker_lost", 2)
    await conductor.drain()
    await work


@pytest.mark.usefixtures("conductor")
async def test_a_song_has_as_long_as_its_job_had_left_when_it_was_claimed(store: JobStore, stages: FakeStages) -> None:
    job = await store.submit(MusicRequest(model=TURBO, seeds=(1,)), "", Terms(deadline_s=60))

    done = await until(store, job, Status.SUCCEEDED)

    (song,) = stages.songs
    assert song.deadline_s is not None
    assert done.deadline_s is not None
    assert 0 < song.deadline_s < done.deadline_s <= 60


async def test_a_conductor_that_is_full_still_ends_what_waits_past_its_deadline(
    store: JobStore, stages: FakeStages, conductor: Conductor
) -> None:
    stages.may_go.clear()
    running = [await submit(store) for _ in range(PACE.jobs)]
    for job in running:
        await until(store, job, Status.RUNNING)
    late = await store.submit(MusicRequest(model=TURBO, seeds=(1,)), "", Terms(deadline_s=-1))
    assert (await until(store, late, Status.FAILED)).error_code == "deadline_exceeded"


async def test_a_nudge_is_quicker_than_the_next_look(store: JobStore, stages: FakeStages) -> None:
    lazy = Pace(jobs=2, lease_s=60, poll_s=3600, heartbeat_s=0.02)
    conductor = Conductor("w", store, {TURBO: Stages(None, stages, stages)}, lazy)
    work = asyncio.create_task(conductor.work())
    await asyncio.sleep(0.05)
    job = await submit(store)
    conductor.nudge()
    await until(store, job, Status.SUCCEEDED)
    await conductor.drain()
    await work


@pytest.fixture
async def impatient(tmp_path: Path, store: JobStore) -> AsyncIterator[JobStore]:
    """The same store, opened by someone who is quick to call it away."""
    impatient = await JobStore.open(f"sqlite:///{tmp_path / 'jobs.db'}", LIMITS, Patience(answer_s=0.02))
    yield impatient
    await impatient.close()


@asynccontextmanager
async def locked(folder: Path) -> AsyncIterator[None]:
    """The job database, by somebody else."""
    holder = sqlite3.connect(folder / "jobs.db", isolation_level=None, timeout=0)
    while not holder.in_transaction:
        with suppress(sqlite3.OperationalError):  # whoever has it needs the event loop to be done with it
            holder.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(0.001)
    yield
    holder.execute("COMMIT")
    holder.close()


@pytest.mark.parametrize("fails_with", [None, BadAudio("silence")])
async def test_a_song_that_ends_while_the_store_is_away_is_not_made_again(
    store: JobStore, impatient: JobStore, stages: FakeStages, tmp_path: Path, fails_with: Exception | None
) -> None:
    stages.may_go.clear()
    stages.fails_with = fails_with
    pace = Pace(jobs=2, lease_s=60, poll_s=0.02, heartbeat_s=0.02, away_s=0.02)
    conductor = Conductor("w", impatient, {TURBO: Stages(None, stages, stages)}, pace)
    work = asyncio.create_task(conductor.work())
    job = await submit(store)
    await until(store, job, Status.RUNNING)

    async with locked(tmp_path):
        stages.may_go.set()
        await asyncio.sleep(0.3)
        assert stages.running == 0
        assert (await read(store, job)).status == Status.RUNNING

    ended = await until(store, job, Status.FAILED if fails_with else Status.SUCCEEDED)
    assert (ended.attempt, len(stages.songs)) == (1, 1)
    await conductor.drain()
    await work


async def test_a_song_is_stopped_when_the_store_stays_away_for_longer_than_the_job_is_held(
    store: JobStore, impatient: JobStore, stages: FakeStages, tmp_path: Path
) -> None:
    stages.may_go.clear()
    pace = Pace(jobs=2, lease_s=0.2, poll_s=0.02, heartbeat_s=0.02, away_s=0.02)
    conductor = Conductor("w", impatient, {TURBO: Stages(None, stages, stages)}, pace)
    work = asyncio.create_task(conductor.work())
    job = await submit(store)
    await until(store, job, Status.RUNNING)

    async with locked(tmp_path):
        async with asyncio.timeout(5):
            while stages.cancelled == 0:
                await asyncio.sleep(0.01)

    stages.may_go.set()
    done = await until(store, job, Status.SUCCEEDED)
    assert (done.attempt, done.losses, len(stages.songs)) == (2, 1, 2)
    await conductor.drain()
    await work


async def test_an_end_that_cannot_be_stored_is_given_up_with_the_lease(
    store: JobStore, impatient: JobStore, stages: FakeStages, tmp_path: Path
) -> None:
    pace = Pace(jobs=1, lease_s=0.2, poll_s=0.02, heartbeat_s=0.02, away_s=0.02)
    conductor = Conductor("w", impatient, {TURBO: Stages(None, stages, stages)}, pace)
    stages.may_go.clear()
    job = await submit(store)
    work = asyncio.create_task(conductor.work())
    await until(store, job, Status.RUNNING)

    async with locked(tmp_path):
        stages.may_go.set()
        async with asyncio.timeout(5):
            await asyncio.gather(*conductor._attempts)

    await until(store, job, Status.SUCCEEDED)
    assert len(stages.songs) == 2
    await conductor.drain()
    await work
