"""`/create_random_sample`: something to fill a form with."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from serve_app.dialects.access import Access, Scope
from serve_app.dialects.bodies import read_query_fields
from serve_app.dialects.parameters import short_body
from serve_app.dialects.replies import envelope
from serve_app.examples import Examples, FullExample, SimpleExample

SIMPLE = ("", "simple_mode")


def routes(access: Access) -> APIRouter:
    router = APIRouter()
    examples = Examples.load()

    @router.post("/create_random_sample", openapi_extra=short_body("sample_type", "simple_mode"))
    async def create_random_sample(request: Request) -> dict[str, Any]:
        """One of this server's examples: a few words to make a song of, or a song written out."""
        fields = await read_query_fields(request)
        access.owner_by_fields(request, fields.values, Scope.READ)
        asked = str(fields.values.get("sample_type") or "").strip()
        return envelope(to_sample(examples.draw(asked in SIMPLE)))

    return router


def to_sample(example: SimpleExample | FullExample) -> dict[str, Any]:
    """Under every name that the documents, the reference's files and their readers have for a value."""
    if isinstance(example, SimpleExample):
        lyrics = "[Instrumental]" if example.instrumental else ""
        unknown = {"bpm": None, "key_scale": "", "time_signature": "", "duration": None}
        return {**example.model_dump(), "caption": example.description, "lyrics": lyrics, **unknown}
    return {
        **example.model_dump(),
        "key_scale": example.keyscale,
        "time_signature": example.timesignature,
        "language": example.vocal_language,
    }
