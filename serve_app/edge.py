"""The FastAPI application: limits, error bodies, cross-origin rules, and the dialects mounted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from models.errors import AceError, Overloaded, RequestError, StoreAway
from serve_app.dialects import release_task
from serve_app.dialects.access import Access, Unauthorized
from serve_app.dialects.desk import Desk
from serve_app.dialects.replies import refusal

log = logging.getLogger(__name__)

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
AWAY_FOR_S = 5  # what a caller is told of a database that cannot be asked when it will be back
LOCAL_ORIGINS = r"null|https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """`cors_origins` are allowed besides pages of this machine and files opened in a browser."""

    keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 2**20
    max_upload_bytes: int = 256 * 2**20  # of a body with files, which does not stay in memory


def build_api(desk: Desk, options: EdgeOptions, lifespan: Lifespan | None = None) -> FastAPI:
    app = FastAPI(title="ACE-Step server", version="1.0", lifespan=lifespan)
    app.include_router(release_task.routes(desk, Access(options.keys)))
    app.add_middleware(LimitBody, max_bytes=options.max_body_bytes, max_upload_bytes=options.max_upload_bytes)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=options.cors_origins,
        allow_origin_regex=LOCAL_ORIGINS,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Content-Range", "Accept-Ranges", "ETag", "Retry-After"],
    )

    async def refuse_overloaded(_: Request, error: Exception) -> JSONResponse:
        try:
            retry_after_s = await desk.retry_after_s()
        except StoreAway:
            retry_after_s = AWAY_FOR_S
        return refusal(429, str(error), {"Retry-After": str(retry_after_s)})

    app.add_exception_handler(Overloaded, refuse_overloaded)
    app.add_exception_handler(StoreAway, _refuse_away)
    app.add_exception_handler(Unauthorized, _refuse_unauthorized)
    app.add_exception_handler(RequestError, _refuse_request)
    app.add_exception_handler(StarletteHTTPException, _refuse_http)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)
    app.add_exception_handler(Exception, _refuse_unexpected)
    return app


class LimitBody:
    """Refuses a body that is or grows too large with 413, before more of it is in memory or, with files, on disk."""

    def __init__(self, app: ASGIApp, max_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        has_files = headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")
        most = self._max_upload_bytes if has_files else self._max_bytes
        complaint = f"the request body is larger than {most} bytes"
        announced = headers.get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > most:
            await refusal(413, complaint)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413, complaint)
            return message

        await self._app(scope, counted, send)


async def _refuse_unauthorized(_: Request, error: Exception) -> JSONResponse:
    return refusal(401, str(error), {"WWW-Authenticate": "Bearer"})


async def _refuse_away(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s: %s: %s", request.method, request.url.path, error, error.__cause__)
    return refusal(503, str(error), {"Retry-After": str(AWAY_FOR_S)})


async def _refuse_request(_: Request, error: Exception) -> JSONResponse:
    return refusal(400, str(error))


async def _refuse_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return refusal(error.status_code, error.detail, error.headers)


async def _refuse_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults: list[dict[str, Any]] = [{key: fault[key] for key in ("loc", "msg", "type")} for fault in error.errors()]
    return refusal(422, faults)


async def _refuse_unexpected(request: Request, error: Exception) -> JSONResponse:
    """The reason stays in the log."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    public = isinstance(error, AceError) and error.is_public
    return refusal(500, str(error) if public else "Internal Server Error")
