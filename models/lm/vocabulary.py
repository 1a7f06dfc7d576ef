"""What the constraints must know of a tokenizer; built from it, for no token id is the same in every checkpoint."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import CheckpointError
from models.music import KEYSCALES, LANGUAGES, MAX_AUDIO_CODE, TIME_SIGNATURES

AUDIO_CODE = re.compile(r"<\|audio_code_(\d+)\|>")
FIELDS = ("bpm", "caption", "duration", "genres", "keyscale", "language", "timesignature")
BPM_RANGE = range(30, 301)
SHORTEST_SECONDS = 10
NOTES = "ABCDEFG"

# the ids that may follow the ids written so far of a value
ValueTree = Mapping[tuple[int, ...], frozenset[int]]


@dataclass(frozen=True, slots=True)
class Columns:
    """Token ids in ascending order, as columns of a row of logits; a gap-free run is cut out without a copy."""

    ids: Tensor  # (column)
    run: slice | None

    @classmethod
    def of(cls, ids: Iterable[int], device: torch.device) -> Columns:
        ordered = sorted(set(ids))
        is_run = ordered[-1] - ordered[0] == len(ordered) - 1
        return cls(
            torch.tensor(ordered, dtype=torch.long, device=device),
            slice(ordered[0], ordered[-1] + 1) if is_run else None,
        )

    def cut(self, logits: Tensor) -> Tensor:
        return logits[self.run] if self.run is not None else logits.index_select(0, self.ids)

    def __len__(self) -> int:
        return len(self.ids)


class Vocabulary:
    """A tokenizer's ids, trees of values and sets of columns.

    `tokenizer` is a transformers tokenizer. `genres` are whole lines in lower case; without any, the genres field is
    never written. Raises CheckpointError where the tokenizer lacks what the LM's format needs.
    """

    def __init__(self, tokenizer: Any, genres: Sequence[str] = (), device: torch.device | None = None) -> None:
        self.tokenizer = tokenizer
        self.device = device or torch.device("cpu")
        self.size = len(tokenizer)
        if tokenizer.eos_token_id is None:
            raise CheckpointError("the tokenizer names no end-of-sequence token")
        self.eos: int = tokenizer.eos_token_id
        self.newline = self._only_id("\n")
        self.backtick = self._only_id("`")
        self.digits = [self.encode(str(digit))[-1] for digit in range(10)]
        self.reasoning_end = self.encode("</think>")
        self.id_of_code, self.codes_above_limit = self._audio_codes()
        self.code_of_id = {token: code for code, token in self.id_of_code.items()}
        self.forced = {text: self._longest_tokens(text) for text in _forced_texts()}
        self.trees: dict[str, ValueTree] = {
            "bpm": self._tree("bpm", [str(bpm) for bpm in BPM_RANGE]),
            "keyscale": self._tree("keyscale", KEYSCALES),
            "language": self._tree("language", LANGUAGES),
            "timesignature": self._tree("timesignature", TIME_SIGNATURES),
        }
        self.genres = GenreTexts(genres, self._texts() if genres else {})
        everything = range(self.size)
        codes = set(self.id_of_code.values())
        never = set(self.codes_above_limit)
        self.everything = self.columns(everything)
        self.open = self.columns(set(everything) - never)
        self.prose = self.columns(set(everything) - never - codes)
        self.caption = self.columns(set(everything) - never - codes - {self.backtick})
        self.codes = self.columns(codes)
        self.codes_or_eos = self.columns(codes | {self.eos})
        self.only_eos = self.columns([self.eos])
        self.only_newline = self.columns([self.newline])
        self.duration_tree = lru_cache(maxsize=8)(self._duration_tree)
        self.columns_of = lru_cache(maxsize=4096)(self.columns)

    def columns(self, ids: Iterable[int]) -> Columns:
        return Columns.of(ids, self.device)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def has_reasoning(self, prompt: Sequence[int]) -> bool:
        """Whether `</think>` is in a prompt, wherever it came from: then the LM goes on with codes at once."""
        width = len(self.reasoning_end)
        return any(list(prompt[i : i + width]) == self.reasoning_end for i in range(len(prompt) - width + 1))

    def _only_id(self, text: str) -> int:
        ids = self.encode(text)
        if len(ids) != 1:
            raise CheckpointError(f"the tokenizer needs {len(ids)} tokens for {text!r}, the LM's format allows one")
        return ids[0]

    def _audio_codes(self) -> tuple[dict[int, int], list[int]]:
        valid, above = {}, []
        for token, index in self.tokenizer.get_vocab().items():
            if match := AUDIO_CODE.fullmatch(token):
                code = int(match[1])
                if code <= MAX_AUDIO_CODE:
                    valid[code] = index
                else:
                    above.append(index)
        if not valid:
            raise CheckpointError("the tokenizer has no <|audio_code_N|> tokens: this is not an ACE-Step LM")
        return valid, above

    def _longest_tokens(self, text: str) -> tuple[int, ...]:
        """The reference writes fixed texts by the longest beginning that is one token: not always BPE's split."""
        ids: list[int] = []
        while text:
            for end in range(len(text), 0, -1):
                found = self.encode(text[:end])
                if len(found) == 1:
                    ids += found
                    text = text[end:]
                    break
            else:
                raise CheckpointError(f"the tokenizer has no single token that begins {text!r}")
        return tuple(ids)

    def _tree(self, field: str, values: Iterable[str]) -> ValueTree:
        name = self.encode(f"{field}:")
        tree: dict[tuple[int, ...], set[int]] = {}
        for value in values:
            ids = self.encode(f"{field}: {value}")
            if ids[: len(name)] != name:
                continue
            rest = tuple(ids[len(name) :])
            if field == "keyscale" and self.decode(rest[:1]).lstrip()[:1] not in NOTES:
                continue
            for length in range(len(rest) + 1):
                following = rest[length] if length < len(rest) else self.newline
                tree.setdefault(rest[:length], set()).add(following)
        return {prefix: frozenset(ids) for prefix, ids in tree.items()}

    def _duration_tree(self, longest_seconds: int) -> ValueTree:
        return self._tree("duration", [str(seconds) for seconds in range(SHORTEST_SECONDS, longest_seconds + 1)])

    def _texts(self) -> dict[int, str]:
        ids = [index for index in range(self.size) if index not in self.code_of_id]
        return dict(zip(ids, self.tokenizer.batch_decode([[index] for index in ids]), strict=True))


class GenreTexts:
    """Which tokens may continue a genre: the text so far plus the token must begin a line of the list."""

    def __init__(self, lines: Sequence[str], texts: Mapping[int, str]) -> None:
        self._lines = sorted({line.lower() for line in lines})
        self._ids: dict[str, list[int]] = {}
        for index, text in texts.items():
            self._ids.setdefault(text.lower().rstrip(), []).append(index)
        self._ids.pop("", None)
        # spaces of any number stand for one; the reference's own tables say so
        self._spaces = frozenset(index for index, text in texts.items() if text[:1] == " " and not text.strip())
        self._longest = max(map(len, self._ids), default=0)
        self.after = lru_cache(maxsize=4096)(self._after)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def is_space(self, token: int) -> bool:
        return token in self._spaces

    def _after(self, prefix: str) -> tuple[frozenset[int], bool]:
        """The ids that may follow `prefix`, and whether `prefix` is a whole line."""
        begin = bisect_left(self._lines, prefix)
        end = begin
        rests: set[str] = set()
        while end < len(self._lines) and self._lines[end].startswith(prefix):
            rest = self._lines[end][len(prefix) :]
            rests.update(rest[:length] for length in range(1, min(len(rest), self._longest) + 1))
            end += 1
        ids = {index for rest in rests for index in self._ids.get(rest, ())}
        if " " in rests:
            ids |= self._spaces
        return frozenset(ids), begin < end and self._lines[begin] == prefix


def read_genres(path: Path) -> list[str]:
    """One genre a line; `#` begins a comment line. Raises CheckpointError where the file cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the list of genres {path.name} cannot be read: {error}") from error
    return [line.strip().lower() for line in lines if line.strip() and not line.strip().startswith("#")]


def _forced_texts() -> list[str]:
    return ["<think>", "\n", "</think>", *(f"{field}:" for field in FIELDS)]
