"""Claims jobs, runs `make_music` for each, and records what came of it. Knows the store; knows stages only by face."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from models.errors import AceError, StoreAway
from models.music import Progress, Stage
from models.pipeline import Stages, make_music
from serve_app.jobs.hints import Hints
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore, LeaseLost
from serve_app.remote import StageLost

log = logging.getLogger(__name__)

# where each stage's share of a job begins and ends
SPANS = {Stage.ENCODE: (0.0, 0.01), Stage.PLAN: (0.01, 0.5), Stage.DENOISE: (0.5, 0.8), Stage.DECODE: (0.8, 0.99)}


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a conductor looks up. `heartbeat_s` is also how soon it hears that a job was cancelled."""

    jobs: int
    lease_s: float
    poll_s: float = 0.2
    hinted_poll_s: float = 2.0  # while the store tells of new jobs; it may miss one
    heartbeat_s: float = 1.0
    away_s: float = 1.0  # until a store that was away is asked again; heartbeats are to come before claims


class Conductor:
    """Runs up to `pace.jobs` jobs side by side until told to drain. `stages` has an entry for each variant served."""

    def __init__(self, worker: str, store: JobStore, stages: Mapping[str, Stages], pace: Pace) -> None:
        self._worker = worker
        self._store = store
        self._stages = stages
        self._pace = pace
        self._attempts: dict[asyncio.Task[None], Attempt] = {}
        self._nudged = asyncio.Event()
        self._is_draining = False

    def nudge(self) -> None:
        """A job may be waiting: look now rather than at the next poll."""
        self._nudged.set()

    async def work(self) -> None:
        """Claims and runs jobs until `drain`. A store that is away is waited for; nothing else may end the loop."""
        hints = self._store.hints()
        listening = asyncio.create_task(hints.listen(self.nudge))
        try:
            while not self._is_draining:
                await self._look(hints)
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        await asyncio.gather(*self._attempts)  # one may have been claimed while the drain began

    async def _look(self, hints: Hints) -> None:
        """For one job; waits a while where there is none."""
        self._nudged.clear()  # before looking: a nudge that comes while looking must not be lost
        job, pause_s = None, self._pace.hinted_poll_s if hints.is_listening else self._pace.poll_s
        try:
            job = await self._claim()
        except StoreAway as error:
            log.warning("could not claim a job: %s", error)
            pause_s = self._pace.away_s
        except Exception:  # a fault of ours, perhaps of one job only
            log.exception("could not claim a job; trying again")
        if job is None:
            await _until_set(self._nudged, pause_s)
        else:
            self._begin(job)

    async def drain(self) -> None:
        """Stops claiming and gives the running jobs back, so that another conductor takes them at once."""
        self._is_draining = True
        self._nudged.set()
        for attempt in self._attempts.values():
            attempt.stop(End.GIVEN_BACK)
        await asyncio.gather(*self._attempts)

    async def _claim(self) -> Job | None:
        if len(self._attempts) >= self._pace.jobs:
            await self._store.reap()
            return None
        return await self._store.claim(self._worker, self._pace.lease_s, tuple(self._stages))

    def _begin(self, job: Job) -> None:
        attempt = Attempt(job, self._store, self._stages[job.request.model], self._pace)
        task = asyncio.create_task(attempt.run(), name=f"job {job.id}")
        self._attempts[task] = attempt
        task.add_done_callback(self._ended)
        if self._is_draining:  # it was claimed while the drain began
            attempt.stop(End.GIVEN_BACK)

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._attempts[task]
        self._nudged.set()


class End(Enum):
    """Why music is stopped before it is done."""

    GIVEN_BACK = auto()
    CANCELLED = auto()
    LEASE_LOST = auto()


class Attempt:
    """One claim of one job: finished, given back, or left for its lease to run out. Only the music is ever cancelled,
    never a write to the store."""

    def __init__(self, job: Job, store: JobStore, stages: Stages, pace: Pace) -> None:
        self._job = job
        self._store = store
        self._pace = pace
        self._meter = _Meter(store, job)
        self._music = asyncio.ensure_future(make_music(job.request, stages, self._meter.show, job.deadline_s))
        self._is_over = asyncio.Event()
        self._held_until = time.monotonic() + pace.lease_s
        self._end: End | None = None

    def stop(self, end: End) -> None:
        """Once: a second time would interrupt what the first is waiting for."""
        if self._end is None:
            self._end = end
            self._music.cancel()

    async def run(self) -> None:
        heart = asyncio.create_task(self._beat())
        await asyncio.wait([self._music])
        await self._meter.close()
        await self._record_while_held()
        self._is_over.set()
        await heart

    async def _record_while_held(self) -> None:
        """Again and again while the store is away, as long as the job is held: a song is dear, a write is not."""
        while True:
            try:
                return await self._record()
            except StoreAway as error:
                if time.monotonic() > self._held_until:
                    log.error("job %s: its end could not be stored while it was held: %s", self._job.id, error)
                    return None
                log.warning("job %s: its end is not stored yet: %s", self._job.id, error)
                await asyncio.sleep(self._pace.away_s)
            except LeaseLost:
                log.warning(
                    "job %s: it has ended or another conductor has it; what was made here is dropped", self._job.id
                )
                return None
            except Exception:  # a fault of ours; the job is claimed again when its lease ends
                log.exception("job %s: its end could not be stored", self._job.id)
                return None

    async def _record(self) -> None:
        """The one place that looks at every kind of error, since a job must end."""
        job, store = self._job, self._store
        if self._music.cancelled():
            if self._end is End.GIVEN_BACK:
                await store.give_back(job)
            elif self._end is End.CANCELLED:
                await store.mark_cancelled(job)
            return
        error = self._music.exception()
        if error is None:
            await store.succeed(job, self._music.result())
        elif isinstance(error, StageLost):
            log.warning("job %s: %s; it is claimed again when its lease ends", job.id, error)
        elif isinstance(error, AceError):
            log.warning("job %s failed: %s: %s", job.id, error.code, error)
            await store.fail(job, error.code, error.public_message)
        else:
            log.error("job %s failed", job.id, exc_info=error)
            await store.fail(job, AceError.code, "the server failed to make this song (internal)")

    async def _beat(self) -> None:
        """Renews the lease; stops the music when the caller cancelled the job or the lease is gone."""
        while not await _until_set(self._is_over, self._pace.heartbeat_s):
            asked_at = time.monotonic()
            try:
                if await self._store.renew(self._job, self._pace.lease_s):
                    self.stop(End.CANCELLED)
                self._held_until = asked_at + self._pace.lease_s
            except LeaseLost:
                self.stop(End.LEASE_LOST)
            except Exception as error:  # the store may be back before the lease ends
                log.warning("job %s: could not renew its lease: %r", self._job.id, error)
                if time.monotonic() > self._held_until:
                    self.stop(End.LEASE_LOST)


class _Meter:
    """Writes a job's newest progress to the store, a few times a second at most."""

    SECONDS_BETWEEN_WRITES = 0.4

    def __init__(self, store: JobStore, job: Job) -> None:
        self._store = store
        self._job = job
        self._newest: Progress | None = None
        self._is_closed = asyncio.Event()
        self._writing: asyncio.Task[None] | None = None

    def show(self, progress: Progress) -> None:
        self._newest = progress
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """What was not written yet is not worth it any more."""
        self._newest = None
        self._is_closed.set()
        if self._writing is not None:
            await self._writing

    async def _write(self) -> None:
        while (progress := self._newest) is not None:
            self._newest = None
            first, last = SPANS[progress.stage]
            share = progress.done / progress.planned if progress.planned else 0.0
            try:
                reached = first + (last - first) * share
                await self._store.report(self._job, progress.stage, reached, progress.done, progress.planned)
            except LeaseLost:
                return  # the heartbeat finds out by itself and stops the music
            except Exception as error:  # progress is not worth failing for
                log.warning("job %s: could not write its progress: %r", self._job.id, error)
            await _until_set(self._is_closed, self.SECONDS_BETWEEN_WRITES)


async def _until_set(event: asyncio.Event, at_most_s: float) -> bool:
    """Whether the event was set within that time."""
    try:
        await asyncio.wait_for(event.wait(), at_most_s)
    except TimeoutError:
        return False
    return True
