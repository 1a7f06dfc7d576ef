"""What holds after any fault: an accepted job ended exactly once, with the song it would have been without it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from serve_app.jobs.job import Status
from serve_app.jobs.schema import jobs
from tests.chaos.crowd import SONGS, Asked, song
from tests.e2e.conftest import Client


@dataclass(frozen=True, slots=True)
class Kept:
    """A job's row."""

    id: str
    number: int
    status: Status
    worker: str | None
    attempt: int
    error_code: str | None
    files: tuple[str, ...]


def kept_jobs(url: str, after: int = 0) -> list[Kept]:
    """Of a server's database, those submitted after that number. Takes no lock that a halted process could hold."""

    async def read() -> list[Kept]:
        engine = create_async_engine(url)
        try:
            async with engine.connect() as connection:
                rows = (await connection.execute(select(jobs).where(jobs.c.number > after))).all()
        finally:
            await engine.dispose()
        return [
            Kept(row.id, row.number, Status(row.status), row.worker, row.attempt, row.error_code, _files(row))
            for row in rows
        ]

    return asyncio.run(read())


def _files(row: Any) -> tuple[str, ...]:
    return tuple(track["ref"] for track in json.loads(row.made)["tracks"]) if row.made else ()


def undisturbed(address: str) -> dict[int, str]:
    """Each song's SHA-256, made one at a time on a calm server."""
    client = Client(address)
    try:
        return {number: sha256(client.fetch(client.wait(client.ask(**song(number)))[0])) for number in range(SONGS)}
    finally:
        client.close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_ends(asked: dict[str, Asked], kept: list[Kept]) -> None:
    """Exactly one final state each, the one its caller was told; of jobs whose caller was never answered as well."""
    by_id = {job.id: job for job in kept}
    assert [id_ for id_ in asked if id_ not in by_id] == [], "accepted, and lost"
    assert [job for job in kept if job.status is not Status.SUCCEEDED] == []
    for id_, one in asked.items():
        assert one.is_made, one.entry
        (item,) = json.loads(one.entry["result"])
        assert by_id[id_].files == (httpx.URL(item["file"]).params["path"],), "told of another result than is kept"
    published = Counter(file for job in kept for file in job.files)
    assert [file for file, times in published.items() if times > 1] == []


def check_songs(address: str, asked: dict[str, Asked], reference: dict[int, str]) -> None:
    """As a caller fetches them."""
    client = Client(address)
    try:
        for one in asked.values():
            assert sha256(client.fetch(json.loads(one.entry["result"])[0])) == reference[one.number], one
    finally:
        client.close()


def check_files(audio: Path, kept: list[Kept], retried: int, reference: dict[int, str]) -> None:
    """Every file is a whole song. Those that no job names are of tries that were lost, and nobody is told of them."""
    there = {path.name: path for path in audio.glob("*/[!.]*")}
    named = {file for job in kept for file in job.files}
    assert named - there.keys() == set()
    assert {sha256(path.read_bytes()) for path in there.values()} <= set(reference.values())
    assert len(there.keys() - named) <= retried
