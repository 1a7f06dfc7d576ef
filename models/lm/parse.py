"""What the LM wrote, read back: metadata fields, audio codes, lyrics. Nothing is trusted here, only recognised."""

from __future__ import annotations

import re

from models.lm.vocabulary import AUDIO_CODE, FIELDS

_REASONING = (re.compile(r"<think>(.*?)</think>", re.DOTALL), re.compile(r"<reasoning>(.*?)</reasoning>", re.DOTALL))
_LYRIC_HEADING = re.compile(r"^#\s*Lyri[c|s]?\s*\n", re.IGNORECASE)
_END = re.compile(r"<\|im_end\|>\s*$")
_NUMBERS = ("bpm", "duration")

Metadata = dict[str, int | str]


def metadata_of(text: str) -> Metadata:
    """Fields of the reasoning block, or, where its end is missing, of all lines before the first audio code.

    A line that begins with `<` is passed over; an unindented line with a colon begins a field; indented lines go on
    with it. A later field of the same name wins. `bpm` and `duration` become integers where they are integers.
    """
    found: Metadata = {}
    name, lines = "", list[str]()
    for line in [*_reasoning(text).split("\n"), ":"]:
        if line.strip().startswith("<"):
            continue
        if line and not line[0].isspace() and ":" in line:
            if name in FIELDS and lines:
                found[name] = _value(name, "\n".join(lines))
            name, _, first = line.partition(":")
            name, lines = name.strip().lower(), [first] if first.strip() else []
        elif line.startswith((" ", "\t")) and name:
            lines.append(line)
    return found


def codes_of_text(text: str) -> tuple[int, ...]:
    return tuple(int(match[1]) for match in AUDIO_CODE.finditer(text))


def lyrics_of(text: str) -> str:
    """What follows the reasoning block, without a `# Lyric` heading and the end token; empty where no block ends."""
    _, ends, rest = text.partition("</think>")
    if not ends:
        return ""
    return _END.sub("", _LYRIC_HEADING.sub("", rest.strip())).strip()


def _reasoning(text: str) -> str:
    for pattern in _REASONING:
        if (match := pattern.search(text)) and match[1].strip():
            return match[1].strip()
        if match:
            break
    return text.split("<|audio_code_", maxsplit=1)[0].strip()


def _value(name: str, text: str) -> int | str:
    if name == "caption":
        return " ".join(line.strip() for line in text.split("\n") if line.strip())
    if name in _NUMBERS:
        try:
            return int(text.strip())
        except ValueError:
            return text.strip()
    return text.strip()
