"""Jobs through two conductors and a network that fails, one of them killed now and then: each ends exactly once."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Row

from models.errors import StoreAway
from models.music import Made, MusicRequest
from serve_app.conductor import Pace
from serve_app.jobs.database import Patience
from serve_app.jobs.job import Idempotency, Status, Terms
from serve_app.jobs.store import JobStore
from tests.postgres import Postgres
from tests.proxy import Proxy, Weather, proxied
from tests.unit.serve_app.jobs.conftest import run
from tests.unit.serve_app.jobs.promises import broken_counts, rows_of
from tests.unit.serve_app.jobs.working import LIMITS, TURBO, Diary, work

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[4]
BRISK = Pace(jobs=4, lease_s=1.5, poll_s=0.1, hinted_poll_s=0.3, heartbeat_s=0.4, away_s=0.1)
QUICK = Patience(ping_s=0.1, connect_s=0.3, answer_s=0.4, stalled_s=0.2)
NOTES_OF_ENDS = (
    "CREATE TABLE ends (job bigint, status text)",
    """CREATE FUNCTION note_end() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN INSERT INTO ends VALUES (NEW.number, NEW.status); RETURN NEW; END $$""",
    """CREATE TRIGGER note_end AFTER UPDATE ON jobs FOR EACH ROW
       WHEN (NEW.finished_at IS NOT NULL
             AND (OLD.status, OLD.made, OLD.error_code) IS DISTINCT FROM (NEW.status, NEW.made, NEW.error_code))
       EXECUTE FUNCTION note_end()""",
)


@pytest.fixture
async def near(postgres: Postgres) -> AsyncIterator[JobStore]:
    """The store without the network, in a database that notes whenever a job ends."""
    await run(postgres.url, "DROP DATABASE IF EXISTS weather", "CREATE DATABASE weather")
    store = await JobStore.open(postgres.url_of("weather"), LIMITS)
    await run(postgres.url_of("weather"), *NOTES_OF_ENDS)
    yield store
    await store.close()


async def submit(store: JobStore, number: int) -> str:
    """As a caller does who is told 503: again, under the same key."""
    terms = Terms(idempotency=Idempotency(str(number), "a body"))
    while True:
        try:
            return (await store.submit(MusicRequest(model=TURBO, seeds=(number,)), "", terms)).id
        except StoreAway:
            await asyncio.sleep(0.05)


async def submit_all(store: JobStore, jobs: int, over_s: float, callers: int = 8) -> dict[int, str]:
    """Ids by numbers, which are seeds, too."""
    numbers, ids = iter(range(1, jobs + 1)), {}

    async def call() -> None:
        for number in numbers:
            ids[number] = await submit(store, number)
            await asyncio.sleep(over_s * callers / jobs)

    await asyncio.gather(*(call() for _ in range(callers)))
    return ids


async def change_weather(proxy: Proxy, random: Random, longest_s: float) -> None:
    """Until cancelled. Every other weather is one that lets something through."""
    while True:
        for kinds in ((Weather.FAIR, Weather.SLOW), (Weather.HALF_OPEN, Weather.CUT, Weather.SLOW)):
            await proxy.change(random.choice(kinds))
            await asyncio.sleep(random.uniform(0.1, 1) * longest_s)


async def all_ended(store: JobStore, jobs: int) -> None:
    while (stats := await store.stats()).queued or stats.running or stats.total < jobs:
        await asyncio.sleep(0.1)


async def check(near: JobStore, url: str, ids: dict[int, str], folder: Path) -> Counter[str]:
    """How the jobs ended."""
    rows: dict[str, Row[Any]] = {row.id: row for row in await rows_of(near)}
    assert rows.keys() == set(ids.values())
    assert len(rows) == len(ids)
    connection = await asyncpg.connect(url)
    ends = await connection.fetch("SELECT * FROM ends")
    await connection.close()
    assert sorted((end["job"], end["status"]) for end in ends) == sorted((r.number, r.status) for r in rows.values())
    assert await broken_counts(near) == []

    made = {ref: int(seed) for seed, ref in Diary(folder / "made").read()}
    kept = {row.id: Made.model_validate_json(row.made).tracks[0].ref for row in rows.values() if row.made}
    assert {id_: made[ref] for id_, ref in kept.items()} == {ids[n]: n for n in ids if ids[n] in kept}
    for id_, ref in Diary(folder / "stored").read():  # who was told so can rely on it
        assert kept[id_] == ref
    for row in rows.values():
        assert row.status == Status.SUCCEEDED or (row.error_code, row.losses) == ("worker_lost", LIMITS.attempts)
    return Counter(row.status for row in rows.values())


@asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs them as long as the block; none of them may fail meanwhile."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each) for each in works]
        yield
        for task in tasks:
            task.cancel()


async def test_every_job_ends_once_though_the_network_fails(near: JobStore, postgres: Postgres, tmp_path: Path) -> None:
    async with asyncio.timeout(100), proxied(postgres.socket, delay_s=0.005, noticed_s=0.5) as proxy:
        url = proxy.url_of("weather")
        far = await JobStore.open(url, LIMITS, QUICK)
        async with beside(*(work(url, tmp_path, name, BRISK, 0.05, QUICK) for name in ("first", "second"))):
            async with beside(change_weather(proxy, Random(5), longest_s=0.5)):
                ids = await submit_all(far, jobs=30, over_s=1)
            await proxy.change(Weather.FAIR)
            await all_ended(near, 30)
        await far.close()
    ended = await check(near, postgres.url_of("weather"), ids, tmp_path)
    assert ended[Status.SUCCEEDED] > 25


@asynccontextmanager
async def conductors(url: str, folder: Path, random: Random, every_s: float) -> AsyncIterator[None]:
    """Two processes, one of which is killed and replaced now and then."""
    names = map(str, itertools.count())

    async def begin() -> asyncio.subprocess.Process:
        module = ("-m", "tests.unit.serve_app.jobs.working")
        with (folder / "log").open("ab") as log:
            return await asyncio.create_subprocess_exec(
                sys.executable, *module, url, str(folder), next(names), cwd=ROOT, stderr=log
            )

    async def kill_now_and_then() -> None:
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) * every_s)
            victim = running.pop(0)
            victim.kill()
            await victim.wait()
            running.append(await begin())

    running = [await begin(), await begin()]
    try:
        async with beside(kill_now_and_then()):
            yield
    finally:
        for process in running:
            process.kill()
            await process.wait()


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_a_thousand_jobs_end_once_each_though_the_network_fails_and_conductors_are_killed(
    near: JobStore, postgres: Postgres, tmp_path: Path
) -> None:
    random = Random(7)
    async with asyncio.timeout(1100), proxied(postgres.socket) as proxy:
        url = proxy.url_of("weather")
        far = await JobStore.open(url, LIMITS)
        async with conductors(url, tmp_path, random, every_s=30), beside(change_weather(proxy, random, longest_s=10)):
            ids = await submit_all(far, jobs=1000, over_s=150)
            await all_ended(near, 1000)
        await far.close()
    ended = await check(near, postgres.url_of("weather"), ids, tmp_path)
    assert ended[Status.SUCCEEDED] > 950
