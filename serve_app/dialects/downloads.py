"""Stored files over HTTP: whole or one range of them (RFC 9110), streamed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from serve_app.dialects.desk import TrackFile
from serve_app.dialects.replies import REFUSED

DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The whole file.",
        "content": {"audio/*": {"schema": {"type": "string", "contentMediaType": "audio/*"}}},
        "headers": {
            "Accept-Ranges": {"schema": {"type": "string"}},
            "ETag": {"schema": {"type": "string"}},
            "Last-Modified": {"schema": {"type": "string"}},
        },
    },
    206: {
        "description": "The range asked for.",
        "content": {"audio/*": {"schema": {"type": "string", "contentMediaType": "audio/*"}}},
        "headers": {"Content-Range": {"schema": {"type": "string"}}},
    },
    304: {"description": "The caller has the file: `If-None-Match`."},
    416: {
        "description": "The range is outside the file.",
        "content": REFUSED,
    },
}
RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


def send_track(file: TrackFile, request: Request, more_headers: Mapping[str, str] | None = None) -> Response:
    """200, 206 or 304. Several ranges in one request get the whole file, as the standard allows. Raises HTTPException
    416."""
    headers = {
        **(more_headers or {}),
        "accept-ranges": "bytes",
        "etag": f'"{file.etag}"',
        "last-modified": formatdate(file.modified_at, usegmt=True),
        "cache-control": "private, immutable, max-age=31536000",
        "x-content-type-options": "nosniff",
    }
    if headers["etag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", headers["etag"]) not in headers.values():
        asked = None  # the caller holds part of another file
    span = _span(asked, file.size)
    if span == ():
        raise HTTPException(416, f"{asked} is outside the file", {"content-range": f"bytes */{file.size}"})
    first, last = span or (0, file.size - 1)
    if span:
        headers["content-range"] = f"bytes {first}-{last}/{file.size}"
    headers["content-length"] = str(last - first + 1)
    status = 206 if span else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    return StreamingResponse(file.read(first, last), status, headers, file.media_type)


def _span(asked: str | None, size: int) -> tuple[int, int] | tuple[()] | None:
    """First and last byte of the one range asked for, `()` for one outside the file, `None` for none at all."""
    match = RANGE.fullmatch(asked.strip()) if asked else None
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:  # the last so many bytes
        length = min(int(match[2]), size)
        return (size - length, size - 1) if length else ()
    first = int(match[1])
    last = min(int(match[2]), size - 1) if match[2] else size - 1
    if match[2] and int(match[2]) < first:
        return None
    return (first, last) if first < size else ()
