import asyncio
from collections.abc import AsyncIterator

import pytest

from serve_app.jobs.job import JobEvent, Status
from serve_app.jobs.store import JobStore
from serve_app.jobs.watching import Watch
from tests.unit.serve_app.jobs.test_store import MADE, claim, claim_new, request

pytestmark = pytest.mark.real


@pytest.fixture
async def watch(store: JobStore) -> AsyncIterator[Watch]:
    watch = Watch(store)
    yield watch
    await watch.close()


async def all_of(watch: Watch, id_: str, owner: str = "", after: int = 0) -> list[JobEvent]:
    return [event async for event in watch.events(id_, owner, after)]


async def test_many_watchers_see_every_event_of_their_jobs_to_the_end(store: JobStore, watch: Watch) -> None:
    jobs = [await store.submit(request(), "") for _ in range(3)]
    watching = [asyncio.create_task(all_of(watch, job.id)) for job in jobs for _ in range(3)]
    for _ in jobs:
        held = await claim(store)
        for step in range(4):
            await store.report(held, "denoise", step / 8, step, 8)
            await asyncio.sleep(0.1)
        await store.succeed(held, MADE)
    for events in await asyncio.gather(*watching):
        assert [event.number for event in events] == [1, 2, 3, 4, 5, 6, 7]
        assert events[-1].status is Status.SUCCEEDED


async def test_a_watcher_who_comes_back_misses_nothing(store: JobStore, watch: Watch) -> None:
    held = await claim_new(store)
    first = [event async for event in _some(watch, held.id, 2)]
    await store.report(held, "plan", 0.1)
    await store.succeed(held, MADE)
    rest = await all_of(watch, held.id, after=first[-1].number)
    assert [event.number for event in first + rest] == [1, 2, 3, 4]


@pytest.mark.parametrize("after", [2, 99])
async def test_a_watcher_who_knows_all_there_is_waits_for_what_comes(store: JobStore, watch: Watch, after: int) -> None:
    held = await claim_new(store)
    watching = asyncio.create_task(all_of(watch, held.id, after=after))
    await asyncio.sleep(0.1)
    await store.succeed(held, MADE)
    assert [event.number for event in await watching] == [3]


async def test_a_job_that_has_ended_or_is_not_theirs_keeps_nobody_waiting(store: JobStore, watch: Watch) -> None:
    held = await claim_new(store)
    await store.succeed(held, MADE)
    assert await all_of(watch, held.id, after=3) == []
    assert await all_of(watch, held.id, "bert") == []
    assert await all_of(watch, "never") == []


async def test_a_forgotten_job_ends_its_watch(store: JobStore, watch: Watch) -> None:
    job = await store.submit(request(), "")
    watching = asyncio.create_task(all_of(watch, job.id, after=1))
    await asyncio.sleep(0.1)
    await store.cancel(job.id, "")
    await store.forget(age_s=0)
    assert [event.status for event in await watching] in ([], [Status.CANCELLED])  # it may have looked in between


async def test_closing_ends_every_watch(store: JobStore, watch: Watch) -> None:
    job = await store.submit(request(), "")
    watching = asyncio.create_task(all_of(watch, job.id))
    await asyncio.sleep(0.1)
    await watch.close()
    assert [event.number for event in await watching] == [1]


async def _some(watch: Watch, id_: str, count: int) -> AsyncIterator[JobEvent]:
    async for event in watch.events(id_, ""):
        yield event
        count -= 1
        if count == 0:
            return
