"""What has ended goes after a time: records first, then files, then files that a crash left without a record."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from serve_app.artifacts.face import Artifacts, Kept, Kind
from serve_app.jobs.forgetting import Forgotten
from serve_app.jobs.store import JobStore
from serve_app.settings import RetentionSettings

log = logging.getLogger(__name__)

FORGETS_EVERY_S = 60.0
SWEEPS_EVERY_S = 3600.0
EVENTS_LAST_S = 24 * 3600.0  # for who comes back to watch a job
SETTLED_AFTER_S = 3600.0  # by then a file has a job, or it is none's


class Keeper:
    """Any number may be at it: what one has deleted is no more for the others. Listing files and deleting them is left
    to threads."""

    def __init__(self, store: JobStore, artifacts: Artifacts, retention: RetentionSettings) -> None:
        self._store = store
        self._artifacts = artifacts
        self._retention = retention
        self._is_closing = asyncio.Event()

    async def work(self) -> None:
        """Until `close`: not to be cancelled, since a question to the database is not left hanging."""
        await asyncio.gather(self._repeat(self.forget, FORGETS_EVERY_S), self._repeat(self.sweep, SWEEPS_EVERY_S))

    def close(self) -> None:
        self._is_closing.set()

    async def forget(self) -> None:
        """Deletes jobs beyond their time or room, and next their files. What a crash leaves between is swept up."""
        jobs_h, tracks_gib = self._retention.jobs_h, self._retention.tracks_gib
        if jobs_h is not None:
            await self._forget(lambda: self._store.forget(jobs_h * 3600))
        if tracks_gib is not None:
            await self._forget(lambda: self._store.forget_oldest(int(tracks_gib * 2**30)))
        await self._store.forget_events(EVENTS_LAST_S)

    async def sweep(self) -> None:
        """Deletes files that are no job's, and uploads that no job was made from for a time."""
        running_since = await self._store.running_since()  # before any file is looked at: a job may begin meanwhile
        now = time.time()
        pages = self._artifacts.pages()
        while not self._is_closing.is_set() and (page := await asyncio.to_thread(next, pages, None)) is not None:
            files = await self._left(page, now, running_since or now)
            if files:
                log.info("deleting %d files that are no job's", len(files))
                await asyncio.to_thread(self._artifacts.delete, files)

    async def _forget(self, some: Callable[[], Awaitable[Forgotten]]) -> None:
        while not self._is_closing.is_set() and (forgotten := await some()).jobs:
            log.info("forgot %d jobs that have ended, and %d files", forgotten.jobs, len(forgotten.files))
            await asyncio.to_thread(self._artifacts.delete, forgotten.files)

    async def _left(self, page: list[Kept], now: float, running_since: float) -> list[str]:
        """Those of a page that nobody will ask for. A track is on disk before its job names it: while that runs."""
        settled = now - SETTLED_AFTER_S
        tracks = _older(page, Kind.TRACK, min(settled, running_since - SETTLED_AFTER_S))
        of_jobs = _older(page, Kind.OF_JOB, settled)
        known_tracks = await self._store.known_tracks(tracks)
        known_jobs = await self._store.known([_job_of(ref) for ref in of_jobs])
        return [
            *(ref for ref in tracks if ref not in known_tracks),
            *(ref for ref in of_jobs if _job_of(ref) not in known_jobs),
            *_older(page, Kind.UPLOAD, now - self._retention.uploads_h * 3600),
            *_older(page, Kind.DRAFT, settled),
        ]

    async def _repeat(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        while not self._is_closing.is_set():
            try:
                await work()
            except Exception:  # whatever the database or the storage raises; the next time may be better
                log.exception("could not delete what is not needed any more; trying again in %g s", every_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), every_s)


def _older(page: list[Kept], kind: Kind, latest: float) -> list[str]:
    return [kept.ref for kept in page if Kind.of(kept.ref) is kind and kept.changed_at < latest]


def _job_of(ref: str) -> str:
    return ref.partition(".")[0]
