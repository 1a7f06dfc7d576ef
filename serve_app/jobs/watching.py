"""Jobs as they go on, for any number of watchers at the price of one question at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from models.errors import StoreAway
from serve_app.jobs.job import JobEvent
from serve_app.jobs.store import JobStore

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.25


class Watch:
    """Asks the store for all watched jobs together, and only while there are any."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._waiting: dict[asyncio.Future[None], tuple[int, int]] = {}  # (job's number, events its watcher knows)
        self._looking: asyncio.Task[None] | None = None
        self._is_closed = False

    async def events(self, id_: str, owner: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """What happens to a job behind event `after`, until it has ended; nothing for one that is unknown or somebody
        else's. Events of long ago are left out."""
        while not self._is_closed:
            try:
                seen = await self._store.happened(id_, owner, after)
            except StoreAway:
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
                continue
            if seen is None:
                return
            for event in seen.events:
                yield event
            if seen.is_over:
                return
            after = seen.newest
            await self._change(seen.job, after)

    async def close(self) -> None:
        """Ends every watch."""
        self._is_closed = True
        if self._looking is not None:
            await self._looking

    async def _change(self, job: int, known: int) -> None:
        """Returns once the job has had more events than are known, or is gone."""
        change = asyncio.get_running_loop().create_future()
        self._waiting[change] = (job, known)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await change
        finally:
            del self._waiting[change]

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
            counts = await self._counts()
            for change, (job, known) in self._waiting.items():
                is_news = counts is not None and counts.get(job, known + 1) > known
                if (is_news or self._is_closed) and not change.done():
                    change.set_result(None)

    async def _counts(self) -> dict[int, int] | None:
        try:
            return await self._store.event_counts([*{job for job, _ in self._waiting.values()}])
        except Exception:  # whatever the database raises; watchers wait until it is back
            log.exception("could not look at watched jobs; trying again")
            return None
