"""A conductor that can be killed: `python -m tests.unit.serve_app.jobs.working URL FOLDER WORKER`.

Its stages take a moment and make nothing. What it began and what it was told is stored stand in files of `FOLDER`.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from pathlib import Path
from random import Random

import numpy as np

from models.editing import WHOLE, Splice, Window
from models.music import Encoding, Latents, Made, MusicRequest, OnProgress, Song, SongPlan, Source, Track, ignore
from models.pipeline import Stages
from serve_app.conductor import Conductor, Pace
from serve_app.jobs.database import PATIENCE, Patience
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore, QueueLimits

TURBO = "acestep-v15-turbo"
LIMITS = QueueLimits(jobs=2000, attempts=3)


class Diary:
    """Lines, each of which outlives whoever wrote it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, *words: object) -> None:
        with self._path.open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def read(self) -> list[list[str]]:
        return [line.split() for line in self._path.read_text().splitlines()] if self._path.exists() else []


class DiaryStore(JobStore):
    """Writes down what it told its conductor is stored."""

    stored: Diary

    async def succeed(self, job: Job, made: Made) -> None:
        await super().succeed(job, made)
        self.stored.write(job.id, made.tracks[0].ref)


class BriefStages:
    """Writes down each track made. A song is known by its seed."""

    def __init__(self, made: Diary, takes_s: float) -> None:
        self._made = made
        self._takes_s = takes_s
        self._random = Random()

    async def plan(self, request: MusicRequest, on_progress: OnProgress = ignore) -> tuple[SongPlan, ...]:
        raise AssertionError("no LM here")

    async def codes(self, source: Source) -> tuple[int, ...]:
        raise AssertionError("nothing is heard here")

    async def denoise(self, song: Song, on_progress: OnProgress = ignore) -> Latents:
        for step in range(2):
            on_progress(step, 2)
            await asyncio.sleep(self._random.uniform(0, self._takes_s))
        return Latents(np.full((1, 64), song.seed, np.float32))

    async def encode(self, audio: str, window: Window = WHOLE) -> Source:
        raise AssertionError("no sources here")

    async def encode_reference(self, audio: str) -> Latents:
        raise AssertionError("no references here")

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        ref = f"{uuid.uuid4().hex}.mp3"
        self._made.write(int(latents.values[0, 0]), ref)
        return Track(ref=ref, audio_format=encoding.audio_format, seconds=0.04, size=1, sha256="")


async def work(url: str, folder: Path, worker: str, pace: Pace, takes_s: float, patience: Patience = PATIENCE) -> None:
    """Until cancelled; then gives back what it has."""
    store = await DiaryStore.open_when_there(url, LIMITS, patience)
    store.stored = Diary(folder / "stored")
    stages = BriefStages(Diary(folder / "made"), takes_s)
    conductor = Conductor(worker, store, {TURBO: Stages(None, stages, stages)}, pace)
    working = asyncio.create_task(conductor.work())
    try:
        await asyncio.shield(working)
    finally:
        await conductor.drain()
        await working
        await store.close()


if __name__ == "__main__":
    url, folder, worker = sys.argv[1:]
    asyncio.run(work(url, Path(folder), worker, Pace(jobs=8, lease_s=15), takes_s=0.5))
