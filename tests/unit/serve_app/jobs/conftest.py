"""Both databases, empty for every test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from serve_app.jobs.store import JobStore, QueueLimits
from tests.postgres import Postgres, running

LIMITS = QueueLimits(jobs=5, attempts=2)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running("fsync=off") as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    connection = await asyncpg.connect(server.url)
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await connection.close()
    return server.url


@pytest.fixture
async def store(url: str) -> AsyncIterator[JobStore]:
    store = await JobStore.open(url, LIMITS)
    yield store
    await store.close()
