"""Both databases: `new_url` of one without tables, `url` of one with tables and nothing in them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from serve_app.jobs.database import open_database
from serve_app.jobs.schema import metadata
from serve_app.jobs.store import JobStore, QueueLimits
from tests.postgres import Postgres, running

DATABASES = ("sqlite", pytest.param("postgresql", marks=pytest.mark.real))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with running("fsync=off") as server:
        yield server


@pytest.fixture(params=DATABASES)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    asyncio.run(run(server.url, "DROP DATABASE IF EXISTS new", "CREATE DATABASE new"))
    return server.url_of("new")


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "jobs.db")
        return f"sqlite:///{tmp_path / 'jobs.db'}"
    url: str = request.getfixturevalue("migrated_url")
    asyncio.run(run(url, *(f"DELETE FROM {table}" for table in metadata.tables)))
    return url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "jobs.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def migrated_url(postgres: Postgres) -> str:
    asyncio.run(migrate(postgres.url))
    return postgres.url


@pytest.fixture
def limits() -> QueueLimits:
    return QueueLimits(jobs=5, attempts=2)


@pytest.fixture
async def store(url: str, limits: QueueLimits) -> AsyncIterator[JobStore]:
    store = await JobStore.open(url, limits)
    yield store
    await store.close()


async def migrate(url: str) -> None:
    await (await open_database(url)).dispose()


async def run(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()
