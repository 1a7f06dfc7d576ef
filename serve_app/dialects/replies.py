"""The envelope of the ACE-Step APIs, and its errors: one body that every kind of client finds its own words in."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from fastapi.responses import JSONResponse

from models.music import Made

NOT_KNOWN = "N/A"  # what the reference puts for metadata nobody knows
REFUSED = {
    "application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}
}  # content, for the API's description
CONFLICTS: dict[int | str, dict[str, Any]] = {
    409: {"description": "Idempotency-Key of another body", "content": REFUSED}
}


def envelope(data: Any) -> dict[str, Any]:
    return {"data": data, "code": 200, "error": None, "timestamp": _now_ms(), "extra": None}


def failure(code: int, error: str) -> dict[str, Any]:
    """What is sent with HTTP 200 where ACE-Step's clients look at `code` only."""
    return envelope(None) | {"code": code, "error": error}


def refusal(status: int, detail: Any, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """`detail` is a sentence, or FastAPI's list of faults; `error` is always a sentence."""
    error = detail if isinstance(detail, str) else "; ".join(str(fault.get("msg", fault)) for fault in detail)
    body = {"detail": detail, "data": None, "code": status, "error": error, "timestamp": _now_ms(), "extra": None}
    return JSONResponse(body, status, dict(headers or {}))


def track_address(ref: str) -> str:
    """Where a finished track is fetched, relative to the server."""
    return f"/v1/audio?path={quote(ref, safe='')}"


def generation_info(made: Made) -> str:
    total = sum(made.seconds_by_stage.values())
    stages = "\n".join(f"- {stage}: {seconds:.2f}s" for stage, seconds in made.seconds_by_stage.items())
    return f"**Total generation time ({len(made.tracks)} songs): {total:.2f}s**\n{stages}"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
