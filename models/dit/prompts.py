"""What is said to the text encoder, word for word as the reference says it in training and inference."""

from __future__ import annotations

from models.music import INSTRUMENTAL_LYRICS, Metas, MusicRequest, SongPlan, Task

INSTRUCTIONS = {
    Task.TEXT2MUSIC: "Fill the audio semantic mask based on the given conditions:",
    Task.COVER: "Generate audio semantic tokens based on the given conditions:",
    Task.REPAINT: "Repaint the mask area based on the given conditions:",
    Task.LEGO: "Generate the {}track based on the audio context:",
    Task.EXTRACT: "Extract the {}track from the audio:",
    Task.COMPLETE: "Complete the input track{}:",
}


def instruction_of(request: MusicRequest, plan: SongPlan) -> str:
    """The caller's, else the task's with the tracks it names; a song with audio codes is a cover of them."""
    given = (request.instruction or "").strip()
    if given:
        return given
    if plan.codes:
        return INSTRUCTIONS[Task.COVER]
    return INSTRUCTIONS[request.task_type].format(_tracks(request))


def _tracks(request: MusicRequest) -> str:
    if request.task_type is Task.COMPLETE:
        names = " | ".join(name.upper() for name in request.track_classes)
        return f" with {names}" if names else ""
    return f"{request.track_name.upper()} " if request.track_name else ""


def text_prompt(instruction: str, caption: str, metas: Metas) -> str:
    """The reference's text prompt (`handler.py`); what is not known is N/A."""
    if not instruction.endswith(":"):
        instruction += ":"
    known = {
        "bpm": metas.bpm,
        "timesignature": metas.time_signature,
        "keyscale": metas.key_scale,
        "duration": None if metas.duration is None else f"{int(metas.duration)} seconds",
    }
    lines = "".join(f"- {name}: {'N/A' if value is None else value}\n" for name, value in known.items())
    return f"# Instruction\n{instruction}\n\n# Caption\n{caption}\n\n# Metas\n{lines}<|endoftext|>\n"


def lyric_prompt(language: str, lyrics: str) -> str:
    if lyrics.strip().lower() in ("", "[inst]", "[instrumental]"):
        lyrics = INSTRUMENTAL_LYRICS
    return f"# Languages\n{language}\n\n# Lyric\n{lyrics}<|endoftext|>"
