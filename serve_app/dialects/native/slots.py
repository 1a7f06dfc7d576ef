"""How many connections of one replica may be held open at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    def __init__(self, most: int) -> None:
        self.most = most
        self._taken = 0

    @property
    def are_full(self) -> bool:
        return self._taken >= self.most

    @contextmanager
    def take(self) -> Iterator[None]:
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1
