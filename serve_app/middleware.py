"""What holds for every request before a route is chosen: its id, its key, the size and pace of its body, its faults."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import AceError, Overloaded
from serve_app.dialects.access import bearer
from serve_app.keys import Keyring
from serve_app.logs import REQUEST_ID

log = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
READABLE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
UPLOADS = "/v2/uploads"  # goes to disk whatever the content type
WITH_FILES = ("/release_task", "/v1/music/generate", UPLOADS)  # where a form's files go to disk
Refuse = Callable[..., ASGIApp]  # scope, status, detail, headers: the reply as the path's own dialect says it
WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


class NameRequests:
    """Each request has an id, its sender's where that is short and plain; every log line made for it carries it.

    `tells`: whether the id is told here, as `X-Request-ID`. Serve's proxy, where there is one, makes and tells it.
    """

    def __init__(self, app: ASGIApp, tells: bool) -> None:
        self._app = app
        self._tells = tells

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        id_ = sent if READABLE_ID.fullmatch(sent) else str(uuid.uuid4())

        async def tell(message: Message) -> None:
            if self._tells and message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = id_
            await send(message)

        named = REQUEST_ID.set(id_)
        try:
            await self._app(scope, receive, tell)
        finally:
            REQUEST_ID.reset(named)


class AnswerFaults:
    """An error nobody foresaw becomes a 500 that says nothing of it; why stays in the log.

    Inside of what adds headers to replies: FastAPI's own place for this is outside of it, so that a page of another
    origin could not read the reply, and passes the error on once more.
    """

    def __init__(self, app: ASGIApp, refuse: Refuse) -> None:
        self._app = app
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if scope["type"] != "http" or has_begun:
                raise  # cuts the connection, so that nobody takes what was sent for the whole
            log.error("%s failed", scope["method"], exc_info=error)
            public = isinstance(error, AceError) and error.is_public
            reply = self._refuse(scope, 500, str(error) if public else "Internal Server Error")
            await reply(scope, receive, send)


class CheckHead:
    """Refuses what can be refused by the head of a request alone: a wrong key in the header of one that has a body,
    which is then not read, and an address with a NUL, which no database and no file system takes."""

    def __init__(self, app: ASGIApp, refuse: Refuse, keyring: Keyring) -> None:
        self._app = app
        self._refuse = refuse
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._app
        if scope["type"] == "http":
            if "\0" in scope["path"] or b"%00" in scope["query_string"] or b"\0" in scope["query_string"]:
                answer = self._refuse(scope, 400, "the address holds a NUL")
            elif scope["method"] not in WITHOUT_BODY and self._has_wrong_key(Headers(scope=scope)):
                answer = self._refuse(scope, 401, "Invalid API key", {"WWW-Authenticate": "Bearer"})
        await answer(scope, receive, send)

    def _has_wrong_key(self, headers: Headers) -> bool:
        presented = bearer(headers)
        return bool(presented) and not self._keyring.is_open and self._keyring.find(presented or b"") is None


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """A body with files goes to disk, any other stays in memory; `all_bytes`: of the latter, at a time.

    A body may take `patience_s`, and a second for every `slowest` bytes of it that came.
    """

    max_bytes: int = 64 * 2**20
    max_upload_bytes: int = 256 * 2**20
    all_bytes: int = 512 * 2**20
    patience_s: float = 30.0
    slowest: int = 16 * 2**10


class LimitBody:
    """Refuses a body that is or grows too large with 413, before more of it is in memory or on disk; one that comes
    too slowly with 408; and, with 429, one that there is no memory for beside the others."""

    def __init__(self, app: ASGIApp, refuse: Refuse, limits: BodyLimits) -> None:
        self._app = app
        self._refuse = refuse
        self._limits = limits
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        has_files = scope["path"] == UPLOADS or (is_form and scope["path"] in WITH_FILES)
        most = self._limits.max_upload_bytes if has_files else self._limits.max_bytes
        announced = headers.get("content-length", "0")
        if not re.fullmatch(r"[0-9]{1,18}", announced) or int(announced) > most:
            await self._refuse(scope, 413, _too_large(most))(scope, receive, send)
            return
        body = _Body(receive, self._limits, most)
        held = 0

        async def counted() -> Message:
            nonlocal held
            message = await body.receive()
            if not has_files:
                self._held += body.received - held
                held = body.received
                if self._held > self._limits.all_bytes:
                    raise Overloaded("Server busy: too much is being sent at once")
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= held


class _Body:
    """One request's body as it comes."""

    def __init__(self, receive: Callable[[], Awaitable[Message]], limits: BodyLimits, most: int) -> None:
        self.received = 0
        self._receive = receive
        self._limits = limits
        self._most = most
        self._began = time.monotonic()
        self._is_whole = False

    async def receive(self) -> Message:
        if self._is_whole:  # what comes now is the news that the caller left, however late
            return await self._receive()
        due_s = self._began + self._limits.patience_s + self.received / self._limits.slowest - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, due_s))
        except TimeoutError:
            raise HTTPException(408, "the request body came too slowly", {"Connection": "close"}) from None
        self._is_whole = not message.get("more_body", False)
        self.received += len(message.get("body", b""))
        if self.received > self._most:
            raise HTTPException(413, _too_large(self._most))
        return message


def _too_large(most: int) -> str:
    return f"the request body is larger than {most} bytes"
