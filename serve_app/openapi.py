"""The API's own description, complete: what every route may answer besides what it says itself, how keys are sent."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from serve_app.dialects.replies import REFUSED
from serve_app.settings import PROJECT

FILE = PROJECT / "docs" / "openapi.json"
METHODS = ("get", "put", "post", "delete", "head", "patch")
OPEN = ("/health", "/livez", "/readyz")  # need no key
ANY = (400, 429, 500)  # an address with a NUL; too many requests of a key; a fault of ours
WITH_KEY = (401, 403, 404, 503)  # an id that nobody has, or another key's; storage that fails
WITH_BODY = (408, 413, 415)
SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": "Where the server has keys. The bare key will do, too."}
}


def complete(app: FastAPI) -> None:
    """From now on `app.openapi()`, and so document and page, tell everything. All routes must be in by then."""
    own = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(own())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    components.setdefault("schemas", {})["Refusal"] = _refusal_schema()
    components["securitySchemes"] = SCHEMES
    for path, operation in _operations(document):
        statuses = ANY if path in OPEN else (*ANY, *WITH_KEY)
        for status in (*statuses, *(WITH_BODY if "requestBody" in operation else ())):
            operation["responses"].setdefault(str(status), _refused(status))
        invalid = operation["responses"].get("422", {})
        if "HTTPValidationError" in str(invalid):  # FastAPI's own, whose body is not what we send
            operation["responses"]["422"] = _refused(422)
        operation["responses"] = dict(sorted(operation["responses"].items()))
        operation["security"] = [] if path in OPEN else [{"key": []}, {}]
    for unused in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(unused, None)
    return document


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield path, item[method]


def _refused(status: int) -> dict[str, Any]:
    told = {"description": HTTPStatus(status).phrase, "content": REFUSED}
    if status == 429:
        told["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
    return told


def _refusal_schema() -> dict[str, Any]:
    fault = {"type": "object", "properties": {"loc": {"type": "array"}, "msg": {"type": "string"}}}
    return {
        "type": "object",
        "description": "Why not, in the words of every kind of client.",
        "properties": {
            "detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": fault}]},
            "data": {"type": "null"},
            "code": {"type": "integer", "description": "The HTTP status."},
            "error": {
                "description": "The same; on the paths of OpenAI's clients an object with it.",
                "anyOf": [
                    {"type": "string"},
                    {"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]},
                ],
            },
            "timestamp": {"type": "integer", "description": "Milliseconds since 1970."},
            "extra": {"type": "null"},
        },
        "required": ["detail", "data", "code", "error", "timestamp", "extra"],
        "examples": [
            {
                "detail": "bpm 400: Input should be less than or equal to 300. 30 to 300.",
                "data": None,
                "code": 400,
                "error": "bpm 400: Input should be less than or equal to 300. 30 to 300.",
                "timestamp": 1764054000000,
                "extra": None,
            }
        ],
    }


def written(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
