"""Thousands of jobs, and no more is there than after hundreds: files, rows, memory."""

from __future__ import annotations

import asyncio
import gc
import os
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from models.editing import Splice
from models.music import Encoding, Latents, MusicRequest, Track
from models.pipeline import Stages
from serve_app import retention
from serve_app.artifacts.face import StorageFailed
from serve_app.artifacts.local import LocalArtifacts
from serve_app.conductor import Conductor, Pace
from serve_app.jobs.job import Job, Status
from serve_app.jobs.schema import metadata
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.retention import Keeper
from serve_app.settings import RetentionSettings
from tests.unit.serve_app.test_conductor import FakeStages

TURBO = "acestep-v15-turbo"
SONG = {"model": TURBO, "seeds": (1, 2)}
COVER = SONG | {"task_type": "cover"}
FIRST, ALL = 200, 2000
TRACK = 10_000  # bytes
KEPT = 120  # tracks
AT_ONCE = 8


class Studio(FakeStages):
    """Tracks are files; every tenth is made twice, as when its replica was lost after it was saved."""

    def __init__(self, artifacts: LocalArtifacts) -> None:
        super().__init__()
        self._artifacts = artifacts

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        if len(self.songs) >= 10:
            self.songs.clear()
            await asyncio.to_thread(self._artifacts.save, "mp3", os.urandom(TRACK))
        ref = await asyncio.to_thread(self._artifacts.save, "mp3", os.urandom(TRACK))
        return Track(ref=ref, audio_format=encoding.audio_format, seconds=10.0, size=TRACK, sha256="")


@dataclass(frozen=True)
class Left:
    files: int
    rows: int
    memory: int  # bytes


@dataclass
class House:
    store: JobStore
    artifacts: LocalArtifacts
    conductor: Conductor
    keeper: Keeper
    folder: Path

    async def make(self, jobs: int) -> None:
        for _ in range(0, jobs, AT_ONCE):
            ids = [(await self._submit()).id for _ in range(AT_ONCE)]
            self.conductor.nudge()
            while (await self.store.stats()).queued or await self.store.running_since() is not None:
                await asyncio.sleep(0.01)
            made = await self.store.get(ids, "")
            assert [job and job.status for job in made] == [Status.SUCCEEDED] * AT_ONCE

    async def _submit(self) -> Job:
        id_ = str(uuid.uuid4())
        with self.artifacts.draft() as draft:
            draft.write_bytes(b"audio")
            self.artifacts.keep(draft, f"{id_}.source")
        return await self.store.submit(MusicRequest.model_validate(COVER | {"src_audio": f"{id_}.source"}), "", id_=id_)

    async def left(self) -> Left:
        """When everything that may go has gone."""
        await self.keeper.forget()
        await self.keeper.sweep()
        async with self.store._engine.connect() as connection:
            counted = [select(func.count()).select_from(table) for table in metadata.sorted_tables]
            rows = [await connection.scalar(count) or 0 for count in counted]
        gc.collect()
        files = sum(path.is_file() for path in self.folder.rglob("*"))
        return Left(files, sum(rows), psutil.Process().memory_info().rss)


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    monkeypatch.setattr(retention, "SETTLED_AFTER_S", -1.0)
    monkeypatch.setattr(retention, "FORGETS_EVERY_S", 1.0)
    store = await JobStore.open(f"sqlite:///{tmp_path / 'jobs.db'}", QueueLimits(jobs=50, attempts=2))
    artifacts = LocalArtifacts(tmp_path / "data")
    studio = Studio(artifacts)
    conductor = Conductor("w", store, {TURBO: Stages(None, studio, studio)}, Pace(AT_ONCE, lease_s=60, poll_s=0.05))
    keeper = Keeper(store, artifacts, RetentionSettings(tracks_gib=KEPT * TRACK / 2**30))
    working = [asyncio.create_task(conductor.work()), asyncio.create_task(keeper.work())]
    yield House(store, artifacts, conductor, keeper, tmp_path)
    keeper.close()
    await conductor.drain()
    await asyncio.gather(*working)
    await store.close()


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_after_thousands_of_jobs_there_is_no_more_than_after_hundreds(house: House) -> None:
    await house.make(FIRST)
    early = await house.left()
    await house.make(ALL - FIRST)
    late = await house.left()
    print(f"after {FIRST} {early}, after {ALL} {late}")  # noqa: T201 for docs/log.md
    assert early.files >= KEPT
    assert late.files <= 1.05 * early.files
    assert late.rows <= 1.05 * early.rows
    assert late.memory <= 1.05 * early.memory


async def test_a_job_whose_track_cannot_be_kept_fails_and_says_so_without_a_path(house: House) -> None:
    (house.folder / "data").mkdir(exist_ok=True)
    (house.folder / "data" / "drafts").write_text("a file where the folder should be")
    job = await house.store.submit(MusicRequest.model_validate(SONG), "")
    while not (seen := (await house.store.get([job.id], ""))[0]) or not seen.status.is_final:
        await asyncio.sleep(0.01)
    assert (seen.status, seen.error_code) == (Status.FAILED, "storage_unavailable")
    assert seen.error_message == StorageFailed("").public_message
    assert list((house.folder / "data").rglob("*.mp3")) == []
