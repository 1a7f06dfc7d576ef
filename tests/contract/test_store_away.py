"""What callers hear while the job database cannot be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from models.errors import Overloaded, StoreAway
from tests.contract.conftest import FakeDesk

KEYS = {"detail", "data", "code", "error", "timestamp", "extra"}
SAID = "the job database cannot be used just now; try again in a few seconds"


@dataclass
class DeskWithoutStore(FakeDesk):
    """Raises what a store that is away raises, of whatever needs one."""

    async def look_up(self, *_: Any) -> Any:
        raise StoreAway(SAID)

    async def stats(self) -> Any:
        raise StoreAway(SAID)

    async def retry_after_s(self) -> Any:
        raise StoreAway(SAID)

    async def submit(self, *_: Any, **__: Any) -> Any:
        raise Overloaded("Server busy: queue is full") if self.is_full else StoreAway(SAID)


@pytest.fixture
def desk() -> FakeDesk:
    return DeskWithoutStore()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/release_task", {"prompt": "jazz"}),
        ("POST", "/query_result", {"task_id_list": ["job-0"]}),
        ("GET", "/v1/stats", None),
    ],
)
async def test_what_needs_the_store_is_refused_with_when_to_come_back(
    client: httpx.AsyncClient, method: str, path: str, body: object
) -> None:
    reply = await client.request(method, path, json=body)
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert reply.json().keys() == KEYS
    assert (reply.json()["code"], reply.json()["error"]) == (503, SAID)


async def test_health_and_what_needs_no_store_stay_as_they_are(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json()["healthy"] is True
    assert (await client.get("/v1/models")).status_code == 200


async def test_a_full_queue_is_told_though_nobody_can_say_for_how_long(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    desk.is_full = True
    reply = await client.post("/release_task", json={})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")
