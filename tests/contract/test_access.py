"""Who may call what: the contract's table of keys, for every route there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from starlette.routing import Route

from serve_app.edge import EdgeOptions, build_api
from serve_app.keys import Keyring, Scope, digest_of
from tests.contract.conftest import FakeDesk

if TYPE_CHECKING:
    from tests.contract.conftest import Connect

KEY = "sesame"
RIGHT = {"authorization": f"Bearer {KEY}"}
WRONG = {"authorization": "Bearer open"}


@dataclass(frozen=True)
class Door:
    """A route as the contract has it: the scope it takes, none for one that is open to all, and whether `ai_token`
    counts in the `body` or the `query`, beside the header."""

    scope: Scope | None
    token: str = ""
    query: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)


TRAINING = "start start_lokr stop load_tensor_info export"
DATASET = "scan load save auto_label auto_label_async preprocess preprocess_async"
VIEWS = "samples sample/{index} auto_label_status auto_label_status/{task} preprocess_status preprocess_status/{task}"
DOORS = {
    "POST /release_task": Door(Scope.GENERATE, "body"),
    "POST /query_result": Door(Scope.READ, "body", body={"task_id_list": ["one"]}),
    "POST /cancel_task": Door(Scope.GENERATE, "body", body={"task_id": "one"}),
    "GET /v1/audio": Door(Scope.READ, "query", "path=abc.mp3"),
    "HEAD /v1/audio": Door(Scope.READ, "query", "path=abc.mp3"),
    "GET /v1/models": Door(Scope.READ),
    "GET /v1/stats": Door(Scope.READ),
    **{f"{method} /openapi.json": Door(None) for method in ("GET", "HEAD")},
    **{f"GET {path}": Door(None) for path in ("/docs", "/docs/oauth2-redirect", "/redoc")},
    "GET /health": Door(None),
    "POST /v1/music/generate": Door(Scope.GENERATE, "body"),
    "POST /v1/music/random": Door(Scope.GENERATE, "body"),
    "GET /v1/jobs/{job_id}": Door(Scope.READ),
    **{f"POST /generate_music{kind}": Door(Scope.GENERATE) for kind in ("", "_async")},
    "POST /generate_music_direct": Door(Scope.GENERATE, body={"format": "none"}),  # a song would be waited for
    "POST /initialize": Door(Scope.READ),
    "GET /sample_data": Door(Scope.READ),
    "GET /status/{request_id}": Door(Scope.READ),
    "GET /result/{request_id}": Door(Scope.READ),
    "DELETE /request/{request_id}": Door(Scope.GENERATE),
    "GET /queue/status": Door(Scope.READ),
    "GET /outputs/{ref}": Door(Scope.READ, "query"),
    "HEAD /outputs/{ref}": Door(Scope.READ, "query"),
    "POST /v2/jobs": Door(Scope.GENERATE),
    "GET /v2/jobs": Door(Scope.READ),
    "GET /v2/jobs/{id}": Door(Scope.READ),
    "DELETE /v2/jobs/{id}": Door(Scope.GENERATE),
    "GET /v2/jobs/{id}/events": Door(Scope.READ, "query"),
    "GET /v2/jobs/{id}/tracks/{n}": Door(Scope.READ, "query"),
    "HEAD /v2/jobs/{id}/tracks/{n}": Door(Scope.READ, "query"),
    "GET /v2/jobs/{id}/tracks/{n}/peaks": Door(Scope.READ, "query"),
    "POST /v2/uploads": Door(Scope.GENERATE),
    "GET /v2/capabilities": Door(Scope.READ),
    "POST /format_input": Door(Scope.GENERATE, "body", body={"prompt": "jazz"}),
    "POST /create_random_sample": Door(Scope.READ, "body"),
    "POST /v1/create_sample": Door(Scope.GENERATE, "body", body={"query": "jazz"}),
    **{f"GET {path}": Door(Scope.READ) for path in ("/v1/model_inventory", "/v1/lora/status")},
    **{f"POST {path}": Door(Scope.ADMIN) for path in ("/v1/init", "/v1/reinitialize", "/v1/transcribe")},
    "POST /v1/lora/load": Door(Scope.ADMIN, body={"lora_path": "warm"}),
    "POST /v1/lora/unload": Door(Scope.ADMIN),
    "POST /v1/lora/toggle": Door(Scope.ADMIN, body={"use_lora": True}),
    "POST /v1/lora/scale": Door(Scope.ADMIN, body={"scale": 1}),
    **{f"POST /v1/training/{verb}": Door(Scope.ADMIN) for verb in TRAINING.split()},
    "GET /v1/training/status": Door(Scope.ADMIN),
    **{f"POST /v1/dataset/{verb}": Door(Scope.ADMIN) for verb in DATASET.split()},
    **{f"GET /v1/dataset/{view}": Door(Scope.ADMIN) for view in VIEWS.split()},
    "PUT /v1/dataset/sample/{index}": Door(Scope.ADMIN),
    "POST /v1/chat/completions": Door(Scope.GENERATE),
    "POST /v1/audio/speech": Door(Scope.GENERATE),
    "GET /api/v1/models": Door(Scope.READ),
}
IN_BODY, IN_HEADER = "Missing ai_token or Authorization header", "Missing Authorization header"


def served() -> list[str]:
    routes = [route for route in build_api(FakeDesk(), EdgeOptions()).routes if isinstance(route, Route)]
    return [f"{method} {route.path}" for route in routes for method in sorted(route.methods or ())]


def test_every_route_has_a_row_in_the_table() -> None:
    assert sorted(DOORS) == sorted(served())


async def ask(client: httpx.AsyncClient, route: str, token: str | None = None, **headers: str) -> httpx.Response:
    """With `token` where the route takes one."""
    method, path = route.split()
    door = DOORS[route]
    sent: dict[str, Any] = {"headers": headers, "params": door.query}
    if token is not None and door.token != "body":
        sent["params"] = f"{door.query}&ai_token={token}"
    if method in ("POST", "PUT"):
        sent["json"] = {**door.body, **({"ai_token": token} if token is not None and door.token == "body" else {})}
    return await client.request(method, path, **sent)


def refused(reply: httpx.Response) -> str:
    """Why nobody was let in, `""` where somebody was. A HEAD tells no reason."""
    assert reply.status_code < 500 or reply.status_code == 501
    if reply.status_code != 401:
        return ""
    assert reply.headers["www-authenticate"] == "Bearer"
    return str(reply.json()["detail"]) if reply.request.method != "HEAD" else "refused"


def cases(door: Door) -> Iterator[tuple[dict[str, str], str | None, str]]:
    """Header, `ai_token`, and what is said; of a route that is not open, on a server with a key."""
    missing = IN_BODY if door.token == "body" else IN_HEADER
    yield {}, None, missing
    yield RIGHT, None, ""
    yield {"authorization": KEY}, None, ""
    yield WRONG, None, "Invalid API key"
    for other in (f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY}", f"Basic {KEY}", f"{KEY}x", KEY[:-1], "Bearer"):
        yield {"authorization": other}, None, missing if other == "Bearer" else "Invalid API key"
    yield {}, KEY, "" if door.token else missing
    yield {}, "open", "Invalid ai_token" if door.token else missing
    yield RIGHT, "open", "Invalid ai_token" if door.token else ""
    yield RIGHT, "", ""
    yield {}, "", missing
    yield WRONG, "", "Invalid API key"
    if door.token == "body":  # the header is looked at first, so that the body need not be read
        yield WRONG, KEY, "Invalid API key"


@pytest.mark.parametrize("route", DOORS)
async def test_a_key_is_taken_where_the_contract_says(connect: Connect, route: str) -> None:
    door = DOORS[route]
    async with connect(keys=("another", KEY)) as client:
        for headers, token, said in cases(door):
            told = refused(await ask(client, route, token, **headers))
            expected = "" if door.scope is None else said
            assert told == ("refused" if expected and route.startswith("HEAD") else expected), (headers, token)


@pytest.mark.parametrize("route", DOORS)
async def test_without_a_key_everybody_is_let_in_whatever_they_send(connect: Connect, route: str) -> None:
    async with connect() as client:
        for headers in ({}, WRONG):
            for token in (None, "", "open"):
                assert refused(await ask(client, route, token, **headers)) == ""


def keys(tmp_path: Path, **more: Any) -> Keyring:
    entries = [
        {"name": scope.value, "sha256": digest_of(scope.value), "scopes": [scope.value], **more} for scope in Scope
    ]
    (tmp_path / "keys").write_text(yaml.safe_dump({"keys": entries}))
    return Keyring(file=tmp_path / "keys")


async def test_a_key_without_a_routes_scope_is_refused(connect: Connect, tmp_path: Path) -> None:
    async with connect(keyring=keys(tmp_path)) as client:
        for route, scope in product(DOORS, Scope):
            reply = await ask(client, route, authorization=f"Bearer {scope.value}")
            assert (reply.status_code == 403) == (DOORS[route].scope not in (None, scope)), (route, scope)
            if reply.status_code == 403 and reply.content:
                assert f"no scope '{DOORS[route].scope}'" in reply.json()["detail"]


async def test_a_key_that_asks_too_often_is_told_when_to_come_back(connect: Connect, tmp_path: Path) -> None:
    async with connect(keyring=keys(tmp_path, requests_per_minute=3)) as client:
        replies = [await ask(client, "GET /v1/stats", authorization="read") for _ in range(5)]
        other = await ask(client, "POST /release_task", authorization="generate")
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert "3 requests a minute" in replies[-1].json()["error"]
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 60
    assert other.status_code == 200


async def test_a_wrong_key_is_refused_before_the_body_is_read(connect: Connect) -> None:
    read = 0

    async def body() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b"x" * 1000

    async with connect(keys=(KEY,)) as client:
        headers = {**WRONG, "content-type": "application/json"}
        reply = await client.post("/release_task", content=body(), headers=headers)
    assert (reply.status_code, read) == (401, 0)


async def test_the_key_is_not_kept_with_the_job_and_others_cannot_see_it(connect: Connect, desk: FakeDesk) -> None:
    async with connect(keys=(KEY, "another")) as client:
        task_id = str((await client.post("/release_task", json={"ai_token": KEY})).json()["data"]["task_id"])
        others = await client.post("/query_result", json={"task_id_list": [task_id], "ai_token": "another"})
    assert KEY not in repr(desk.jobs)
    assert others.json()["data"] == [{"task_id": task_id, "status": 0, "result": "[]"}]


@pytest.mark.parametrize("token", ["\ud800", "é", "\x7f", 5, 5.5, ["sesame"], {"a": 1}, True])
async def test_a_token_of_any_kind_that_is_no_key_is_refused(connect: Connect, token: Any) -> None:
    async with connect(keys=(KEY,)) as client:
        reply = await client.post("/release_task", content=json.dumps({"ai_token": token}))
    assert reply.status_code == (400 if token == "\ud800" else 401)


async def test_a_key_may_hold_any_character(connect: Connect) -> None:
    async with connect(keys=("schlüssel",)) as client:
        in_header = await client.get("/v1/stats", headers=[(b"authorization", "Bearer schlüssel".encode())])
        in_body = await client.post("/release_task", json={"ai_token": "schlüssel"})
    assert (in_header.status_code, in_body.status_code) == (200, 200)


@pytest.mark.parametrize(
    ("options", "local", "named"),
    [
        ({}, True, True),
        ({"keys": (KEY,)}, False, True),
        ({"is_local": False}, False, True),
    ],
    ids=["loopback without a key", "with a key", "beyond loopback"],
)
async def test_pages_of_this_machine_may_call_only_where_nobody_else_can_and_no_key_is_needed(
    connect: Connect, options: dict[str, Any], local: bool, named: bool
) -> None:
    async with connect(cors_origins=("https://studio.example",), **options) as client:
        for origin, is_allowed in (
            *((origin, local) for origin in ("null", "http://localhost:3000", "http://127.0.0.1", "http://[::1]:8080")),
            ("https://studio.example", named),
            ("https://evil.example", False),
        ):
            reply = await client.get("/health", headers={"origin": origin})
            assert (reply.headers.get("access-control-allow-origin") == origin) == is_allowed, origin


async def test_a_page_can_read_a_refusal_and_a_fault_of_the_server(connect: Connect, desk: FakeDesk) -> None:
    desk.is_broken = True
    async with connect() as client:
        headers = {"origin": "null", "x-request-id": "abc"}
        for body, status in (({"bpm": "x"}, 400), ({}, 500)):
            reply = await client.post("/release_task", json=body, headers=headers)
            assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (status, "null")
            assert reply.headers["x-request-id"] == "abc"


@pytest.mark.parametrize(
    "body",
    ['{"bpm": NaN}', '{"bpm": 1e400}', '{"a": 1, "a": 2}', '{"prompt": "\\ud800"}', '{"prompt": "\\u0000"}', "[1]"],
)
@pytest.mark.parametrize(
    "route", [route for route, door in DOORS.items() if door.token == "body" or "/v1/chat" in route]
)
async def test_no_route_takes_json_that_nothing_behind_it_can_take(
    client: httpx.AsyncClient, route: str, body: str
) -> None:
    reply = await client.post(route.split()[1], content=body, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/init"), ("POST", "/v1/lora/load"), ("GET", "/v1/audio"), ("GET", "/v1/models?format=x")],
)
async def test_a_key_is_asked_for_before_anything_is_judged(connect: Connect, method: str, path: str) -> None:
    async with connect(keys=(KEY,)) as client:
        assert (await client.request(method, path, json={"slot": "x"})).status_code == 401


@pytest.mark.parametrize("route", ["GET /v1/models", "POST /v1/init", "POST /v1/lora/scale", "GET /v1/audio"])
async def test_a_request_counts_once(connect: Connect, tmp_path: Path, route: str) -> None:
    key = str(DOORS[route].scope)
    async with connect(keyring=keys(tmp_path, requests_per_minute=2)) as client:
        replies = [(await ask(client, route, authorization=f"Bearer {key}")).status_code for _ in range(3)]
    assert [status == 429 for status in replies] == [False, False, True]
