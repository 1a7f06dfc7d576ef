"""What holds for every request, over an application of a few lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException, Request
from starlette.types import Message, Receive, Scope, Send

from models.errors import Overloaded
from serve_app.dialects.replies import refusal
from serve_app.keys import Keyring
from serve_app.logs import TellRequest
from serve_app.middleware import AnswerFaults, BodyLimits, CheckHead, LimitBody, NameRequests

log = logging.getLogger("serve_app.test")


def refuse(_: Scope, *args: Any) -> Any:
    return refusal(*args)


def app(limits: BodyLimits | None = None, tells: bool = True) -> FastAPI:
    api = FastAPI()

    @api.post("/echo")
    async def echo(request: Request) -> dict[str, Any]:
        log.info("echoing")
        return {"bytes": len(await request.body())}

    @api.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the password is swordfish")

    @api.exception_handler(HTTPException)
    async def refuse_http(_: Request, error: HTTPException) -> Any:
        return refusal(error.status_code, error.detail, error.headers)

    @api.exception_handler(Overloaded)
    async def refuse_overloaded(_: Request, error: Overloaded) -> Any:
        return refusal(429, str(error))

    api.add_middleware(AnswerFaults, refuse=refuse)
    api.add_middleware(LimitBody, refuse=refuse, limits=limits or BodyLimits())
    api.add_middleware(CheckHead, refuse=refuse, keyring=Keyring(["sesame"]))
    api.add_middleware(NameRequests, tells=tells)
    return api


def client(*args: Any, **kwargs: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app(*args, **kwargs)), base_url="http://server")


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [
        ("abc-1.2_3", True),
        ("a" * 64, True),
        ("a" * 65, False),
        ("", False),
        ("a b", False),
        ("ä", False),
        ("<b>", False),
    ],
)
async def test_a_request_keeps_its_senders_id_where_that_is_short_and_plain(sent: str, is_kept: bool) -> None:
    async with client() as http:
        reply = await http.post("/echo", headers=[(b"x-request-id", sent.encode())])
    assert (reply.headers["x-request-id"] == sent) == is_kept
    assert 1 <= len(reply.headers["x-request-id"]) <= 64


async def test_behind_a_proxy_that_tells_the_id_it_is_not_told_twice() -> None:
    async with client(tells=False) as http:
        assert "x-request-id" not in (await http.post("/echo", headers={"x-request-id": "abc"})).headers


async def test_every_line_made_for_a_request_carries_its_id(caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(TellRequest())
    with caplog.at_level(logging.INFO, "serve_app.test"):
        async with client() as http:
            ids = [f"request-{number}" for number in range(5)]
            await asyncio.gather(*(http.post("/echo", headers={"x-request-id": id_}) for id_ in ids))
        log.info("of nobody")
    lines = [record for record in caplog.records if record.name == "serve_app.test"]
    assert sorted(record.__dict__["request_id"] for record in lines[:-1]) == ids
    assert "request_id" not in lines[-1].__dict__


async def test_an_unforeseen_error_says_nothing_but_has_an_id_and_a_trace_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with client() as http:
        reply = await http.get("/broken", headers={"x-request-id": "abc"})
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "abc")
    assert "swordfish" not in reply.text
    assert "swordfish" in caplog.text


async def pieces(count: int, size: int, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(pause_s)
        yield b"x" * size


async def test_a_body_that_trickles_is_given_up() -> None:
    async with client(BodyLimits(patience_s=0.05, slowest=1000)) as http:
        in_time = await http.post("/echo", content=pieces(20, 1000))
        slow = await http.post("/echo", content=pieces(100, 1, 0.01))
    assert (in_time.status_code, slow.status_code, slow.headers["connection"]) == (200, 408, "close")


async def test_a_caller_may_wait_for_a_reply_longer_than_for_its_body() -> None:
    """What comes after the body is the news that the caller left, and may come at any time."""
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.sleep(0.1)
        return {"type": "http.disconnect"}

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([(await receive())["type"], (await receive())["type"]])

    async def send(message: Message) -> None:
        raise AssertionError(message)

    seen: list[str] = []
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await LimitBody(waits, refuse, BodyLimits(patience_s=0.01))(scope, receive, send)
    assert seen == ["http.request", "http.disconnect"]


async def test_all_bodies_in_memory_have_a_limit_together_and_are_forgotten_when_answered() -> None:
    limits = BodyLimits(max_bytes=1000, all_bytes=2500)
    transport = httpx.ASGITransport(app(limits))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        for _ in range(2):  # the second time as the first
            replies = await asyncio.gather(*(http.post("/echo", content=pieces(4, 250, 0.01)) for _ in range(5)))
            statuses = [reply.status_code for reply in replies]
            assert statuses.count(200) >= 1
            assert statuses.count(429) >= 1
            assert set(statuses) == {200, 429}


@pytest.mark.parametrize("announced", ["-1", "1e3", "1" * 5000, "", "²"])
async def test_a_length_that_is_no_number_is_refused(announced: str) -> None:
    async with client() as http:
        reply = await http.post("/echo", content=b"x", headers=[(b"content-length", announced.encode())])
    assert reply.status_code == 413


@pytest.mark.parametrize("address", ["/echo%00", "/echo?a=%00", "/ec%00ho?a=b"])
async def test_an_address_with_a_nul_is_refused(address: str) -> None:
    async with client() as http:
        assert (await http.post(address)).status_code == 400
