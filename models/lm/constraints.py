"""What the LM may write next: metadata as lines of `field: value` between think tags, then audio codes or lyrics.

A finite state machine after the reference's (ACE-Step 1.5, MetadataConstrainedLogitsProcessor), step for step, except
where the reference would never end; those exits are in docs/decisions/0002-lm-traps.md.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from torch import Tensor

from models.lm.vocabulary import FIELDS, Columns, ValueTree, Vocabulary

MAX_CAPTION_TOKENS = 512
MAX_LOST_TOKENS = 16  # a field name after the caption (the longest known has fourteen letters), or newlines
NAMES_AFTER_CAPTION = FIELDS[2:]


class Then(StrEnum):
    """What follows the metadata."""

    CODES = "codes"
    LYRICS = "lyrics"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Rules:
    """What one run of the LM may write. `given` values are written by force, never by the LM."""

    is_constrained: bool = True
    begins_with_codes: bool = False
    then: Then = Then.CODES
    skipped: frozenset[str] = frozenset({"genres"})
    given: dict[str, str] = field(default_factory=dict)
    longest_seconds: int = 600
    forced_seconds: int | None = None  # written digit by digit where no duration is given
    fewest_codes: int = 0
    most_codes: int | None = None


class Row(Protocol):
    """One step's logits, cut to the columns that matter."""

    def cut(self, columns: Columns) -> Tensor: ...


class State(StrEnum):
    OPEN = "open"
    NAME = "name"
    VALUE = "value"
    CLOSE = "close"
    CODES = "codes"
    REST = "rest"


class Constraint:
    """The state machine of one song: `allow` once a step, then `advance` with the token that was chosen."""

    def __init__(self, vocabulary: Vocabulary, rules: Rules) -> None:
        self._vocabulary = vocabulary
        self._rules = rules
        self._forced: deque[int] = deque()
        self._field = ""
        self._ids: tuple[int, ...] = ()
        self._text = ""
        self._caption = _Caption()
        self.codes = 0
        self.state = State.OPEN
        if not rules.is_constrained:
            self.state = State.REST
        elif rules.begins_with_codes:
            self.state = State.CODES
        else:
            self._force(*vocabulary.forced["<think>"], *vocabulary.forced["\n"])

    @property
    def where(self) -> str:
        """The state in words, for traces."""
        return f"{self.state} of {self._field}" if self.state in (State.NAME, State.VALUE) else str(self.state)

    @property
    def needs_token(self) -> bool:
        """Whether `advance` looks at the token: only then must the host wait for the device."""
        return self._rules.is_constrained and self.state not in (State.CODES, State.REST)

    def allow(self, row: Row) -> Columns:
        """The columns the next token may come from; reads the logits only where a rule depends on them."""
        if self._forced:
            return self._vocabulary.columns_of((self._forced[0],))
        if self.state is State.CODES:
            return self._allow_codes()
        if self.state is State.VALUE:
            return self._allow_value(row)
        return self._allow_rest()

    def advance(self, token: int | None) -> None:
        """`token` may be left out where `needs_token` says so."""
        if self.state is State.CODES:
            self.codes += 1
        elif self._forced:
            self._forced.popleft()
            if not self._forced:
                self._after_forced()
        elif self.state is State.VALUE and token is not None:
            self._advance_value(token)

    def _allow_rest(self) -> Columns:
        if not self._rules.is_constrained:
            return self._vocabulary.everything
        return self._vocabulary.prose if self._rules.then is Then.LYRICS else self._vocabulary.open

    def _allow_codes(self) -> Columns:
        if self.codes < self._rules.fewest_codes:
            return self._vocabulary.codes
        if self._rules.most_codes is not None and self.codes >= self._rules.most_codes:
            return self._vocabulary.only_eos
        return self._vocabulary.codes_or_eos

    def _allow_value(self, row: Row) -> Columns:
        match self._field:
            case "caption":
                return self._caption.allow(row, self._vocabulary)
            case "genres":
                return self._allow_genre()
            case "duration" if self._rules.forced_seconds is not None:
                return self._allow_digit(str(self._rules.forced_seconds))
            case "duration":
                return self._allow_in(self._vocabulary.duration_tree(self._rules.longest_seconds))
            case "language" if not self._ids:
                # the language is never drawn: its likeliest first token decides
                columns = self._allow_in(self._vocabulary.trees["language"])
                return self._vocabulary.columns_of((int(columns.ids[row.cut(columns).argmax()]),))
        return self._allow_in(self._vocabulary.trees[self._field])

    def _allow_in(self, tree: ValueTree) -> Columns:
        following = tree.get(self._ids, frozenset())
        is_whole = self._vocabulary.newline in following
        if not following or (is_whole and self._field not in ("bpm", "duration")):
            return self._vocabulary.only_newline
        return self._vocabulary.columns_of(following)

    def _allow_digit(self, digits: str) -> Columns:
        if len(self._ids) >= len(digits):
            return self._vocabulary.only_newline
        return self._vocabulary.columns_of((self._vocabulary.digits[int(digits[len(self._ids)])],))

    def _allow_genre(self) -> Columns:
        genres = self._vocabulary.genres
        following, is_complete = genres.after(self._text.lower().strip())
        if is_complete:
            following |= {self._vocabulary.newline}
        is_stuck = self._ids and genres.is_space(self._ids[-1]) and all(map(genres.is_space, following))
        if not following or is_stuck:
            return self._vocabulary.only_newline
        return self._vocabulary.columns_of(following)

    def _advance_value(self, token: int) -> None:
        if self._field == "caption":
            self._advance_caption(token)
        elif token != self._vocabulary.newline:
            self._ids += (token,)
            if self._field == "genres":
                self._text += self._vocabulary.decode([token])
        elif self._field in self._rules.skipped:
            # reached by the LM's own words after the caption; the reference stays here for ever
            self._close()
        else:
            self._go_on()

    def _advance_caption(self, token: int) -> None:
        name = self._caption.advance(self._vocabulary.decode([token]))
        if name in NAMES_AFTER_CAPTION:
            self._enter_value(name)
        elif name is not None:
            self._go_on()
        elif self._caption.is_lost:
            self.state = State.CLOSE
            self._force(self._vocabulary.newline)

    def _after_forced(self) -> None:
        match self.state:
            case State.OPEN:
                self._enter_name("bpm")
            case State.NAME:
                self._enter_value(self._field)
            case State.VALUE:
                self._go_on()
            case State.CLOSE:
                self._after_close()

    def _after_close(self) -> None:
        if not self._field:
            self.state = State.CODES if self._rules.then is Then.CODES else State.REST
        else:
            self._close()

    def _go_on(self) -> None:
        later = FIELDS[FIELDS.index(self._field) + 1 :]
        following = next((name for name in later if name not in self._rules.skipped), None)
        if following is None:
            self._close()
        else:
            self._enter_name(following)

    def _enter_name(self, name: str) -> None:
        self.state, self._field = State.NAME, name
        self._force(*self._vocabulary.forced[f"{name}:"])

    def _enter_value(self, name: str) -> None:
        self.state, self._field, self._ids, self._text = State.VALUE, name, (), ""
        if (value := self._rules.given.get(name)) is not None:
            self._force(*self._vocabulary.encode(f" {value}\n"))

    def _close(self) -> None:
        self.state, self._field = State.CLOSE, ""
        if self._rules.then is Then.NOTHING:
            # the reference ends here with the end token in place of the tag; the parser knows
            self._force(self._vocabulary.eos)
        else:
            self._force(*self._vocabulary.forced["</think>"])

    def _force(self, *ids: int) -> None:
        self._forced.extend(ids)


class _Caption:
    """Free text of at most 512 tokens. An unindented line after it is the next field's name, in the LM's own words."""

    def __init__(self) -> None:
        self._tokens = 0
        self._is_after_newline = False
        self._is_naming = False
        self._name = ""
        self._name_tokens = 0
        self.is_lost = False

    def allow(self, row: Row, vocabulary: Vocabulary) -> Columns:
        if self._is_after_newline:
            self._is_after_newline = False
            top = vocabulary.decode([int(row.cut(vocabulary.everything).argmax())])
            if top and top[0] not in " \t":
                self._is_naming, self._name = True, ""
        if self._is_naming:
            return vocabulary.open
        return vocabulary.only_newline if self._tokens >= MAX_CAPTION_TOKENS else vocabulary.caption

    def advance(self, text: str) -> str | None:
        """The name of the field that begins, once its colon is written."""
        self._tokens += 1
        self._is_after_newline = "\n" in text
        if self._is_naming:
            self._name += text
            self._name_tokens += 1
            if ":" in text:
                return self._name.strip().rstrip(":").strip().lower()
        # the reference waits for a colon, or repeats the forced newline, until its token limit
        is_overlong = not self._is_naming and self._tokens >= MAX_CAPTION_TOKENS + MAX_LOST_TOKENS
        self.is_lost = is_overlong or self._name_tokens >= MAX_LOST_TOKENS
        return None
