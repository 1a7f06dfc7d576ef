"""Audio sent along with a request: as a file of a form, as the address of a track that this server made, or
as a path on the server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import parse_qs, urlsplit

from models.errors import InvalidRequest
from models.music import Task
from serve_app.dialects.bodies import Fields
from serve_app.dialects.desk import Attached, Attachments, ServerPath
from serve_app.dialects.parameters import REFERENCE_FILES, SOURCE_FILES, Given

AUDIO = "/v1/audio"  # where tracks are fetched
AUDIO_FILES = frozenset({*SOURCE_FILES, *REFERENCE_FILES})


def find_attachments(
    given: Given, fields: Fields, *, has_codes: bool, is_heard: bool = False
) -> tuple[Attachments, list[str]]:
    """What is attached, and what of it is not used: a file wins over an address. A source that nothing is made from is
    tolerated, since the studio's clients send one with every task; one that `is_heard` is analysed, whatever the task.
    Raises InvalidRequest."""
    sources = _sent(given, fields, SOURCE_FILES, "src_audio_path")
    references = _sent(given, fields, REFERENCE_FILES, "reference_audio_path")
    warnings = [f"{name}: not a file, not used" for name in sorted(AUDIO_FILES) if fields.values.get(name)]
    warnings += [f"{name}: not used, {sent[0]} was sent" for sent in (sources, references) for name in sent[1:]]
    reason = ""
    if given["task_type"] == Task.TEXT2MUSIC and not is_heard:
        reason = "not used by text2music"
    elif has_codes:
        reason = "not used, audio codes stand in for it"
    if sources and reason:
        warnings.append(f"{sources[0]}: {reason}")
        sources = []
    return Attachments(_attached(given, fields, sources), _attached(given, fields, references)), warnings


def _sent(given: Given, fields: Fields, files: Sequence[str], path: str) -> list[str]:
    """Names under which audio of one use was sent, the one that counts first."""
    return [name for name in files if name in fields.files] + ([path] if given[path].strip() else [])


def _attached(given: Given, fields: Fields, names: Sequence[str]) -> Attached | None:
    if not names:
        return None
    return fields.files[names[0]] if names[0] in fields.files else named(names[0], given[names[0]].strip())


def named(name: str, value: str) -> str | ServerPath:
    """A finished track, by its id or by the address it is fetched at; or a file, by its absolute path on the server.
    Nothing else is ever opened."""
    if not re.search(r"[/\\:]", value):
        return value
    if ".." in re.split(r"[/\\]", value):
        raise InvalidRequest(f"{name} {value!r}: path traversal in audio file paths is not allowed")
    if value.startswith("/") and value.partition("?")[0] != AUDIO:
        return ServerPath(value)
    try:
        address = urlsplit(value)
        ids = parse_qs(address.query).get("path", []) if address.path == AUDIO else []
    except ValueError:
        ids = []
    if len(ids) != 1:
        raise InvalidRequest(
            f"{name} {value!r}: only a finished track of this server can be named, as /v1/audio?path=ID; "
            "or a file in a folder that it reads, by its absolute path; send other audio as a file in a multipart form"
        )
    return ids[0]
