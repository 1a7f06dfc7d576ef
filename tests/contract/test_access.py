"""Who may call what: the contract's table of keys, for every route there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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


DOORS = {
    "POST /release_task": Door(Scope.GENERATE, "body"),
    "POST /query_result": Door(Scope.READ, "body", body={"task_id_list": ["one"]}),
    "POST /cancel_task": Door(Scope.GENERATE, "body", body={"task_id": "one"}),
    "GET /v1/audio": Door(Scope.READ, "query", "path=abc.mp3"),
    "HEAD /v1/audio": Door(Scope.READ, "query", "path=abc.mp3"),
    "GET /v1/models": Door(Scope.READ),
    "GET /v1/stats": Door(Scope.READ),
    **{f"{method} /openapi.json": Door(None) for method in ("GET", "HEAD")},
    **{f"GET {path}": Door(None) for path in ("/docs", "/docs/oauth2-redirect")},
    "GET /health": Door(None),
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
    if method == "POST":
        sent["json"] = {**door.body, **({"ai_token": token} if token is not None and door.token == "body" else {})}
    return await client.request(method, path, **sent)


def refused(reply: httpx.Response) -> str:
    """Why nobody was let in, `""` where somebody was. A HEAD tells no reason."""
    assert reply.status_code < 500
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


@pytest.mark.parametrize("route", DOORS)
async def test_a_key_without_the_routes_scope_is_refused(connect: Connect, tmp_path: Path, route: str) -> None:
    async with connect(keyring=keys(tmp_path)) as client:
        for scope in Scope:
            reply = await ask(client, route, authorization=f"Bearer {scope.value}")
            assert (reply.status_code == 403) == (DOORS[route].scope not in (None, scope)), scope
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
