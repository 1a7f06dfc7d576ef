"""Server-sent events of jobs, over real HTTP: a desk on which jobs go on while callers watch."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import httpx
import pytest
import uvicorn
from httpx_sse import ServerSentEvent, aconnect_sse

from serve_app.dialects.desk import Desk
from serve_app.edge import EdgeOptions, build_api
from serve_app.jobs.job import JobEvent, Status
from tests.contract.conftest import FakeDesk
from tests.contract.native import running, succeeded

STEPS = 6


@dataclass
class LiveDesk(FakeDesk):
    """Watchers are told of events as they happen."""

    happened: asyncio.Condition = field(default_factory=asyncio.Condition)
    watchers: int = 0

    async def watch(self, id_: str, owner: str, after: int = 0) -> AsyncIterator[JobEvent]:
        self.watchers += 1
        try:
            while True:
                async with self.happened:
                    while len(self.events.get(id_, [])) <= after:
                        await self.happened.wait()
                for event in self.events[id_][after:]:
                    yield event
                    if event.status.is_final:
                        return
                    after = event.number
        finally:
            self.watchers -= 1

    async def tell(self, id_: str, status: Status, done: int = 0) -> None:
        index = next(place for place, job in enumerate(self.jobs) if job.id == id_)
        told = self.events.setdefault(id_, [])
        number, progress = len(told) + 1, 1.0 if status.is_final else done / STEPS
        stage = "denoise" if status is Status.RUNNING else status.value
        async with self.happened:
            told.append(JobEvent(number, 1_700_000_000.0 + number, status, stage, done, STEPS, progress))
            if status is not Status.QUEUED:
                self.jobs[index] = (running if status is Status.RUNNING else succeeded)(self.jobs[index])
            self.happened.notify_all()

    async def make(self, id_: str) -> None:
        """From the queue to the end."""
        await self.tell(id_, Status.QUEUED)
        for done in range(STEPS + 1):
            await self.tell(id_, Status.RUNNING, done)
            await asyncio.sleep(0.001)
        await self.tell(id_, Status.SUCCEEDED)


@asynccontextmanager
async def served(desk: FakeDesk) -> AsyncIterator[httpx.AsyncClient]:
    as_desk: Desk = desk
    config = uvicorn.Config(build_api(as_desk, EdgeOptions()), port=0, log_level="warning", ws="none", lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    limits = httpx.Limits(max_connections=None)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, trust_env=False) as client:
            yield client
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
def live() -> LiveDesk:
    return LiveDesk()


@pytest.fixture
async def http(live: LiveDesk) -> AsyncIterator[httpx.AsyncClient]:
    async with served(live) as client:
        yield client


async def watched(client: httpx.AsyncClient, id_: str, at_most: int = 1000) -> list[ServerSentEvent]:
    """Until the stream closes, or so many events that have an id have come."""
    events: list[ServerSentEvent] = []
    async with aconnect_sse(client, "GET", f"/v2/jobs/{id_}/events") as source:
        assert source.response.headers["x-accel-buffering"] == "no"
        async for event in source.aiter_sse():
            events.append(event)
            if sum(event.event == "progress" for event in events) == at_most:
                break
    return events


def numbers(events: list[ServerSentEvent]) -> list[int]:
    return [int(event.id) for event in events if event.event == "progress"]


async def test_a_stream_tells_everything_in_order_and_ends_with_the_job(
    http: httpx.AsyncClient, live: LiveDesk
) -> None:
    await http.post("/v2/jobs", json={})
    making = asyncio.create_task(live.make("job-0"))
    events = await watched(http, "job-0")
    await making
    assert numbers(events) == list(range(1, STEPS + 4))
    progress = [json.loads(event.data)["progress"] for event in events if event.event == "progress"]
    assert progress == sorted(progress)
    assert json.loads(events[-2].data)["status"] == "succeeded"
    assert (events[-1].event, json.loads(events[-1].data)["tracks"][0]["n"]) == ("end", 1)
    assert json.loads(next(event for event in events if event.id == "4").data) == {
        "at": "2023-11-14T22:13:24Z",
        "status": "running",
        "stage": "denoise",
        "steps": {"done": 2, "total": STEPS},
        "progress": 0.3333,
    }


@pytest.mark.parametrize("how", ["header", "query"])
async def test_who_comes_back_misses_nothing_and_hears_nothing_twice(
    http: httpx.AsyncClient, live: LiveDesk, how: str
) -> None:
    await http.post("/v2/jobs", json={})
    making = asyncio.create_task(live.make("job-0"))
    seen: list[int] = []
    while len(seen) < STEPS + 3:
        last = {"last-event-id" if how == "header" else "last_event_id": seen[-1] if seen else 0}
        given = {"headers": {name: str(value) for name, value in last.items()}} if how == "header" else {"params": last}
        async with aconnect_sse(http, "GET", "/v2/jobs/job-0/events", **given) as source:
            async for event in source.aiter_sse():
                if event.event == "progress":
                    seen.append(int(event.id))
                    break
    await making
    assert seen == list(range(1, STEPS + 4))


async def test_fifty_watch_fifty_jobs_at_once(http: httpx.AsyncClient, live: LiveDesk) -> None:
    ids = [(await http.post("/v2/jobs", json={})).json()["id"] for _ in range(50)]
    watching = [asyncio.create_task(watched(http, id_)) for id_ in ids]
    await asyncio.gather(*(live.make(id_) for id_ in ids))
    for id_, events in zip(ids, await asyncio.gather(*watching), strict=True):
        assert numbers(events) == list(range(1, STEPS + 4))
        assert json.loads(events[-1].data)["id"] == id_


async def test_who_leaves_is_watched_for_no_longer(http: httpx.AsyncClient, live: LiveDesk) -> None:
    await http.post("/v2/jobs", json={})
    await live.tell("job-0", Status.QUEUED)
    await watched(http, "job-0", at_most=1)
    while live.watchers:
        await asyncio.sleep(0.005)


async def test_a_stream_begins_with_when_to_come_back_and_is_never_silent_for_long(
    http: httpx.AsyncClient, live: LiveDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.02)
    await http.post("/v2/jobs", json={})
    lines: list[str] = []
    async with http.stream("GET", "/v2/jobs/job-0/events") as reply:
        async for line in reply.aiter_lines():
            lines.append(line)
            if lines.count(": ping") == 2:
                break
    assert "retry: 2000" in lines[:3]


async def test_a_queued_jobs_place_is_told_when_it_changes_and_has_no_id(
    http: httpx.AsyncClient, live: LiveDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.dialects.native.events.PLACE_EVERY_S", 0.01)
    for _ in range(2):
        await http.post("/v2/jobs", json={})
    places: list[dict[str, object]] = []
    async with aconnect_sse(http, "GET", "/v2/jobs/job-1/events") as source:
        async for event in source.aiter_sse():
            if event.event == "place":
                places.append(json.loads(event.data))
                assert event.id == ""
                live.jobs[1] = replace(live.jobs[1], queue_position=1)
                if len(places) == 2:
                    await live.make("job-1")
    assert [place["queue_position"] for place in places] == [2, 1]
    assert all(isinstance(place["eta_seconds"], float) for place in places)


async def test_a_job_that_has_ended_is_told_whole_to_who_comes_late(http: httpx.AsyncClient, live: LiveDesk) -> None:
    await http.post("/v2/jobs", json={})
    await live.make("job-0")
    assert [event.event for event in await watched(http, "job-0")][-1] == "end"


@pytest.mark.parametrize(("seen", "status"), [("x", 422), ("-1", 422), ("99999999999", 422)])
async def test_a_number_that_is_none_is_refused(client: httpx.AsyncClient, seen: str, status: int) -> None:
    await client.post("/v2/jobs", json={})
    reply = await client.get("/v2/jobs/job-0/events", headers={"last-event-id": seen})
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (status, "header last-event-id")


async def test_no_more_watch_than_may(live: LiveDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.dialects.native.STREAMS_AT_ONCE", 1)
    async with served(live) as http:
        await http.post("/v2/jobs", json={})
        await live.tell("job-0", Status.QUEUED)
        async with aconnect_sse(http, "GET", "/v2/jobs/job-0/events") as source:
            await anext(source.aiter_sse())
            refused = await http.get("/v2/jobs/job-0/events")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
            assert refused.json()["type"] == "urn:acestep:problem:too_many_streams"
        while live.watchers:
            await asyncio.sleep(0.005)
        await live.make("job-0")
        assert (await watched(http, "job-0"))[-1].event == "end"
