"""Claims jobs, runs `make_music` for each, and records what came of it. Knows the store; knows stages only by face."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from models.errors import AceError
from models.music import Progress, Stage
from models.pipeline import Stages, make_music
from serve_app.jobs.job import Job
from serve_app.jobs.store import JobStore, LeaseLost
from serve_app.remote import StageLost

log = logging.getLogger(__name__)

# where each stage's share of a job begins and ends
SPANS = {Stage.ENCODE: (0.01, 0.05), Stage.PLAN: (0.05, 0.5), Stage.DENOISE: (0.5, 0.8), Stage.DECODE: (0.8, 0.99)}


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a conductor looks up. `heartbeat_s` is also how soon it hears that a job was cancelled."""

    jobs: int
    lease_s: float
    poll_s: float = 0.2
    heartbeat_s: float = 1.0


class Conductor:
    """Runs up to `pace.jobs` jobs side by side until told to drain. `stages` has an entry for each variant served."""

    def __init__(self, worker: str, store: JobStore, stages: Mapping[str, Stages], pace: Pace) -> None:
        self._worker = worker
        self._store = store
        self._stages = stages
        self._pace = pace
        self._running: set[asyncio.Task[None]] = set()
        self._nudged = asyncio.Event()
        self._is_draining = False

    def nudge(self) -> None:
        """A job may be waiting: look now rather than at the next poll."""
        self._nudged.set()

    async def work(self) -> None:
        """Claims and runs jobs until `drain`. A store that is away is waited for; nothing else may end the loop."""
        while not self._is_draining:
            self._nudged.clear()  # before looking: a nudge that comes while looking must not be lost
            try:
                job = await self._claim()
            except Exception:  # the store is the one thing this loop cannot choose its errors of
                log.exception("could not claim a job; trying again")
                await asyncio.sleep(self._pace.heartbeat_s)
                continue
            if job is None:
                await self._rest()
                continue
            run = asyncio.create_task(self._run(job), name=f"job {job.id}")
            self._running.add(run)
            run.add_done_callback(self._running.discard)

    async def drain(self) -> None:
        """Stops claiming and gives the running jobs back, so that another conductor takes them at once."""
        self._is_draining = True
        self._nudged.set()
        for run in self._running:
            run.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _claim(self) -> Job | None:
        if len(self._running) >= self._pace.jobs:
            return None
        return await self._store.claim(self._worker, self._pace.lease_s, tuple(self._stages))

    async def _rest(self) -> None:
        try:
            await asyncio.wait_for(self._nudged.wait(), self._pace.poll_s)
        except TimeoutError:
            return

    async def _run(self, job: Job) -> None:
        """One attempt at a job. Whatever happens, the job is finished, given back, or left for its lease to run out."""
        try:
            await self._attempt(job)
        except LeaseLost:
            log.warning("job %s: lease lost; another conductor has it, this result is dropped", job.id)
        except StageLost as error:
            log.warning("job %s: %s; it is claimed again when its lease ends", job.id, error)
        except asyncio.CancelledError:
            await self._store.give_back(job)
        except Exception:
            log.exception("job %s: its outcome could not be stored; it is claimed again when its lease ends", job.id)

    async def _attempt(self, job: Job) -> None:
        making = asyncio.create_task(self._make(job))
        heart = asyncio.create_task(self._beat(job, making))
        try:
            await making
        except asyncio.CancelledError:
            if not heart.done():  # we are told to drain; otherwise the heart stopped the making
                raise
            await heart  # raises LeaseLost where that was the reason
            await self._store.mark_cancelled(job)
        finally:
            making.cancel()
            heart.cancel()
            await asyncio.gather(making, heart, return_exceptions=True)

    async def _make(self, job: Job) -> None:
        """Makes the music and stores the outcome; the one place that may catch everything, since a job must end."""
        meter = _Meter(self._store, job)
        try:
            made = await make_music(job.request, self._stages[job.request.model], meter.show)
        except StageLost:
            raise
        except AceError as error:
            log.warning("job %s failed: %s: %s", job.id, error.code, error)
            await self._store.fail(job, error.code, error.public_message)
        except Exception:
            log.exception("job %s failed", job.id)
            await self._store.fail(job, "internal", "the server failed to make this song (internal)")
        else:
            await self._store.succeed(job, made)
        finally:
            await meter.close()

    async def _beat(self, job: Job, making: asyncio.Task[None]) -> None:
        """Renews the lease; stops the making when the caller cancelled the job or the lease is gone."""
        lost_at = time.monotonic() + self._pace.lease_s
        while True:
            await asyncio.sleep(self._pace.heartbeat_s)
            try:
                is_cancelled = await self._store.renew(job, self._pace.lease_s)
                lost_at = time.monotonic() + self._pace.lease_s
            except LeaseLost:
                making.cancel()
                raise
            except Exception:
                log.exception("job %s: could not renew its lease", job.id)
                is_cancelled = False
                if time.monotonic() > lost_at:
                    making.cancel()
                    raise LeaseLost(f"job {job.id}: the store was away for longer than its lease") from None
            if is_cancelled:
                making.cancel()
                return


class _Meter:
    """Writes a job's newest progress to the store, a few times a second at most."""

    SECONDS_BETWEEN_WRITES = 0.3

    def __init__(self, store: JobStore, job: Job) -> None:
        self._store = store
        self._job = job
        self._newest: Progress | None = None
        self._writing: asyncio.Task[None] | None = None

    def show(self, progress: Progress) -> None:
        self._newest = progress
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)

    async def _write(self) -> None:
        while self._newest is not None:
            progress, self._newest = self._newest, None
            first, last = SPANS[progress.stage]
            share = progress.done / progress.planned if progress.planned else 0.0
            try:
                await self._store.report(self._job, progress.stage, first + (last - first) * share)
            except LeaseLost:
                return  # the heartbeat finds out by itself and stops the job
            await asyncio.sleep(self.SECONDS_BETWEEN_WRITES)
