"""JSON as everything behind a dialect can take it: finite numbers, each name once, no text that cannot be stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

DEEPEST = 32
MOST_VALUES = 100_000  # counted by the signs between them, before any takes up memory and time
LONGEST_NUMBER = 40  # characters
UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # no database takes a NUL, and a lone surrogate is no character


class BadJson(ValueError):
    """Without a text for what is no JSON at all; else it says what is wrong with it."""


def read_json(text: bytes | str) -> Any:
    """Raises BadJson."""
    if holds_too_much(text):
        raise BadJson(f"it holds more than {MOST_VALUES} values")
    try:
        content = json.loads(
            text, object_pairs_hook=_once, parse_constant=_refuse, parse_int=_whole, parse_float=_finite
        )
    except BadJson:
        raise
    except RecursionError:
        raise BadJson(f"it is nested deeper than {DEEPEST} levels") from None
    except ValueError as error:
        raise BadJson from error
    _check(content)
    return content


def holds_too_much(text: bytes | str) -> bool:
    """More than MOST_VALUES."""
    return sum(text.count(sign) if isinstance(text, str) else text.count(sign.encode()) for sign in ",[{") > MOST_VALUES


def is_storable(text: str) -> bool:
    return UNSTORABLE.search(text) is None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in members if names.count(name) > 1)
        raise BadJson(f"{twice[:100]!r} stands in it twice")
    return members


def _refuse(word: str) -> NoReturn:
    raise BadJson(f"{word} is no number")


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise BadJson(f"a number has more than {LONGEST_NUMBER} digits")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BadJson(f"{digits[:LONGEST_NUMBER]} is too large a number")
    return number


def _check(content: Any) -> None:
    """Depth and texts; level by level, so that nothing here is nested."""
    level = [content]
    for _ in range(DEEPEST + 1):
        texts = [each for each in level if isinstance(each, str)]
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                texts += each
                inner += each.values()
            elif isinstance(each, list):
                inner += each
        if not all(map(is_storable, texts)):
            raise BadJson("a text in it holds a NUL or half a character")
        if not inner:
            return
        level = inner
    raise BadJson(f"it is nested deeper than {DEEPEST} levels")
