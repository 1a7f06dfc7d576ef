"""How the native API tells of jobs: statuses, headers, problems, keys, pages; and whole jobs beside golden files."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.music import MusicRequest
from serve_app.jobs.job import Status
from tests.contract.native import failed, running, succeeded

if TYPE_CHECKING:
    from tests.contract.conftest import Connect, FakeDesk

GOLDEN = Path(__file__).parent / "golden" / "native"
BECOMES = {"queued": lambda job: job, "running": running, "succeeded": succeeded, "failed": failed}
KEY = "sesame"
WITH_KEY = {"authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
async def test_a_golden_request_is_understood_and_answered_as_ever(
    client: httpx.AsyncClient, desk: FakeDesk, path: Path
) -> None:
    golden = json.loads(path.read_text())
    asked = await client.post("/v2/jobs", json=golden["body"])
    if golden["becomes"] is not None:
        assert asked.status_code == 202
        desk.jobs[0] = BECOMES[golden["becomes"]](desk.jobs[0])
        seen = desk.jobs[0].request.model_dump(mode="json", exclude_defaults=True)
        assert seen == golden["request"]
        asked = await client.get(asked.headers["location"])
        assert MusicRequest.model_validate(asked.json()["request"]) == desk.jobs[0].request
    reply = {name: value for name, value in asked.json().items() if name != "request"}
    assert (asked.status_code, reply) == (golden["status"], golden["reply"])


async def test_a_job_that_was_taken_says_where_it_is_and_when_to_look(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v2/jobs", json={})
    assert (reply.status_code, reply.json()["status"], reply.json()["queue_position"]) == (202, "queued", 1)
    assert (reply.headers["location"], reply.headers["retry-after"]) == ("/v2/jobs/job-0", "5")
    assert reply.json()["links"] == {"self": "/v2/jobs/job-0", "events": "/v2/jobs/job-0/events"}


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=5", "wait=5"),
        ("respond-async, wait=5", "wait=5"),
        ('Wait="7"; foo=bar', "wait=7"),
        ("wait=100000", "wait=60"),
        ("wait=soon", None),
        ("wait=-1", None),
        ("respond-async", None),
        ("", None),
    ],
)
async def test_a_caller_may_wait_for_the_finished_job(
    client: httpx.AsyncClient, desk: FakeDesk, prefer: str, applied: str | None
) -> None:
    desk.becomes = succeeded
    reply = await client.post("/v2/jobs", json={}, headers={"prefer": prefer})
    assert reply.headers.get("preference-applied") == applied
    assert (reply.status_code, reply.json()["status"]) == ((200, "succeeded") if applied else (202, "queued"))
    assert reply.headers["location"] == "/v2/jobs/job-0"
    assert ("retry-after" in reply.headers) == (applied is None)


async def test_who_waited_in_vain_is_told_as_if_they_had_not(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.becomes = running
    reply = await client.post("/v2/jobs", json={}, headers={"prefer": "wait=1"})
    assert (reply.status_code, reply.headers["preference-applied"], reply.json()["stage"]) == (202, "wait=1", "denoise")


async def test_nobody_waits_where_too_many_do(
    connect: Connect, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.dialects.native.STREAMS_AT_ONCE", 0)
    desk.becomes = succeeded
    async with connect(cors_origins=("https://own.example",)) as client:
        reply = await client.post("/v2/jobs", json={}, headers={"prefer": "wait=5"})
    assert (reply.status_code, "preference-applied" in reply.headers) == (202, False)


async def test_a_request_sent_twice_under_one_key_is_one_job(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    for key in ("abc", '"abc"'):
        reply = await client.post("/v2/jobs", json={"prompt": "x"}, headers={"idempotency-key": key})
        assert (reply.status_code, reply.json()["id"]) == (202, "job-0")
    assert len(desk.jobs) == 1


async def test_one_key_for_two_requests_is_refused(client: httpx.AsyncClient) -> None:
    for prompt, status in (("x", 202), ("y", 422)):
        reply = await client.post("/v2/jobs", json={"prompt": prompt}, headers={"idempotency-key": "abc"})
        assert reply.status_code == status
    assert reply.json()["type"] == "urn:acestep:problem:idempotency_conflict"


@pytest.mark.parametrize("key", ["", '""', "x" * 256])
async def test_a_key_that_is_none_is_refused_by_name(client: httpx.AsyncClient, key: str) -> None:
    reply = await client.post("/v2/jobs", json={}, headers={"idempotency-key": key})
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "header Idempotency-Key")


async def test_what_the_caller_knows_is_not_told_again(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    await client.post("/v2/jobs", json={})
    etag = (await client.get("/v2/jobs/job-0")).headers["etag"]
    for known in (etag, etag.removeprefix("W/"), f'"other", {etag}', "*"):
        reply = await client.get("/v2/jobs/job-0", headers={"if-none-match": known})
        assert (reply.status_code, reply.content, reply.headers["etag"]) == (304, b"", etag)
    desk.jobs[0] = running(desk.jobs[0])
    reply = await client.get("/v2/jobs/job-0", headers={"if-none-match": etag})
    assert (reply.status_code, reply.json()["status"]) == (200, "running")


async def test_a_job_that_has_ended_needs_no_further_look(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    await client.post("/v2/jobs", json={})
    desk.jobs[0] = succeeded(desk.jobs[0])
    reply = await client.get("/v2/jobs/job-0")
    assert "retry-after" not in reply.headers


async def test_jobs_are_listed_page_by_page_the_newest_first(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    for _ in range(5):
        await client.post("/v2/jobs", json={})
    next_, seen = "/v2/jobs?limit=2", []
    while next_:
        reply = await client.get(next_)
        seen.append([job["id"] for job in reply.json()["jobs"]])
        next_ = reply.json()["next"]
        assert reply.headers.get("link") == (f'<{next_}>; rel="next"' if next_ else None)
    assert seen == [["job-4", "job-3"], ["job-2", "job-1"], ["job-0"]]


async def test_jobs_are_listed_by_status_without_their_codes(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    for _ in range(4):
        await client.post("/v2/jobs", json={})
    desk.jobs[1], desk.jobs[2] = succeeded(desk.jobs[1]), failed(desk.jobs[2])
    first = (await client.get("/v2/jobs?status=succeeded&status=failed&limit=1")).json()
    second = (await client.get(first["next"])).json()
    assert ([job["id"] for job in first["jobs"]], second["next"]) == (["job-2"], None)
    (job,) = second["jobs"]
    assert (job["id"], job["tracks"][0]["codes"]) == ("job-1", None)
    assert (await client.get("/v2/jobs/job-1")).json()["tracks"][0]["codes"] == [1, 2]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "query limit"),
        ("limit=101", "query limit"),
        ("limit=x", "query limit"),
        ("status=done", "query status 0"),
        ("cursor=%21", "query cursor"),
        ("cursor=eA", "query cursor"),
        ("order=oldest", "query order"),
    ],
)
async def test_a_list_that_cannot_be_given_is_refused_by_name(
    client: httpx.AsyncClient, query: str, field: str
) -> None:
    reply = await client.get(f"/v2/jobs?{query}")
    assert (reply.status_code, [fault["field"] for fault in reply.json()["errors"]]) == (422, [field])


async def test_a_job_is_withdrawn_at_once_or_soon_and_as_often_as_one_likes(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    await client.post("/v2/jobs", json={})
    for _ in range(2):
        reply = await client.delete("/v2/jobs/job-0")
        assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")


async def test_what_runs_is_withdrawn_soon(
    client: httpx.AsyncClient, desk: FakeDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancel(id_: str, owner: str) -> Any:
        return running(desk.jobs[0])

    await client.post("/v2/jobs", json={})
    monkeypatch.setattr(desk, "cancel", cancel)
    reply = await client.delete("/v2/jobs/job-0")
    assert (reply.status_code, reply.json()["status"], "retry-after" in reply.headers) == (202, "running", True)


ROUTES = [
    ("GET", "/v2/jobs/{}"),
    ("DELETE", "/v2/jobs/{}"),
    ("GET", "/v2/jobs/{}/events"),
    ("GET", "/v2/jobs/{}/tracks/1"),
    ("HEAD", "/v2/jobs/{}/tracks/1"),
    ("GET", "/v2/jobs/{}/tracks/1/peaks"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_jobs_of_others_are_as_unknown_as_those_there_never_were(
    client: httpx.AsyncClient, desk: FakeDesk, method: str, path: str
) -> None:
    await client.post("/v2/jobs", json={})
    desk.jobs[0] = replace(succeeded(desk.jobs[0]), owner="somebody else")
    for id_ in ("job-0", "never", "x" * 3000, "%2e%2e%2fetc%2fpasswd", "%F0%9F%98%80"):
        reply = await client.request(method, path.format(id_))
        assert reply.status_code == 404
        assert reply.headers["content-type"] == "application/problem+json"
    assert (await client.get("/v2/jobs")).json()["jobs"] == []


@pytest.mark.parametrize(
    ("method", "path"), [*ROUTES, ("POST", "/v2/jobs"), ("GET", "/v2/jobs"), ("GET", "/v2/capabilities")]
)
async def test_without_the_key_nothing_is_told(connect: Connect, method: str, path: str) -> None:
    async with connect(keys=(KEY,)) as client:
        for headers in ({}, {"authorization": "Bearer wrong"}):
            reply = await client.request(method, path.format("job-0"), headers=headers)
            assert (reply.status_code, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert reply.headers["content-type"] == "application/problem+json"
        assert (await client.request(method, path.format("job-0"), headers=WITH_KEY)).status_code != 401


async def test_players_may_put_the_key_into_the_address(connect: Connect, desk: FakeDesk) -> None:
    async with connect(keys=(KEY,)) as client:
        await client.post("/v2/jobs", json={}, headers=WITH_KEY)
        desk.jobs[0] = succeeded(desk.jobs[0])
        for path in ("/v2/jobs/job-0/tracks/1", "/v2/jobs/job-0/tracks/1/peaks", "/v2/jobs/job-0/events"):
            assert (await client.get(f"{path}?ai_token={KEY}")).status_code == 200
            assert (await client.get(f"{path}?ai_token=wrong")).status_code == 401


async def test_every_refusal_is_a_problem_here_and_none_elsewhere(connect: Connect, desk: FakeDesk) -> None:
    async with connect() as client:
        told = {
            404: await client.get("/v2/nowhere"),
            405: await client.put("/v2/jobs"),
            400: await client.get("/v2/jobs/a%00b"),
        }
        desk.is_full = True
        told[429] = await client.post("/v2/jobs", json={})
        desk.is_broken = True
        told[500] = await client.post("/v2/jobs", json={})
        elsewhere = await client.get("/v2nd")
    for status, reply in told.items():
        assert (reply.status_code, reply.headers["content-type"]) == (status, "application/problem+json")
        problem = reply.json()
        assert problem.keys() == {"type", "title", "status", "detail", "instance"}
        assert (problem["status"], problem["instance"]) == (status, reply.request.url.path)
    assert (told[429].headers["retry-after"], told[429].json()["title"]) == ("7", "Overloaded")
    assert "swordfish" not in told[500].text
    assert elsewhere.json().keys() >= {"code", "error"}


async def test_the_api_page_tells_every_status_of_every_route(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["components"]["schemas"]["Problem"]["properties"].keys() >= {"type", "errors"}
    routes = {path: told for path, told in document["paths"].items() if path.startswith("/v2/")}
    assert len(routes) == 7
    for operations in routes.values():
        for operation in operations.values():
            assert operation["responses"].keys() >= {"400", "401", "403", "422", "429", "500", "503"}
            problem = operation["responses"]["422"]["content"]
            assert problem == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert {status.value for status in Status} == {*document["components"]["schemas"]["Status"]["enum"]}


async def test_a_cursor_that_is_none_is_refused(client: httpx.AsyncClient) -> None:
    for number in (0, -1, 10**30):
        cursor = base64.urlsafe_b64encode(str(number).encode()).decode().rstrip("=")
        reply = await client.get("/v2/jobs", params={"cursor": cursor})
        assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "query cursor")
