"""Request bodies of the ACE-Step APIs, whatever their content type, as one mapping of names to values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import FormParser, MultiPartException, MultiPartParser

from serve_app.dialects.strict_json import BadJson, is_storable, read_json

MULTIPART = "multipart/form-data"
FORMS = ("application/x-www-form-urlencoded", MULTIPART)
FIELDS_AT_MOST = 200
FILES_AT_MOST = 8
TEXT_AT_MOST = 4 * 2**20  # bytes of a body or of a form's fields, which are read into memory; all is text here
CHUNK = 256 * 1024


@dataclass(frozen=True, slots=True)
class Fields:
    """`files`: the content of those fields that held a file, by the field's name."""

    values: Mapping[str, Any]
    files: Mapping[str, AsyncIterable[bytes]] = field(default_factory=dict)

    async def sha256(self) -> str:
        """Of all that was sent but the key: the same for the same fields in whatever order, so that a request that is
        sent again can be told from another."""
        values = {name: value for name, value in self.values.items() if name != "ai_token"}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
        for name in sorted(self.files):
            content = hashlib.sha256()
            async for chunk in self.files[name]:
                content.update(chunk)
            digest.update(f"{name}={content.hexdigest()}\n".encode())
        return digest.hexdigest()


@asynccontextmanager
async def read_fields(request: Request) -> AsyncIterator[Fields]:
    """Files, which lie on disk until the end of the context, may be read within it.

    Raises HTTPException 400 for a body that is not what it says, 415 for one that is nothing we read.
    """
    if _kind(request) in FORMS:
        async with _read_form(request) as fields:
            yield fields
    else:
        yield await _read_text(request)


async def _read_text(request: Request) -> Fields:
    kind = _kind(request)
    if kind == "application/json" or kind.endswith("+json"):
        return Fields(_object(await _body(request), "Malformed JSON payload"))
    body = (await _body(request)).lstrip()
    if body[:1] in (b"{", b"["):
        return Fields(_object(body, "Invalid JSON body (hint: set 'Content-Type: application/json')"))
    if b"=" in body:
        return Fields(_pairs(_text(body)))
    raise HTTPException(
        415,
        f"Unsupported Content-Type: {kind or '(missing)'}; "
        "use application/json, application/x-www-form-urlencoded, or multipart/form-data",
    )


async def read_object(request: Request) -> Mapping[str, Any]:
    """A JSON object, whatever the content type. The body is not kept: it may be much, and its caller wait for long."""
    return _object(b"".join([chunk async for chunk in request.stream()]), "Malformed JSON payload")


async def read_query_fields(request: Request) -> Fields:
    """JSON where the content type says so, a form otherwise; an empty body has no fields. Files are not looked at."""
    if "json" in request.headers.get("content-type", "").lower():
        return Fields(_object(await _body(request) or b"{}", "Malformed JSON payload"))
    if _kind(request) not in FORMS:
        return Fields({})
    async with _read_form(request) as fields:
        return Fields(fields.values)


def nested(value: Any) -> Mapping[str, Any]:
    """An object, or a string that holds one, as forms must send it; anything else has no members."""
    if isinstance(value, str):
        try:
            value = read_json(value)
        except BadJson as error:
            if str(error):
                raise HTTPException(400, f"a JSON text in a field: {error}") from error
            return {}  # a text, then
    return value if isinstance(value, dict) else {}


@asynccontextmanager
async def _read_form(request: Request) -> AsyncIterator[Fields]:
    """A browser sends a field for a file that nobody chose as an empty one without a name: it is not given."""
    try:
        form = await (_WholeForm(request) if _kind(request) == MULTIPART else _plain_form(request)).parse()
    except MultiPartException as error:
        raise HTTPException(400, error.message) from error
    except UnicodeError as error:  # of a charset that somebody made up
        raise HTTPException(400, "the form is not text in the charset it names") from error
    try:
        items = form.multi_items()
        if not all(is_storable(text) for name, value in items for text in (name, value) if isinstance(text, str)):
            raise HTTPException(400, "a field of the form holds a NUL or half a character")
        values = {name: value for name, value in items if isinstance(value, str)}
        files = {
            name: value for name, value in items if isinstance(value, UploadFile) and (value.filename or value.size)
        }
        yield Fields(values, {name: _Content(file) for name, file in files.items()})
    finally:
        await form.close()


def _plain_form(request: Request) -> FormParser:
    stream = request.stream()
    return FormParser(request.headers, stream, max_fields=FIELDS_AT_MOST, max_part_size=TEXT_AT_MOST)


class _WholeForm(MultiPartParser):
    """Starlette's own parser drops the last part of a form that is cut short, and says nothing; and it bounds each
    field, but not all of them together."""

    spool_max_size = 64 * 1024

    def __init__(self, request: Request) -> None:
        limits = {"max_files": FILES_AT_MOST, "max_fields": FIELDS_AT_MOST}
        super().__init__(request.headers, self._to_the_end(request.stream()), **limits)
        self._is_whole = False
        self._text_bytes = 0

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._text_bytes += end - start
            if self._text_bytes > TEXT_AT_MOST:
                raise MultiPartException(f"the form's fields hold more than {TEXT_AT_MOST} bytes")
        super().on_part_data(data, start, end)

    def on_end(self) -> None:
        self._is_whole = True

    async def _to_the_end(self, stream: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._is_whole:
            raise MultiPartException("the form ends before its last part does")


class _Content:
    """A file of a form, from its beginning as often as it is asked for."""

    def __init__(self, file: UploadFile) -> None:
        self._file = file

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await self._file.seek(0)
        while chunk := await self._file.read(CHUNK):
            yield chunk


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").lower().partition(";")[0].strip()


def _object(body: bytes, complaint: str) -> Mapping[str, Any]:
    try:
        content = read_json(body)
    except BadJson as error:
        raise HTTPException(400, f"{complaint}: {error}" if str(error) else complaint) from error
    if not isinstance(content, dict):
        raise HTTPException(400, "JSON payload must be an object")
    return content


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > TEXT_AT_MOST:
            raise HTTPException(413, f"the request body is larger than {TEXT_AT_MOST} bytes")
    return bytes(body)


def _pairs(text: str) -> dict[str, str]:
    try:
        found = parse_qs(text, keep_blank_values=True, max_num_fields=FIELDS_AT_MOST)
    except ValueError as error:
        raise HTTPException(400, f"Too many fields. Maximum number of fields is {FIELDS_AT_MOST}.") from error
    if not all(is_storable(text) for name, values in found.items() for text in (name, *values)):
        raise HTTPException(400, "a field of the form holds a NUL or half a character")
    return {name: values[0] for name, values in found.items()}


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the body is not UTF-8 text") from error
