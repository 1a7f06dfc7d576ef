"""`/v2/uploads`: audio that songs are to be made from, or are to sound like."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import MULTIPART, read_fields
from serve_app.dialects.desk import Desk, Upload
from serve_app.dialects.native.problems import Refused, documented

RAW = ("audio/", "application/octet-stream", "application/ogg", "video/mp4")  # how media types of audio begin
BINARY = {"schema": {"type": "string", "format": "binary"}}
FORM = {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}, "required": ["file"]}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"audio/*": BINARY, "application/octet-stream": BINARY, MULTIPART: {"schema": FORM}},
    }
}


class UploadView(BaseModel):
    id: str = Field(description="For `src_audio` and `reference_audio` of the caller's own jobs.")
    seconds: float
    sample_rate: int = Field(description="Of the file, in Hz.")
    channels: int
    size: int = Field(description="Bytes.")


def add_routes(router: APIRouter, desk: Desk, access: Access) -> None:
    @router.post(
        "/uploads",
        status_code=201,
        response_model=UploadView,
        responses=documented(408, 413, 415),
        openapi_extra=BODY,
    )
    async def upload(request: Request) -> dict[str, Any]:
        """Takes wav, flac, mp3, aac, m4a or ogg, as the body itself or as the one file of a form; decodes it once, and
        keeps it for a day or so after it was used last."""
        owner = access.owner_by_header(request, Scope.GENERATE)
        kept = await keep(request, owner)
        return {name: getattr(kept, name) for name in UploadView.model_fields}

    async def keep(request: Request, owner: str) -> Upload:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == MULTIPART:
            async with read_fields(request) as fields:
                if len(fields.files) != 1 or fields.values:
                    seen = f"{len(fields.files)} files and {len(fields.values)} other fields"
                    raise Refused(422, f"a form of {seen}: send one file and nothing else")
                (content,) = fields.files.values()
                return await desk.keep_upload(content, owner)
        if kind and not kind.startswith(RAW):
            raise Refused(415, f"Content-Type {kind}: send audio/*, application/octet-stream or {MULTIPART}")
        return await desk.keep_upload(request.stream(), owner)
