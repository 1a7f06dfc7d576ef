"""Who runs next on a busy device. Pure: no threads, no tensors, and time is handed in."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# A song may be overtaken by one that came this many times the difference of their work later. With 0 the order is
# that of arrival; the larger, the sooner short songs pass. No value starves anybody: time itself moves a song forward.
PATIENCE = 8.0


@dataclass(frozen=True, slots=True)
class Size:
    """What a song takes of one forward."""

    rows: int
    cost: int

    def __add__(self, other: Size) -> Size:
        return Size(self.rows + other.rows, self.cost + other.cost)


NOTHING = Size(0, 0)


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The most one forward takes: `songs` in rows, of which a guided song has two, and `cost` of all together."""

    songs: int = 8
    cost: int = 16_000  # tokens

    def __post_init__(self) -> None:
        if self.songs < 1 or self.cost < 1:
            raise ValueError(f"a batch takes at least 1 song and a cost of 1, not {self.songs} and {self.cost}")

    def has_room(self, present: Size, more: Size) -> bool:
        """A song beyond the limits runs when it is alone."""
        total = present + more
        return present == NOTHING or (total.rows <= self.songs and total.cost <= self.cost)


class WaitingLine(Generic[T]):
    """Songs in the order they are admitted: by arrival plus PATIENCE times their expected work.

    That sum never changes while a song waits, so a heap holds the order: a decision costs the logarithm of the line.
    Items are told apart by hash and equality.
    """

    def __init__(self, limits: BatchLimits, patience: float = PATIENCE) -> None:
        self.limits = limits
        self._patience = patience
        self._heap: list[tuple[float, int, T]] = []
        self._sizes: dict[T, Size] = {}  # an item that was withdrawn is in the heap only
        self._ticks = count()

    def __len__(self) -> int:
        return len(self._sizes)

    def add(self, item: T, size: Size, arrived_s: float, expected_s: float) -> None:
        """`expected_s` is how long the item is thought to keep the device busy."""
        self._sizes[item] = size
        heapq.heappush(self._heap, (arrived_s + self._patience * expected_s, next(self._ticks), item))

    def withdraw(self, item: T) -> None:
        """Forgets an item; one that is not waiting any more is no error."""
        self._sizes.pop(item, None)

    def clear(self) -> list[T]:
        """Takes everybody out."""
        left, self._sizes, self._heap = list(self._sizes), {}, []
        return left

    def admit(self, present: Size) -> list[T]:
        """Takes out those who fit beside what is present, in order. The first that does not fit holds up the rest,
        or a long song would wait for ever while short ones slip past it."""
        admitted: list[T] = []
        while self._heap:
            item = self._heap[0][2]
            size = self._sizes.get(item)
            if size is not None and not self.limits.has_room(present, size):
                break
            heapq.heappop(self._heap)
            if size is not None:
                present = present + size
                del self._sizes[item]
                admitted.append(item)
        return admitted


def run_in_halves(
    run: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], out_of_memory: type[Exception]
) -> list[R | None]:
    """Runs all items at once or, where memory does not suffice, in halves. `None` for one that does not fit alone."""
    if not items:
        return []
    try:
        return list(run(items))
    except out_of_memory:
        pass  # retried below: in here the traceback would keep the failed run's tensors alive
    if len(items) == 1:
        return [None]
    middle = len(items) // 2
    return run_in_halves(run, items[:middle], out_of_memory) + run_in_halves(run, items[middle:], out_of_memory)
