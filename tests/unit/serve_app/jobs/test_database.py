"""How the job database is opened and brought up to date."""

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from serve_app.jobs.database import BadDatabase, open_database, refuse_scattered
from serve_app.jobs.job import Priority, Status
from serve_app.jobs.schema import metadata
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.jobs.tally import SPANS_MS
from tests.unit.serve_app.jobs.promises import broken_counts

PROJECT = Path(__file__).resolve().parents[4]
OF_OLD = (Path(__file__).parent / "made_by_create_all.sql").read_text().split(";\n")


async def test_the_migrations_make_the_tables_that_the_statements_know(new_url: str) -> None:
    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    engine = await open_database(new_url)
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


def test_migrations_remember_what_the_code_counts_by() -> None:
    source = (PROJECT / "serve_app/jobs/migrations/versions/r0002_queue.py").read_text()
    assert f"SPANS_MS = ({', '.join(f'{span:_}' if span > 9999 else str(span) for span in SPANS_MS)})" in source
    assert f"created_at + {Priority.NORMAL.handicap_s:.0f}" in source


async def test_a_database_from_before_there_were_migrations_keeps_its_jobs(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'jobs.db'}")
    with engine.begin() as connection:
        for statement in OF_OLD:
            connection.execute(sa.text(statement))
    engine.dispose()
    store = await JobStore.open(f"sqlite:///{tmp_path / 'jobs.db'}", QueueLimits(jobs=5, attempts=2))
    first, second, lost = await store.get(["queued-1", "queued-2", "running"], "anna")
    assert first is not None
    assert second is not None
    assert lost is not None
    assert (first.queue_position, second.queue_position) == (1, 2)
    assert (first.losses, lost.losses) == (0, 1)
    stats = await store.stats()
    assert (stats.queued, stats.running, stats.succeeded, stats.failed) == (2, 1, 1, 1)
    assert stats.failures == {"bad_audio": 1}
    assert await store.known_tracks(["a.mp3", "b.mp3"]) == {"a.mp3"}
    assert await broken_counts(store) == []
    claimed = await store.claim("w", 60, ["acestep-v15-turbo"])
    assert claimed is not None
    assert (claimed.id, claimed.status) == ("queued-1", Status.RUNNING)
    ended = await store.get(["running"], "anna")
    assert ended[0] is not None
    assert ended[0].error_code == "worker_lost"
    await store.close()


async def test_many_may_open_a_new_database_at_once(new_url: str) -> None:
    engines = await asyncio.gather(*(open_database(new_url) for _ in range(4)))
    async with engines[0].connect() as connection:
        assert list(await connection.scalars(sa.text("SELECT version_num FROM alembic_version"))) == ["0005"]
    for engine in engines:
        await engine.dispose()


async def test_a_database_of_a_newer_server_is_refused(new_url: str) -> None:
    engine = await open_database(new_url)
    async with engine.begin() as connection:
        await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    with pytest.raises(BadDatabase, match="9999"):
        await open_database(new_url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://anna:swordfish@host/jobs", "jobs cannot be kept in mysql"),
        ("jobs.db", "postgresql://USER:PASSWORD@HOST/DATABASE"),
    ],
)
async def test_another_kind_of_database_is_refused_with_what_is_allowed(url: str, said: str) -> None:
    with pytest.raises(BadDatabase, match=said) as caught:
        await open_database(url)
    assert "swordfish" not in str(caught.value)


def test_sqlite_is_refused_where_replicas_sit_on_several_hosts() -> None:
    with pytest.raises(BadDatabase, match=r"has 3 hosts; set ACESTEP_DATABASE_URL to postgresql://"):
        refuse_scattered("sqlite:///data/jobs.db", 3)
    refuse_scattered("sqlite:///data/jobs.db", 1)
    refuse_scattered("postgresql://anna:swordfish@host/jobs", 3)
