"""Errors of the native API: problem details (RFC 9457) with every field at fault."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from models.errors import AceError, RequestError

Handler = Callable[[Request, Any], Awaitable[Response]]
PREFIX = "/v2"
MEDIA_TYPE = "application/problem+json"
REFERENCE = "#/components/schemas/{model}"
NO_MORE_THAN_STATUS = "about:blank"
ANYWHERE = (400, 401, 403, 422, 429, 500, 503)
DEFAULT_CODES = {422: "invalid_request"}


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where: `bpm`, `loras.0.name`, `header Idempotency-Key`.", examples=["bpm"])
    pointer: str | None = Field(None, description="The same as a JSON pointer into the body.", examples=["#/bpm"])
    message: str = Field(examples=["400: Input should be less than or equal to 300"])
    allowed: Any = Field(None, description="What is allowed, in the words of JSON Schema.", examples=[{"maximum": 300}])


class Problem(BaseModel):
    """RFC 9457."""

    type: str = Field(examples=["urn:acestep:problem:invalid_request"])
    title: str = Field(examples=["Invalid request"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["bpm: 400: Input should be less than or equal to 300"])
    instance: str = Field(description="The path that was asked.", examples=["/v2/jobs"])
    errors: list[Fault] = []


class Refused(HTTPException):
    """An answer that is a problem of this kind; `code` names it for programs."""

    def __init__(
        self,
        status: int,
        detail: str,
        code: str | None = None,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.code = code
        self.faults = tuple(faults)


def refused_for(faults: Sequence[Fault]) -> Refused:
    """422, with the faults one by one."""
    return Refused(422, _sentence(faults), faults=faults)


def _sentence(faults: Sequence[Fault]) -> str:
    return "; ".join(
        fault.message if fault.message.startswith(fault.field) else f"{fault.field}: {fault.message}"
        for fault in faults
    )


def is_native(path: str) -> bool:
    return path == PREFIX or path.startswith(f"{PREFIX}/")


def problem(
    path: str,
    status: int,
    detail: str,
    *,
    code: str | None = None,
    faults: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    code = code or DEFAULT_CODES.get(status)
    told = Problem(
        type=NO_MORE_THAN_STATUS if code is None else f"urn:acestep:problem:{code}",
        title=HTTPStatus(status).phrase if code is None else code.replace("_", " ").capitalize(),
        status=status,
        detail=detail,
        instance=path,
        errors=list(faults),
    )
    exclude = None if faults else {"errors"}
    return JSONResponse(told.model_dump(exclude=exclude, exclude_none=True), status, headers, media_type=MEDIA_TYPE)


def by_path(handler: Handler) -> Handler:
    """What a handler of the other APIs says, as a problem where the native one was asked."""

    async def handle(request: Request, error: Exception) -> Response:
        reply = await handler(request, error)
        path = request.scope["path"]
        return _as_problem(path, reply, error) if is_native(path) else reply

    return handle


def _as_problem(path: str, reply: Response, error: Exception) -> JSONResponse:
    if isinstance(error, RequestValidationError):
        error = refused_for(_faults_of_parameters(error.errors()))
    status = 422 if isinstance(error, RequestError) else reply.status_code
    detail = error.detail if isinstance(error, Refused) else json.loads(bytes(reply.body))["error"]
    code = error.code if isinstance(error, (AceError, Refused)) else None
    faults = error.faults if isinstance(error, Refused) else ()
    headers = {name: value for name, value in reply.headers.items() if name not in ("content-length", "content-type")}
    return problem(path, status, detail, code=code, faults=faults, headers=headers)


def _faults_of_parameters(errors: Sequence[Mapping[str, Any]]) -> list[Fault]:
    """FastAPI's faults of query, path and headers."""
    return [
        Fault(field=" ".join(str(part) for part in error["loc"]), message=f"{error.get('input')!r}: {error['msg']}")
        for error in errors
    ]


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Problems a route may answer with, for the API page, beside those of any route. Not by their model, which FastAPI
    would take apart anew for every status of every route."""
    content = {MEDIA_TYPE: {"schema": {"$ref": REFERENCE.format(model=Problem.__name__)}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({*ANYWHERE, *statuses})
    }


def install(app: FastAPI) -> None:
    """To be called once all handlers are there."""
    for kind, handler in list(app.exception_handlers.items()):
        app.exception_handlers[kind] = by_path(cast(Handler, handler))
    without_problems = app.openapi

    def openapi() -> dict[str, Any]:
        document = without_problems()
        _, told = models_json_schema([(Problem, "serialization")], ref_template=REFERENCE)
        document["components"]["schemas"] |= told["$defs"]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents
