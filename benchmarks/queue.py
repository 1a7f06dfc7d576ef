"""How long the job store takes with a short and with a long queue: `python -m benchmarks.queue`.

Prints a table for people and, as its last line, one JSON document. Times are medians in ms of calls made one after
the other, each with its commit on disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from models.music import MusicRequest
from serve_app.jobs.database import open_database
from serve_app.jobs.job import Job, Priority, Status
from serve_app.jobs.schema import jobs
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.jobs.tally import Counted, Tally
from tests.postgres import running

MODELS = ("acestep-v15-turbo", "acestep-v15-base")
LIMITS = QueueLimits(jobs=10**9, attempts=3)
LENGTHS = (1_000, 100_000)
MS_APART = 5  # how far apart the jobs of a long queue came


def request(model: str) -> MusicRequest:
    return MusicRequest(model=model, seeds=(1,), prompt="warm folk, fingerpicked guitar", lyrics="Stay a while\n" * 20)


async def fill(url: str, length: int) -> list[str]:
    """Queues jobs as if they had come in the last minutes, many a transaction; their ids."""
    engine = await open_database(url)
    text = {model: request(model).model_dump_json() for model in MODELS}
    first_ms = int(time.time() * 1000) - length * MS_APART
    ids = [f"job-{number}" for number in range(length)]
    async with engine.begin() as connection:
        for start in range(0, length, 10_000):
            tally = Tally()
            rows: list[dict[str, Any]] = []
            for number in range(start, min(start + 10_000, length)):
                model = MODELS[number % len(MODELS)]
                came_ms = first_ms + number * MS_APART
                turn = came_ms + int(Priority.NORMAL.handicap_s * 1000)
                owner = f"owner-{number % 50}"
                tally.add(Counted(Status.QUEUED, owner, turn))
                rows.append(
                    {
                        "id": ids[number],
                        "owner": owner,
                        "status": Status.QUEUED,
                        "stage": Status.QUEUED,
                        "model": model,
                        "request": text[model],
                        "created_at": came_ms / 1000,
                        "turn": turn,
                    }
                )
            await connection.execute(insert(jobs), rows)
            await tally.write(connection)
    await engine.dispose()
    return ids


async def median_ms(call: Callable[[int], Awaitable[object]], calls: int) -> float:
    seconds = []
    for index in range(calls):
        began = time.perf_counter()
        await call(index)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000


async def measure(url: str, length: int, calls: int) -> dict[str, float]:
    store = await JobStore.open(url, LIMITS)
    ids = await fill(url, length)
    held: list[Job] = []

    async def claim(_: int) -> None:
        job = await store.claim("benchmark", 600, MODELS)
        assert job is not None
        held.append(job)

    async def submit(_: int) -> None:
        await store.submit(request(MODELS[0]), "owner-1")

    async def read(index: int) -> None:
        number = length - 1 - index * (length // calls)
        (job,) = await store.get([ids[number]], f"owner-{number % 50}")
        assert job is not None

    async def cancel(index: int) -> None:
        number = length // 2 + index
        job = await store.cancel(ids[number], f"owner-{number % 50}")
        assert job is not None
        assert job.status == Status.CANCELLED

    verbs: dict[str, Callable[[int], Awaitable[object]]] = {
        "submit": submit,
        "position": read,
        "claim": claim,
        "renew": lambda index: store.renew(held[index], 600),
        "report": lambda index: store.report(held[index], "plan", 0.5),
        "fail": lambda index: store.fail(held[index], "bad_audio", "silence"),
        "cancel": cancel,
        "stats": lambda _: store.stats(),
    }
    await submit(0)  # what is compiled and opened once is not what is measured
    await read(0)
    await store.stats()
    medians = {name: await median_ms(call, calls) for name, call in verbs.items()}
    await store.close()
    return medians


def measure_sqlite(length: int, calls: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(measure(f"sqlite:///{Path(folder) / 'jobs.db'}", length, calls))


def measure_postgresql(length: int, calls: int) -> dict[str, float]:
    with running() as server:
        return asyncio.run(measure(server.url, length, calls))


DATABASES = {"sqlite": measure_sqlite, "postgresql": measure_postgresql}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue", description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="queued jobs")
    parser.add_argument("--calls", type=int, default=200, help="of each kind")
    options = parser.parse_args()
    rows = [
        {"database": name, "queued": length, **{verb: round(ms, 2) for verb, ms in run(length, options.calls).items()}}
        for name, run in DATABASES.items()
        for length in options.lengths
    ]
    for cells in (list(rows[0]), *(row.values() for row in rows)):
        sys.stdout.write("".join(f"{cell!s:>11}" for cell in cells) + "\n")
    sys.stdout.write(json.dumps({"benchmark": "queue", "unit": "ms, median", "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
