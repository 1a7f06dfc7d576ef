"""Who runs next on a busy device. Pure: no threads, no tensors, and time is handed in."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


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
    cost: int = 9_000  # tokens; benchmarks/scheduling.py says why not more

    def __post_init__(self) -> None:
        if self.songs < 1 or self.cost < 1:
            raise ValueError(f"a batch takes at least 1 song and a cost of 1, not {self.songs} and {self.cost}")

    def has_room(self, present: Size, more: Size) -> bool:
        """A song beyond the limits runs when it is alone."""
        total = present + more
        return present == NOTHING or (total.rows <= self.songs and total.cost <= self.cost)


@dataclass(slots=True, eq=False)
class _Waiting(Generic[T]):
    item: T
    size: Size
    expected_s: float
    is_waiting: bool = True


class _Order(Generic[T]):
    """Entries by a key that never changes, the older first where it is the same. Those that left are passed over."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Waiting[T]]] = []

    def push(self, key: float, tick: int, entry: _Waiting[T]) -> None:
        heapq.heappush(self._heap, (key, tick, entry))

    def first(self, waiting: int) -> tuple[float, _Waiting[T]]:
        """The first of `waiting` entries, at least one, with its key."""
        if len(self._heap) > 2 * waiting + 64:  # or a line that is never empty would remember everybody for ever
            self._heap = [place for place in self._heap if place[2].is_waiting]
            heapq.heapify(self._heap)
        while not self._heap[0][2].is_waiting:
            heapq.heappop(self._heap)
        key, _, entry = self._heap[0]
        return key, entry


class WaitingLine(Generic[T]):
    """The shortest song goes first, but nobody is overtaken by more work than was waiting when he came.

    A song that finds W seconds of work waiting would wait W if all went in order, so it waits 2 W at most: the work it
    found, and as much again of later songs that pass it. Once one song has no patience left, all go in order until it
    is gone. What passes is charged to everybody, to those who came later as well; so one number holds all accounts,
    and three heaps make a decision cost the logarithm of the line. Items are told apart by hash and equality.
    """

    def __init__(self, limits: BatchLimits) -> None:
        self.limits = limits
        self._entries: dict[T, _Waiting[T]] = {}
        self._ticks = count()
        self._waiting_s = 0.0  # work in the line
        self._passed_s = 0.0  # work that has ever gone out of its turn
        self._empty()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, item: T, size: Size, expected_s: float) -> None:
        """`expected_s` is how long the item is thought to keep the device busy."""
        entry = self._entries[item] = _Waiting(item, size, expected_s)
        tick = next(self._ticks)
        self._oldest.push(tick, tick, entry)
        self._shortest.push(expected_s, tick, entry)
        self._least_patient.push(self._passed_s + self._waiting_s, tick, entry)
        self._waiting_s += expected_s

    def withdraw(self, item: T) -> None:
        """Forgets an item; one that is not waiting any more is no error."""
        entry = self._entries.pop(item, None)
        if entry is not None:
            self._leave(entry)

    def clear(self) -> list[T]:
        """Takes everybody out."""
        left = list(self._entries)
        self._entries = {}
        self._empty()
        return left

    def admit(self, present: Size) -> list[T]:
        """Takes out those who fit beside what is present, in order. The first that does not fit holds up the rest,
        or a long song would wait for ever while short ones slip past it."""
        admitted: list[T] = []
        while self._entries:
            entry, passed_s = self._next()
            if not self.limits.has_room(present, entry.size):
                break
            present = present + entry.size
            del self._entries[entry.item]
            self._leave(entry)
            self._passed_s += passed_s
            admitted.append(entry.item)
        return admitted

    def _next(self) -> tuple[_Waiting[T], float]:
        """Whose turn it is, and the work by which others are passed then."""
        waiting = len(self._entries)
        _, oldest = self._oldest.first(waiting)
        _, shortest = self._shortest.first(waiting)
        patience_s, _ = self._least_patient.first(waiting)
        if shortest is oldest or self._passed_s + shortest.expected_s > patience_s:
            return oldest, 0.0
        return shortest, shortest.expected_s

    def _leave(self, entry: _Waiting[T]) -> None:
        entry.is_waiting = False
        self._waiting_s -= entry.expected_s
        if not self._entries:
            self._empty()

    def _empty(self) -> None:
        self._oldest, self._shortest, self._least_patient = _Order[T](), _Order[T](), _Order[T]()
        self._waiting_s = self._passed_s = 0.0  # rounding does not pile up


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
