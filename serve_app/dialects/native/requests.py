"""From the body of `POST /v2/jobs` to a MusicRequest; whatever is wrong with it is told at once, field by field."""

from __future__ import annotations

import difflib
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from models import audio, checkpoints
from models.editing import source_of
from models.music import MAX_SEED, MusicRequest
from models.pipeline import needs_lm
from serve_app.dialects.desk import Attachments, Desk
from serve_app.dialects.native.fields import JobRequest, OwnFields
from serve_app.dialects.native.problems import Fault, Refused, refused_for
from serve_app.dialects.native.schema import allowed_at, fields
from serve_app.jobs.job import Terms

AUDIO_FIELDS = ("src_audio", "reference_audio")
OWN_TRACK = re.compile(r"/v2/jobs/([^/]+)/tracks/([1-9])")
SHOWN_LETTERS = 80  # of a value that is refused
MOST_FAULTS = 100  # told of one body
GUESSES = 10  # at what a name that is not known was meant to be


@dataclass(frozen=True, slots=True)
class Asked:
    request: MusicRequest
    attached: Attachments
    terms: Terms


async def read_request(body: bytes, desk: Desk, owner: str) -> Asked:
    """Raises Refused: 400 for what is no JSON object, 422 with all values that are not allowed by themselves; or, where
    there is none, with all that do not go together."""
    asked = _shaped(body)
    faults = [*asked] if isinstance(asked, list) else []
    faults += await _unknown_names(from_json(body), desk)
    if isinstance(asked, list) or faults:
        raise refused_for(faults)
    attached = await _attached(asked, desk, owner)
    values = _values(asked, desk)
    if faults := [*_contradictions(asked, MusicRequest.model_construct(**values), desk)]:
        raise refused_for(faults)
    terms = Terms(
        priority=asked.priority,
        deadline_s=asked.deadline_s,
        reuse=asked.reuse,
        webhook=None if asked.webhook is None else asked.webhook.url,
    )
    return Asked(MusicRequest.model_validate(values), attached, terms)


def _shaped(body: bytes) -> OwnFields | list[Fault]:
    try:
        return JobRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        errors = error.errors()[:MOST_FAULTS]
    if not errors[0]["loc"]:
        raise Refused(400, f"the body is not a JSON object: {errors[0]['msg']}", "invalid_json")
    inner = {error["loc"][:-1] for error in errors}
    told = [error for error in errors if error["loc"] not in inner]  # not a list for what is in it
    return [_fault_of(error, is_guessed=place < GUESSES) for place, error in enumerate(told)]


def _fault_of(error: ErrorDetails, *, is_guessed: bool) -> Fault:
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        near = difflib.get_close_matches(name, fields(), n=1) if is_guessed and len(error["loc"]) == 1 else []
        return fault_at(error["loc"], "not known here" + (f"; did you mean {near[0]}?" if near else ""))
    shown = repr(error["input"])
    message = error["msg"].removeprefix("Value error, ")
    return fault_at(error["loc"], f"{shown if len(shown) <= SHOWN_LETTERS else shown[:SHOWN_LETTERS] + '…'}: {message}")


def fault_at(place: Sequence[int | str], message: str, allowed: Any = None) -> Fault:
    """Of the body."""
    pointer = "#/" + "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in place)
    name = ".".join(map(str, place))
    return Fault(field=name, pointer=pointer, message=message, allowed=allowed or allowed_at(place))


async def _unknown_names(given: Mapping[str, Any], desk: Desk) -> list[Fault]:
    """Models, LMs and adapters that this server has not."""
    known = {"model": [card.name for card in desk.catalogue.models], "lm_model": [*desk.catalogue.lm_models]}
    faults = [
        fault_at([name], f"{given[name]!r}: this server runs {', '.join(names) or 'none'}", {"enum": names})
        for name, names in known.items()
        if isinstance(given.get(name), str) and given[name] not in names
    ]
    loras = given.get("loras")
    named = [lora.get("name") if isinstance(lora, dict) else None for lora in loras] if isinstance(loras, list) else []
    if not named:
        return faults
    adapters = await desk.adapters()
    return faults + [
        fault_at(["loras", place, "name"], f"no adapter is called {name!r}", {"enum": [*adapters]})
        for place, name in enumerate(named)
        if isinstance(name, str) and name not in adapters
    ]


async def _attached(asked: Any, desk: Desk, owner: str) -> Attachments:
    """Raises Refused."""
    ids, faults = [], []
    for name in AUDIO_FIELDS:
        try:
            ids.append(await _audio_id(getattr(asked, name), desk, owner))
        except LookupError as error:
            faults.append(fault_at([name], str(error.args[0])))
    if faults:
        raise refused_for(faults)
    return Attachments(*ids)


async def _audio_id(value: str | None, desk: Desk, owner: str) -> str | None:
    """Of an upload or a track, from its id or from an address of this server's. Nothing else is ever opened.

    Raises LookupError with what is wrong.
    """
    if value is None or not re.search(r"[/\\:]", value):
        return value
    try:
        address = urlsplit(value)
    except ValueError:
        raise LookupError(f"{value!r} is no address") from None
    if match := OWN_TRACK.fullmatch(address.path):
        (job,) = await desk.look_up([match[1]], owner)
        tracks = job.made.tracks if job and job.made else ()
        if len(tracks) < int(match[2]):
            raise LookupError(f"{value!r}: there is no such track")
        return tracks[int(match[2]) - 1].ref
    ids = parse_qs(address.query).get("path", []) if address.path == "/v1/audio" else []
    if len(ids) != 1:
        raise LookupError(
            f"{value!r}: only an upload or a finished track of this server can be named, by its id or as "
            "/v2/jobs/ID/tracks/N; send other audio to /v2/uploads first"
        )
    return ids[0]


def _values(asked: Any, desk: Desk) -> dict[str, Any]:
    """A MusicRequest's fields as far as they are given, with seeds drawn where they are not."""
    taken = MusicRequest.model_fields.keys() & asked.model_fields_set
    values = {name: getattr(asked, name) for name in taken if name not in OwnFields.model_fields}
    values["model"] = asked.model or desk.catalogue.default_model.name
    values["seeds"] = asked.seeds or _drawn(asked.batch_size or 1)
    if asked.retake_variance and not asked.retake_seeds:
        values["retake_seeds"] = _drawn(len(values["seeds"]))
    return values


def _drawn(songs: int) -> tuple[int, ...]:
    return tuple(secrets.randbelow(MAX_SEED + 1) for _ in range(songs))


def _contradictions(asked: OwnFields, request: MusicRequest, desk: Desk) -> Iterator[Fault]:
    """What is wrong with values that are each allowed. `request` need not be valid."""
    variant = checkpoints.variant_named(request.model)
    for name, message in (
        *_own_contradictions(asked, request, desk),
        *request.contradictions(),
        *checkpoints.objections(request, variant),
        *audio.objections(request.encoding),
    ):
        yield Fault(field=name, pointer=f"#/{name}", message=message)


def _own_contradictions(asked: OwnFields, request: MusicRequest, desk: Desk) -> Iterator[tuple[str, str]]:
    if asked.seeds and asked.batch_size not in (None, len(asked.seeds)):
        yield "batch_size", f"batch_size {asked.batch_size} with {len(asked.seeds)} seeds; give one of the two"
    if asked.reuse and not asked.seeds:
        yield "reuse", "reuse without seeds: those drawn are new every time"
    if asked.reuse and asked.webhook:
        yield "webhook", "webhook with reuse: it is told of a new job's end"
    if asked.reuse and (request.src_audio or request.reference_audio):
        yield "reuse", "reuse with audio: it is kept for each job, and nobody compares it"
    if request.src_audio is not None and source_of(request) is None:
        reason = "audio codes stand in for it" if request.audio_codes else f"{request.task_type} works on none"
        yield "src_audio", f"src_audio is not used: {reason}"
    if needs_lm(request) and not desk.catalogue.lm_models:
        for name in ("thinking", "sample_query", "use_format"):
            if getattr(request, name) not in (False, None):
                yield name, f"{name} needs an LM, and this server runs none"
