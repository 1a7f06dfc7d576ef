"""Requests to learn from, in many languages: a few words for the LM to make a song of, and songs written out."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

from pydantic import Field

from models.music import MAX_LYRICS_LETTERS, MAX_PROMPT_LETTERS, Bpm, KeyScale, Language, Seconds, TimeSignature, Value

SHIPPED = Path(__file__).with_name("examples.json")

Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LETTERS)]


class SimpleExample(Value):
    """`description` is a `sample_query`. A language of `unknown` goes with what is instrumental."""

    description: Prompt
    instrumental: bool
    vocal_language: Language


class FullExample(Value):
    """`duration` in seconds. The names are those of the reference's example files."""

    caption: Prompt
    lyrics: Annotated[str, Field(min_length=1, max_length=MAX_LYRICS_LETTERS)]
    bpm: Bpm
    keyscale: KeyScale
    timesignature: TimeSignature
    duration: Seconds
    vocal_language: Language
    think: bool = True


class Examples(Value):
    simple: Annotated[tuple[SimpleExample, ...], Field(min_length=1)]
    full: Annotated[tuple[FullExample, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path = SHIPPED) -> Examples:
        """Raises OSError and ValidationError."""
        return cls.model_validate_json(path.read_text(encoding="utf-8"))

    def draw(self, is_simple: bool) -> SimpleExample | FullExample:
        return secrets.choice(self.simple) if is_simple else secrets.choice(self.full)
