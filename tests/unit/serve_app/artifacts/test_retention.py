"""What is forgotten and what is swept up, over a real store and both places."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from models.music import AudioFormat, Made, MusicRequest, Track
from serve_app import retention
from serve_app.artifacts.face import Artifacts, Kept, upload_of
from serve_app.artifacts.local import LocalArtifacts
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.retention import Keeper
from serve_app.settings import RetentionSettings
from tests.unit.serve_app.artifacts.test_artifacts import keep, refs_in
from tests.unit.serve_app.jobs.promises import pass_time
from tests.unit.serve_app.jobs.test_store import claim_new

TURBO = "acestep-v15-turbo"
COVER = {"model": TURBO, "seeds": (1,), "task_type": "cover"}
HOUR = 3600.0
FOR_EVER = RetentionSettings(jobs_h=None)
Age = Callable[..., None]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    store = await JobStore.open(f"sqlite:///{tmp_path / 'jobs.db'}", QueueLimits(jobs=50, attempts=2))
    yield store
    await store.close()


@pytest.fixture
def age(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> Age:
    """Files as they would be listed so many seconds after they came."""
    ages: dict[str, float] = {}
    listed = artifacts.pages

    def pages() -> Iterator[list[Kept]]:
        for page in listed():
            yield [Kept(kept.ref, kept.changed_at - ages.get(kept.ref, 0.0)) for kept in page]

    def age(seconds: float, *refs: str) -> None:
        ages.update(dict.fromkeys(refs, seconds))

    monkeypatch.setattr(artifacts, "pages", pages)
    return age


async def claimed(store: JobStore, artifacts: Artifacts) -> Job:
    """A running job with source audio."""
    id_ = str(uuid.uuid4())
    keep(artifacts, f"{id_}.source", b"x")
    await store.submit(MusicRequest.model_validate(COVER | {"src_audio": f"{id_}.source"}), "", id_=id_)
    job = await store.claim("w", 60, [TURBO])
    assert job is not None
    return job


async def succeeded(store: JobStore, artifacts: Artifacts, ago_s: float = 0.0) -> tuple[Job, str]:
    """The job and its track of 100 bytes."""
    job = await claimed(store, artifacts)
    ref = artifacts.save("mp3", bytes(100))
    track = Track(ref=ref, audio_format=AudioFormat.MP3, seconds=1.0, size=100, sha256="")
    await store.succeed(job, Made(tracks=(track,), plans=(), dit_model=TURBO, lm_model=None, seconds_by_stage={}))
    await pass_time(store, job, finished_at=job.created_at - ago_s)
    return job, ref


async def there(store: JobStore, *jobs: Job) -> list[bool]:
    return [job is not None for job in await store.get([job.id for job in jobs], "")]


async def test_a_job_goes_with_its_audio_when_its_time_is_over(store: JobStore, artifacts: Artifacts) -> None:
    old, _ = await succeeded(store, artifacts, ago_s=3 * HOUR)
    failed = await claimed(store, artifacts)
    await store.fail(failed, "bad_audio", "silence")
    await pass_time(store, failed, finished_at=failed.created_at - 3 * HOUR)
    new, ref = await succeeded(store, artifacts, ago_s=HOUR)
    running = await claimed(store, artifacts)
    await Keeper(store, artifacts, RetentionSettings(jobs_h=2)).forget()
    assert await there(store, old, failed, new, running) == [False, False, True, True]
    assert refs_in(artifacts) == sorted([ref, f"{new.id}.source", f"{running.id}.source"])


async def test_the_oldest_jobs_go_when_all_tracks_together_take_too_much(store: JobStore, artifacts: Artifacts) -> None:
    jobs = [await succeeded(store, artifacts, ago_s=age_s) for age_s in (HOUR, 3 * HOUR, 2 * HOUR)]
    await Keeper(store, artifacts, RetentionSettings(jobs_h=None, tracks_gib=250 / 2**30)).forget()
    assert await there(store, *(job for job, _ in jobs)) == [True, False, True]
    assert refs_in(artifacts) == sorted(name for job, ref in (jobs[0], jobs[2]) for name in (ref, f"{job.id}.source"))


async def test_what_is_to_be_kept_for_ever_is(store: JobStore, artifacts: Artifacts, age: Age) -> None:
    job, ref = await succeeded(store, artifacts, ago_s=10_000 * HOUR)
    age(10_000 * HOUR, ref, f"{job.id}.source")
    keeper = Keeper(store, artifacts, FOR_EVER)
    await keeper.forget()
    await keeper.sweep()
    assert await there(store, job) == [True]
    assert refs_in(artifacts) == sorted([ref, f"{job.id}.source"])


async def test_files_of_a_job_that_was_forgotten_by_who_died_next_are_swept_up(
    store: JobStore, artifacts: Artifacts, age: Age
) -> None:
    gone, ref = await succeeded(store, artifacts)
    await store.forget(age_s=-1)
    keeper = Keeper(store, artifacts, FOR_EVER)
    age(0.9 * HOUR, ref, f"{gone.id}.source")
    await keeper.sweep()
    assert len(refs_in(artifacts)) == 2  # so young that its job may be on its way
    age(1.1 * HOUR, ref, f"{gone.id}.source")
    await keeper.sweep()
    assert refs_in(artifacts) == []


async def test_a_track_of_a_job_that_still_runs_is_left_and_one_of_an_attempt_before_is_not(
    store: JobStore, artifacts: Artifacts, age: Age
) -> None:
    slow = await claimed(store, artifacts)
    await pass_time(store, slow, started_at=slow.created_at - 5 * HOUR)
    early, late = artifacts.save("mp3", b"x"), artifacts.save("mp3", b"x")
    age(7 * HOUR, early)
    age(4 * HOUR, late, f"{slow.id}.source")
    await Keeper(store, artifacts, FOR_EVER).sweep()
    assert refs_in(artifacts) == sorted([late, f"{slow.id}.source"])


async def test_an_upload_that_nobody_uses_goes_after_its_day(store: JobStore, artifacts: Artifacts, age: Age) -> None:
    old, new = upload_of("0" * 32, "anna"), upload_of("1" * 32, "anna")
    keep(artifacts, old, b"x")
    keep(artifacts, new, b"x")
    job = await claimed(store, artifacts)
    artifacts.copy(old, f"{job.id}.reference")
    age(25 * HOUR, old, f"{job.id}.reference")
    age(23 * HOUR, new)
    await Keeper(store, artifacts, RetentionSettings(uploads_h=24)).sweep()
    assert refs_in(artifacts) == sorted([new, f"{job.id}.source", f"{job.id}.reference"])


async def test_what_a_process_was_writing_when_it_died_is_swept_up(store: JobStore, tmp_path: Path) -> None:
    class Yesterday(LocalArtifacts):
        def pages(self) -> Iterator[list[Kept]]:
            for page in super().pages():
                yield [Kept(kept.ref, kept.changed_at - 24 * HOUR) for kept in page]

    artifacts = Yesterday(tmp_path / "data")
    draft = artifacts.draft()
    draft.__enter__()  # and never left
    assert len(refs_in(artifacts)) == 1
    await Keeper(store, artifacts, FOR_EVER).sweep()
    assert refs_in(artifacts) == []


async def test_several_keepers_are_in_nobodys_way(store: JobStore, artifacts: Artifacts, age: Age) -> None:
    jobs = [await succeeded(store, artifacts, ago_s=age_s * HOUR) for age_s in range(6)]
    orphans = [artifacts.save("mp3", b"x") for _ in range(6)]
    age(2 * HOUR, *orphans)
    keepers = [Keeper(store, artifacts, RetentionSettings(jobs_h=2.5, tracks_gib=100 / 2**30)) for _ in range(3)]
    await asyncio.gather(*(keeper.forget() for keeper in keepers), *(keeper.sweep() for keeper in keepers))
    assert refs_in(artifacts) == sorted([jobs[0][1], f"{jobs[0][0].id}.source"])
    assert (await store.stats()).total == 1


async def test_a_keeper_that_fails_tries_again_until_it_is_closed(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "FORGETS_EVERY_S", 0.01)
    monkeypatch.setattr(retention, "SWEEPS_EVERY_S", 0.01)
    artifacts = LocalArtifacts(tmp_path / "data")
    job, _ = await succeeded(store, artifacts, ago_s=2 * HOUR)
    keeper = Keeper(store, artifacts, RetentionSettings(jobs_h=1))
    (tmp_path / "data" / "uploads").rename(tmp_path / "away")
    (tmp_path / "data" / "uploads").symlink_to("uploads")  # nothing below it can be deleted, or listed
    working = asyncio.create_task(keeper.work())
    while await there(store, job) == [True]:
        await asyncio.sleep(0.01)
    failed = await claim_new(store)
    await store.fail(failed, "bad_audio", "silence")
    await pass_time(store, failed, finished_at=failed.created_at - 2 * HOUR)
    while await there(store, failed) == [True]:
        await asyncio.sleep(0.01)
    keeper.close()
    await working


async def test_a_replica_that_goes_does_not_wait_for_the_whole_sweep(
    store: JobStore, artifacts: Artifacts, age: Age
) -> None:
    orphan = artifacts.save("mp3", b"x")
    age(2 * HOUR, orphan)
    keeper = Keeper(store, artifacts, FOR_EVER)
    keeper.close()
    await keeper.sweep()
    await keeper.work()
    assert refs_in(artifacts) == [orphan]


async def test_events_go_a_day_after(store: JobStore, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    job, _ = await succeeded(store, artifacts)
    keeper = Keeper(store, artifacts, FOR_EVER)
    await keeper.forget()
    told = await store.happened(job.id, "")
    assert told is not None
    assert [event.number for event in told.events] == [1, 2, 3]
    monkeypatch.setattr(retention, "EVENTS_LAST_S", -1.0)
    await keeper.forget()
    told = await store.happened(job.id, "")
    assert told is not None
    assert [event.number for event in told.events] == [3]
