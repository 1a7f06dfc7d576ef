"""Conductors are told of jobs rather than finding them by looking, where the database can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from models.music import MusicRequest
from serve_app.jobs import hints as module
from serve_app.jobs.hints import Hints
from serve_app.jobs.store import JobStore, QueueLimits
from tests.postgres import Postgres
from tests.proxy import Proxy, Weather, proxied

pytestmark = pytest.mark.real

TURBO = "acestep-v15-turbo"
REQUEST = MusicRequest(model=TURBO, seeds=(1,))

only_postgresql = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


@pytest.fixture
async def proxy(postgres: Postgres) -> AsyncIterator[Proxy]:
    async with proxied(postgres.socket) as proxy:
        yield proxy


@contextmanager
def listening(hints: Hints, heard: asyncio.Event) -> Iterator[asyncio.Task[None]]:
    task = asyncio.create_task(hints.listen(heard.set))
    yield task
    task.cancel()


async def hear(heard: asyncio.Event) -> None:
    async with asyncio.timeout(5):
        await heard.wait()
    heard.clear()


@only_postgresql
async def test_a_job_that_comes_or_comes_back_is_told_to_all_who_listen(store: JobStore, url: str) -> None:
    other = await JobStore.open(url, QueueLimits(jobs=5, attempts=2))
    ours, theirs = asyncio.Event(), asyncio.Event()
    with listening(store.hints(), ours), listening(other.hints(), theirs):
        await asyncio.gather(hear(ours), hear(theirs))  # each looks once when it begins to listen
        await store.submit(REQUEST, "")
        await asyncio.gather(hear(ours), hear(theirs))
        claimed = await other.claim("w", 60, [TURBO])
        assert claimed is not None
        await other.give_back(claimed)
        await asyncio.gather(hear(ours), hear(theirs))
    await other.close()


@only_postgresql
@pytest.mark.parametrize("weather", [Weather.CUT, Weather.HALF_OPEN])
async def test_who_listens_does_so_again_when_the_connection_is_lost(
    store: JobStore, proxy: Proxy, weather: Weather, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_TRIES", 0.02)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SIGNS", 0.05)
    far = await JobStore.open(proxy.url_of("postgres"), QueueLimits(jobs=5, attempts=2))
    hints, heard = far.hints(), asyncio.Event()
    with listening(hints, heard):
        await hear(heard)
        await proxy.change(weather)
        async with asyncio.timeout(5):
            while hints.is_listening:
                await asyncio.sleep(0.01)
        await proxy.change(Weather.FAIR)
        await hear(heard)
        await store.submit(REQUEST, "")
        await hear(heard)
    await far.close()


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_file_tells_nothing_and_listening_ends_at_once(store: JobStore) -> None:
    hints = store.hints()
    await hints.listen(lambda: None)
    assert not hints.is_listening
