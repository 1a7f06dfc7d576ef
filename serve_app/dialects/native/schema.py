"""The request's JSON schema, taken apart: one plain schema a field, for forms and for those who missed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from serve_app.dialects.native.fields import JobRequest

PROSE = ("title", "description", "default", "examples")


@cache
def whole() -> dict[str, Any]:
    """Of the whole body, without references."""
    schema = JobRequest.model_json_schema()
    inlined: dict[str, Any] = _inlined(schema, schema.pop("$defs"))
    return inlined


@cache
def fields() -> Mapping[str, Mapping[str, Any]]:
    """Schemas by field; `nullable` where a field may be null."""
    return {name: _plain(field) for name, field in whole()["properties"].items()}


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    told = {word: _inlined(part, definitions) for word, part in schema.items()}
    if "$ref" in told:
        told = {**_inlined(definitions[told.pop("$ref").rpartition("/")[2]], definitions), **told}
    return told


def _plain(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the alternative of null told by a word."""
    if "anyOf" not in schema:
        return schema
    (kind,) = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    return {**kind, **{word: part for word, part in schema.items() if word != "anyOf"}, "nullable": True}


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
