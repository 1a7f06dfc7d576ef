"""Request bodies of the ACE-Step APIs, whatever their content type, as one mapping of names to values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
PARTS_AT_MOST = 200


@dataclass(frozen=True, slots=True)
class Fields:
    """`files` names the fields that held a file."""

    values: Mapping[str, Any]
    files: tuple[str, ...] = ()


async def read_fields(request: Request) -> Fields:
    """Raises HTTPException 400 for a body that is not what it says, 415 for one that is nothing we read."""
    content_type = request.headers.get("content-type", "").lower()
    kind = content_type.partition(";")[0].strip()
    if kind == "application/json" or kind.endswith("+json"):
        return Fields(_object(await request.body(), "Malformed JSON payload"))
    if kind in FORMS:
        return await _read_form(request)
    body = (await request.body()).lstrip()
    if body[:1] in (b"{", b"["):
        return Fields(_object(body, "Invalid JSON body (hint: set 'Content-Type: application/json')"))
    if b"=" in body:
        return Fields({name: values[0] for name, values in parse_qs(_text(body), keep_blank_values=True).items()})
    raise HTTPException(
        415,
        f"Unsupported Content-Type: {kind or '(missing)'}; "
        "use application/json, application/x-www-form-urlencoded, or multipart/form-data",
    )


async def read_query_fields(request: Request) -> Fields:
    """JSON where the content type says so, a form otherwise; an empty body has no fields."""
    if "json" in request.headers.get("content-type", "").lower():
        return Fields(_object(await request.body() or b"{}", "Malformed JSON payload"))
    return await _read_form(request)


def nested(value: Any) -> Mapping[str, Any]:
    """An object, or a string that holds one, as forms must send it; anything else has no members."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


async def _read_form(request: Request) -> Fields:
    async with request.form(max_files=PARTS_AT_MOST, max_fields=PARTS_AT_MOST) as form:
        items = form.multi_items()
        values = {name: value for name, value in items if isinstance(value, str)}
        files = tuple(name for name, value in items if isinstance(value, UploadFile))
    return Fields(values, files)


def _object(body: bytes, complaint: str) -> Mapping[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, complaint) from error
    if not isinstance(content, dict):
        raise HTTPException(400, "JSON payload must be an object")
    return content


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the body is not UTF-8 text") from error
