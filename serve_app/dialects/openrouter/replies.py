"""Finished jobs as chat completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.music import Made, SongPlan
from serve_app.dialects.openrouter.requests import Asked
from serve_app.jobs.job import Job

NOTHING_TO_SAY = "Music generated successfully."


def completion(job: Job, made: Made, asked: Asked, audio_urls: Sequence[str]) -> dict[str, Any]:
    """The whole answer, every song of the job in it."""
    message = {"role": "assistant", "content": content_of(made) or NOTHING_TO_SAY, "audio": audio(audio_urls)}
    if codes := codes_of(made):
        message["audio_codes"] = codes[0] if len(codes) == 1 else codes
    warnings = [*asked.warnings, *made.remarks]
    return {
        **_head(job, asked, "chat.completion"),
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage_of(job, made),
        **({"warnings": warnings} if warnings else {}),
    }


def chunk(job: Job, asked: Asked, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {**_head(job, asked, "chat.completion.chunk"), "choices": [choice]}


def progress_chunk(job: Job, asked: Asked) -> dict[str, Any]:
    """A dot, as the reference sends it, and beside it what a client may make of it."""
    progress = {"stage": job.stage, "progress": round(job.progress, 4), "queue_position": job.queue_position}
    return chunk(job, asked, {"content": "."}) | {"progress": progress}


def usage_chunk(job: Job, made: Made, asked: Asked) -> dict[str, Any]:
    return {**_head(job, asked, "chat.completion.chunk"), "choices": [], "usage": usage_of(job, made)}


def audio(urls: Sequence[str]) -> list[dict[str, Any]]:
    return [{"type": "audio_url", "audio_url": {"url": url}} for url in urls]


def content_of(made: Made) -> str:
    """What the songs are, in words: those that are planned alike once."""
    told: dict[str, int] = {}
    for number, plan in enumerate(made.plans, 1):
        told.setdefault(_described(plan), number)
    return "\n\n".join(text if number == 1 else f"# Song {number}\n{text}" for text, number in told.items() if text)


def codes_of(made: Made) -> list[str]:
    """Of each song, as text; none where no LM planned any."""
    codes = ["".join(f"<|audio_code_{code}|>" for code in plan.codes) for plan in made.plans]
    return codes if any(codes) else []


def usage_of(job: Job, made: Made) -> dict[str, Any]:
    """The LM's tokens that became music; its reading and its words are not counted."""
    tokens = 0 if job.request.audio_codes else sum(len(plan.codes) for plan in made.plans)
    details = {"completion_tokens_details": {"audio_tokens": tokens}}
    return {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens, **details}


def _head(job: Job, asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{job.id}", "object": kind, "created": int(job.created_at), "model": asked.model}


def _described(plan: SongPlan) -> str:
    metas = plan.metas
    lines = {
        "Caption": plan.caption,
        "BPM": metas.bpm,
        "Duration": None if metas.duration is None else f"{metas.duration:g}s",
        "Key": metas.key_scale,
        "Time Signature": metas.time_signature,
    }
    known = [f"**{name}:** {value}" for name, value in lines.items() if value]
    parts = ["## Metadata\n" + "\n".join(known)] if known else []
    return "\n\n".join([*parts, f"## Lyrics\n{plan.lyrics}"] if plan.lyrics.strip() else parts)
