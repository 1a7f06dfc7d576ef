"""What a caller's headers ask for: `Prefer` (RFC 7240), `If-None-Match`, `Idempotency-Key`."""

from __future__ import annotations

import hashlib
import re

from fastapi import Request

from models.errors import InvalidRequest
from serve_app.dialects.native.problems import Fault, refused_for
from serve_app.jobs.job import Idempotency

MAX_WAIT_S = 60
WAIT = re.compile(r'wait\s*=\s*"?(\d{1,9})"?')


def wait_of(request: Request) -> int | None:
    """Seconds that the caller would wait for the job, at most MAX_WAIT_S. What cannot be read is no preference, as the
    standard has it; the first of several counts."""
    for preference in ",".join(request.headers.getlist("prefer")).split(","):
        if match := WAIT.fullmatch(preference.partition(";")[0].strip().lower()):
            return min(int(match[1]), MAX_WAIT_S)
    return None


def is_known(request: Request, etag: str) -> bool:
    """Whether the caller has what this ETag stands for; compared weakly, as for a 304 (RFC 9110)."""
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return "*" in known or etag.removeprefix("W/") in known


def idempotency_of(request: Request, body: bytes) -> Idempotency | None:
    """The key may stand in quotes, as the draft of the header has it, or bare. Raises Refused."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    try:
        return Idempotency(key, hashlib.sha256(body).hexdigest())
    except InvalidRequest as error:
        raise refused_for([Fault(field="header Idempotency-Key", message=error.message)]) from None
