"""The FastAPI application: limits, error bodies, cross-origin rules, and the dialects mounted."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Scope

from models.errors import AceError, Overloaded, RequestError, StoreAway
from serve_app.artifacts.face import StorageFailed
from serve_app.dialects import music_jobs, native
from serve_app.dialects.access import Access, Forbidden, TooManyRequests, Unauthorized
from serve_app.dialects.current.models import ModelsFormat
from serve_app.dialects.current.routes import routes as current_routes
from serve_app.dialects.desk import Desk
from serve_app.dialects.gradio_v1 import routes as gradio_v1
from serve_app.dialects.native import problems
from serve_app.dialects.openrouter.errors import OpenAiErrors
from serve_app.dialects.openrouter.routes import routes as openrouter_routes
from serve_app.dialects.openrouter.speech import routes as speech_routes
from serve_app.dialects.replies import refusal
from serve_app.examples import Examples
from serve_app.keys import Keyring
from serve_app.middleware import AnswerFaults, BodyLimits, CheckHead, LimitBody, NameRequests
from serve_app.openapi import complete

log = logging.getLogger(__name__)

STORE_RETRY_AFTER_S = 5  # a guess: until the job database is back
STORAGE_RETRY_AFTER_S = 60  # a guess: until somebody made room, or the store is back
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
LONGEST_COMPLAINT = 2000  # characters
CONFLICT = "idempotency_conflict"  # code of the refusal that is no fault of the request itself
LOCAL_ORIGINS = r"null|https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?"


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """Pages of this machine, and files opened in a browser, may call only a server that `is_local`, which nobody else
    can reach, and that needs no key; otherwise those of `cors_origins` may.

    `generation_timeout_s`: how long a caller waits in the request itself, before the job is withdrawn.
    """

    keyring: Keyring = field(default_factory=Keyring)
    cors_origins: tuple[str, ...] = ()
    models_format: ModelsFormat = "wrapped"
    is_local: bool = True
    body: BodyLimits = field(default_factory=BodyLimits)
    tells_request_id: bool = True  # not behind a proxy that does
    generation_timeout_s: float = 600.0


def build_api(desk: Desk, options: EdgeOptions, lifespan: Lifespan | None = None) -> FastAPI:
    access = Access(options.keyring)
    dialects = (
        current_routes(desk, access, options.models_format),
        music_jobs.routes(desk, access),
        gradio_v1.routes(desk, access, Examples.load(), options.generation_timeout_s),
        openrouter_routes(desk, access, options.generation_timeout_s),
        speech_routes(desk, access, options.generation_timeout_s),
        native.routes(desk, access, options.body.max_upload_bytes),
    )
    app = FastAPIOffline(title="ACE-Step server", version="1.0", lifespan=lifespan)
    return _guarded(app, dialects, desk, options)


def build_v1_api(desk: Desk, options: EdgeOptions, is_ready: gradio_v1.IsReady) -> FastAPI:
    """The v1 API alone, for a port of its own."""
    dialects = (
        gradio_v1.health_route(is_ready),
        gradio_v1.routes(desk, Access(options.keyring), Examples.load(), options.generation_timeout_s),
    )
    app = FastAPIOffline(title="ACE-Step server, v1 API", version="1.0")
    return _guarded(app, dialects, desk, options)


def _guarded(app: FastAPI, dialects: Iterable[APIRouter], desk: Desk, options: EdgeOptions) -> FastAPI:
    for dialect in dialects:
        app.include_router(dialect)
    _add_middleware(app, options)
    _add_refusals(app, desk)
    problems.install(app)
    complete(app)
    return app


def _add_middleware(app: FastAPI, options: EdgeOptions) -> None:
    """From the inside to the outside."""
    app.add_middleware(AnswerFaults, refuse=_refuse)
    app.add_middleware(LimitBody, refuse=_refuse, limits=options.body)
    app.add_middleware(CheckHead, refuse=_refuse, keyring=options.keyring)
    app.add_middleware(OpenAiErrors)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=options.cors_origins,
        allow_origin_regex=LOCAL_ORIGINS if options.is_local and options.keyring.is_open else None,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=["Content-Range", "Accept-Ranges", "ETag", "Location", "Retry-After", "X-Request-ID"],
    )
    app.add_middleware(NameRequests, tells=options.tells_request_id)


def _add_refusals(app: FastAPI, desk: Desk) -> None:
    async def refuse_overloaded(_: Request, error: Exception) -> JSONResponse:
        try:
            retry_after_s = error.retry_after_s if isinstance(error, TooManyRequests) else await desk.retry_after_s()
        except StoreAway:
            retry_after_s = STORE_RETRY_AFTER_S
        return refusal(429, str(error), {"Retry-After": str(retry_after_s)})

    app.add_exception_handler(Overloaded, refuse_overloaded)
    app.add_exception_handler(StoreAway, _refuse_away)
    app.add_exception_handler(StorageFailed, _refuse_storage)
    app.add_exception_handler(Unauthorized, _refuse_unauthorized)
    app.add_exception_handler(Forbidden, _refuse_forbidden)
    app.add_exception_handler(RequestError, _refuse_request)
    app.add_exception_handler(StarletteHTTPException, _refuse_http)
    app.add_exception_handler(RequestValidationError, _refuse_invalid)


async def _refuse_storage(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StorageFailed)
    log.error("audio could not be stored or read: %s", error)
    return refusal(503, error.public_message, {"Retry-After": str(STORAGE_RETRY_AFTER_S)})


def _refuse(scope: Scope, status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """What is refused before a dialect is asked."""
    path = scope["path"]
    if problems.is_native(path):
        return problems.problem(path, status, detail, headers=headers)
    return refusal(status, detail, headers)


async def _refuse_unauthorized(_: Request, error: Exception) -> JSONResponse:
    return refusal(401, str(error), {"WWW-Authenticate": "Bearer"})


async def _refuse_away(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s: %s: %s", request.method, request.url.path, error, error.__cause__)
    return refusal(503, str(error), {"Retry-After": str(STORE_RETRY_AFTER_S)})


async def _refuse_forbidden(_: Request, error: Exception) -> JSONResponse:
    return refusal(403, str(error))


async def _refuse_request(_: Request, error: Exception) -> JSONResponse:
    code = error.code if isinstance(error, AceError) else ""
    return refusal(409 if code == CONFLICT else 400, _shortened(str(error)))


def _shortened(complaint: str) -> str:
    """It may quote all that was sent, and says at its end what is allowed."""
    half = LONGEST_COMPLAINT // 2
    return complaint if len(complaint) <= LONGEST_COMPLAINT else f"{complaint[:half]}…{complaint[-half:]}"


async def _refuse_http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StarletteHTTPException)
    return refusal(error.status_code, error.detail, error.headers)


async def _refuse_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    faults: list[dict[str, Any]] = [{key: fault[key] for key in ("loc", "msg", "type")} for fault in error.errors()]
    return refusal(422, faults)
