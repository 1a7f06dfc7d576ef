"""Jobs that make no song: the flags that ask for them, and their results."""

from __future__ import annotations

from typing import Any

from models.errors import InvalidRequest
from models.music import HEARD, Analysis, SongPlan
from serve_app.dialects.desk import Attachments
from serve_app.dialects.parameters import Given

FLAGS = {
    "analysis_only": Analysis.PLAN,
    "full_analysis_only": Analysis.SONG,
    "extract_codes_only": Analysis.CODES,
}
TASK_UNLESS_GIVEN = "text2music"


def analysis_of(given: Given) -> Analysis | None:
    """Raises InvalidRequest."""
    asked = [name for name in FLAGS if given[name]]
    if len(asked) > 1:
        raise InvalidRequest(f"{' and '.join(asked)}: allowed is one of them")
    return FLAGS[asked[0]] if asked else None


def check_source(analysis: Analysis | None, attachments: Attachments, *, has_codes: bool) -> None:
    """Raises InvalidRequest in the reference's words."""
    if analysis not in HEARD or attachments.source is not None or (has_codes and analysis is Analysis.SONG):
        return
    name = next(name for name, each in FLAGS.items() if each is analysis)
    raise InvalidRequest(f"{name} requires src_audio_path to be set.")


def not_used_by(analysis: Analysis | None, given: Given) -> list[str]:
    if analysis is None:
        return []
    songs, task = given["batch_size"], given["task_type"]
    return [
        *(["batch_size: not used, an analysis is of one song"] if songs not in (None, 1) else []),
        *(["audio_code_string: not used"] if analysis is Analysis.CODES and given["audio_code_string"] else []),
        *([f"task_type: not used, an analysis makes no {task}"] if task != TASK_UNLESS_GIVEN else []),
    ]


def heard_song(plan: SongPlan, metas: dict[str, Any]) -> dict[str, Any]:
    """The `result` of `full_analysis_only`."""
    return {
        "status_message": "Full Hardware Analysis Success",
        **{name: metas[name] for name in ("bpm", "keyscale", "timesignature", "duration")},
        "genre": metas["genres"],
        "prompt": plan.caption,
        "lyrics": plan.lyrics,
        "language": plan.language,
        "metas": metas,
        "audio_codes": codes_text(plan),
        "audio_paths": [],
    }


def heard_codes(plan: SongPlan) -> dict[str, Any]:
    """The `result` of `extract_codes_only`."""
    return {
        "status_message": "Audio Codes Extraction Success",
        "audio_codes": codes_text(plan),
        "audio_paths": [],
        "raw_audio_paths": [],
        "first_audio_path": None,
        "metas": {},
    }


def codes_text(plan: SongPlan) -> str:
    return "".join(f"<|audio_code_{code}|>" for code in plan.codes)
