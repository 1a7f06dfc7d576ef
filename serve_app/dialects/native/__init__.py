"""The native API, `/v2`: one spelling each, strict, and errors that name every field at fault."""

from __future__ import annotations

from fastapi import APIRouter

from serve_app.dialects.access import Access
from serve_app.dialects.desk import Desk
from serve_app.dialects.native import capabilities, events, jobs, problems, tracks, uploads
from serve_app.dialects.native.slots import Slots

STREAMS_AT_ONCE = 100  # of a replica: callers that watch or wait for a job


def routes(desk: Desk, access: Access, max_upload_bytes: int) -> APIRouter:
    router = APIRouter(prefix=problems.PREFIX, tags=["native"])
    held = Slots(STREAMS_AT_ONCE)
    jobs.add_routes(router, desk, access, held)
    events.add_routes(router, desk, access, held)
    tracks.add_routes(router, desk, access)
    uploads.add_routes(router, desk, access)
    capabilities.add_routes(router, desk, access, max_upload_bytes)
    return router
