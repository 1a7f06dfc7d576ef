"""The request's JSON schema, taken apart: one plain schema a field, for forms and for those who missed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from serve_app.dialects.native.fields import JobRequest

PROSE = ("title", "description", "default", "examples")


@cache
def fields() -> Mapping[str, Mapping[str, Any]]:
    """Schemas by field, without references; `nullable` where a field may be null."""
    schema = JobRequest.model_json_schema()
    return {name: plain(field, schema["$defs"]) for name, field in schema["properties"].items()}


def plain(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """With references followed, and the alternative of null told by `nullable`."""
    told = dict(schema)
    if "$ref" in told:
        told = {**definitions[told.pop("$ref").rpartition("/")[2]], **told}
    if "anyOf" in told:
        (kind,) = [kind for kind in told.pop("anyOf") if kind != {"type": "null"}]
        told = {**kind, **told, "nullable": True}
    if "items" in told:
        told["items"] = plain(told["items"], definitions)
    if "properties" in told:
        told["properties"] = {name: plain(member, definitions) for name, member in told["properties"].items()}
    return told


def allowed_at(place: Sequence[int | str]) -> dict[str, Any] | None:
    """What may stand there; `None` where nothing may."""
    schema: Mapping[str, Any] = {"properties": fields()}
    for part in place:
        members = schema.get("properties", {})
        if isinstance(part, int):
            schema = schema.get("items", {})
        elif part in members:
            schema = members[part]
        else:
            return None
    return {word: value for word, value in schema.items() if word not in PROSE} or None
