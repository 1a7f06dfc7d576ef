"""A database that is cut off, half open, locked or not there: told in one way and in good time."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError

from models.errors import StoreAway
from models.music import MusicRequest
from serve_app.jobs.away import telling_away
from serve_app.jobs.database import Patience
from serve_app.jobs.job import Status
from serve_app.jobs.store import JobStore, QueueLimits
from tests.postgres import Postgres
from tests.proxy import Proxy, Weather, proxied

pytestmark = pytest.mark.real

LIMITS = QueueLimits(jobs=100, attempts=2)
SHORT = Patience(ping_s=0.1, connect_s=0.3, answer_s=0.4, stalled_s=0.2)
REQUEST = MusicRequest(model="acestep-v15-turbo", seeds=(1,))


@pytest.fixture
async def proxy(postgres: Postgres) -> AsyncIterator[Proxy]:
    async with proxied(postgres.socket, noticed_s=0.5) as proxy:
        yield proxy


@pytest.fixture
async def far(proxy: Proxy, migrated_url: str) -> AsyncIterator[JobStore]:
    """A store behind the proxy; `migrated_url` is of the same database."""
    async with opened(proxy.url_of("postgres")) as store:
        yield store


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[JobStore]:
    store = await JobStore.open(url, LIMITS, SHORT)
    yield store
    await store.close()


@pytest.mark.parametrize("weather", [Weather.HALF_OPEN, Weather.CUT])
async def test_a_store_that_is_cut_off_says_so_and_serves_as_soon_as_it_is_back(
    far: JobStore, proxy: Proxy, weather: Weather
) -> None:
    await asyncio.gather(*(far.stats() for _ in range(5)))
    await proxy.change(weather)
    for _ in range(2):
        with pytest.raises(StoreAway, match="try again in a few seconds"):
            await far.submit(REQUEST, "")
    await proxy.change(Weather.FAIR)
    assert (await far.submit(REQUEST, "")).status is Status.QUEUED
    await asyncio.gather(*(far.ping() for _ in range(5)))


async def test_connections_that_went_dead_while_unused_are_replaced_before_anybody_notices(
    far: JobStore, proxy: Proxy
) -> None:
    await asyncio.gather(*(far.stats() for _ in range(5)))
    await proxy.change(Weather.HALF_OPEN)
    await proxy.change(Weather.FAIR)
    await asyncio.gather(*(far.submit(REQUEST, "") for _ in range(5)))


async def test_more_callers_than_connections_are_all_answered(far: JobStore, proxy: Proxy) -> None:
    await proxy.change(Weather.HALF_OPEN)
    answers = await asyncio.gather(*(far.stats() for _ in range(40)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreAway}


async def test_a_connection_that_lives_is_used_again(far: JobStore) -> None:
    opened: list[object] = []
    event.listen(far._engine.sync_engine, "connect", lambda connection, _: opened.append(connection))
    for _ in range(5):
        await far.submit(REQUEST, "")
    assert len(opened) == 1


async def test_a_lock_that_is_not_to_be_had_is_not_waited_for_for_ever(far: JobStore, migrated_url: str) -> None:
    other = await asyncpg.connect(migrated_url)
    async with other.transaction():
        await other.execute("LOCK TABLE jobs")
        with pytest.raises(StoreAway):
            await far.submit(REQUEST, "")
    await other.close()
    await far.submit(REQUEST, "")


async def test_a_locked_file_is_told_and_over_when_it_is_over(tmp_path: Path, migrated_file: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(migrated_file.read_bytes())
    async with opened(f"sqlite:///{path}") as store:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreAway):
            await store.submit(REQUEST, "")
        assert (await store.stats()).total == 0  # who only reads does not wait
        holder.execute("COMMIT")
        holder.close()
        assert (await store.submit(REQUEST, "")).status is Status.QUEUED


async def test_a_file_that_can_only_be_read_is_told(tmp_path: Path, migrated_file: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(migrated_file.read_bytes())
    async with opened(f"sqlite:///file:{path}?mode=ro&uri=true") as store:
        assert (await store.stats()).total == 0
        with pytest.raises(StoreAway):
            await store.submit(REQUEST, "")


async def test_a_store_that_is_not_there_yet_is_waited_for(
    proxy: Proxy, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.jobs.store.SECONDS_BETWEEN_OPENINGS", 0.02)
    url = proxy.url_of("postgres")
    await proxy.change(Weather.CUT)
    opening = asyncio.create_task(JobStore.open_when_there(url, LIMITS))
    await asyncio.wait([opening], timeout=0.1)
    assert not opening.done()
    await proxy.change(Weather.FAIR)
    store = await opening
    await store.ping()
    await store.close()


async def test_a_statement_that_is_wrong_is_nobody_elses_fault(url: str) -> None:
    async with opened(url) as store:
        with pytest.raises(DBAPIError, match="nowhere"), telling_away():
            async with store._engine.connect() as connection:
                await connection.execute(text("SELECT * FROM nowhere"))
