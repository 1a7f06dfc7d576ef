"""Prompts of every mode, always through the checkpoint's own chat template, and the metadata block in YAML."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from models.music import INSTRUMENTAL_LYRICS, NO_NEGATIVE_PROMPT

GENERATE = "Generate audio semantic tokens based on the given conditions:"
UNDERSTAND = "Understand the given musical conditions and describe the audio semantics accordingly:"
CREATE_SAMPLE = "Expand the user's input into a more detailed and specific musical description:"
FORMAT = "Format the user's input into a more detailed and specific musical description:"

COT_FIELDS = ("bpm", "caption", "duration", "keyscale", "language", "timesignature")  # genres never go back to the LM
EMPTY_COT = "<think>\n</think>"


def cot_text(metadata: Mapping[str, object]) -> str:
    """The reasoning block as the LM was trained on it: sorted YAML between think tags."""
    items = {field: _yaml_value(field, metadata.get(field)) for field in COT_FIELDS if metadata.get(field) is not None}
    # an empty mapping would be written as {}
    block = yaml.dump(items, allow_unicode=True, sort_keys=True).strip() if items else ""
    return f"<think>\n{block}\n</think>"


def _yaml_value(field: str, value: object) -> object:
    if field == "timesignature" and isinstance(value, str) and value.endswith("/4"):
        value = value.removesuffix("/4")
    # isdecimal, for the reference's isdigit lets through digits that are no numbers, as ²
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def has_negative(negative_prompt: str) -> bool:
    return bool(negative_prompt.strip()) and negative_prompt.strip() != NO_NEGATIVE_PROMPT


class Prompts:
    """Renders the messages of each mode. `tokenizer` is a transformers tokenizer with a chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def metadata(self, caption: str, lyrics: str) -> str:
        """Asks for the metadata block."""
        return self._ask(GENERATE, _song(caption, lyrics))

    def metadata_unguided(self, lyrics: str, negative_prompt: str) -> str:
        """The other half of a guided metadata phase: the caption is replaced, or left out with its heading."""
        if has_negative(negative_prompt):
            return self.metadata(negative_prompt, lyrics)
        return self._ask(GENERATE, f"# Lyric\n{lyrics}\n")

    def codes(self, caption: str, lyrics: str, cot: str) -> str:
        """Asks for audio codes. The LM goes on after the assistant's turn, which the template has already closed."""
        text = self._render(
            [*_messages(GENERATE, _song(caption, lyrics)), {"role": "assistant", "content": cot}], asks=False
        )
        return text if text.endswith("\n") else text + "\n"

    def codes_unguided(self, caption: str, lyrics: str, negative_prompt: str) -> str:
        """The other half of a guided code phase: no metadata; unlike the metadata phase it keeps the caption."""
        return self.codes(negative_prompt if has_negative(negative_prompt) else caption, lyrics, EMPTY_COT)

    def understand(self, audio_codes: str) -> str:
        return self._ask(UNDERSTAND, audio_codes)

    def create_sample(self, query: str, is_instrumental: bool) -> str:
        return self._ask(CREATE_SAMPLE, f"{query}\n\ninstrumental: {str(is_instrumental).lower()}")

    def format(self, caption: str, lyrics: str) -> str:
        return self._ask(FORMAT, f"# Caption\n{caption}\n\n# Lyric\n{lyrics}")

    def _ask(self, instruction: str, content: str) -> str:
        return self._render(_messages(instruction, content), asks=True)

    def _render(self, messages: list[dict[str, str]], asks: bool) -> str:
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks))


def sample_query_or_default(query: str) -> str:
    return query if query.strip() else NO_NEGATIVE_PROMPT


def caption_or_default(caption: str) -> str:
    return caption if caption.strip() else NO_NEGATIVE_PROMPT


def lyrics_or_default(lyrics: str) -> str:
    return lyrics if lyrics.strip() else INSTRUMENTAL_LYRICS


def codes_text(codes: tuple[int, ...]) -> str:
    return "".join(f"<|audio_code_{code}|>" for code in codes)


def _song(caption: str, lyrics: str) -> str:
    return f"# Caption\n{caption}\n\n# Lyric\n{lyrics}\n"


def _messages(instruction: str, content: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": f"# Instruction\n{instruction}\n\n"},
        {"role": "user", "content": content},
    ]
