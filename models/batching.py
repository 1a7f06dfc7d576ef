"""Who runs next on a busy device. Pure: no threads, no tensors, a clock that is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

# A waiting item moves ahead of one this much cheaper for each second it has waited longer: short songs go first while
# the queue is young, and nothing waits for ever.
AGEING_PER_S = 500.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`songs` at a time, and `cost` of all together; one song alone is always let in."""

    songs: int
    cost: int


@dataclass(slots=True)
class _Waiting(Generic[T]):
    item: T
    cost: int
    since: float


@dataclass(slots=True)
class Admission(Generic[T]):
    """Items wait here until there is room beside those that run."""

    limits: BatchLimits
    clock: Callable[[], float]
    _waiting: list[_Waiting[T]] = field(default_factory=list)

    def add(self, item: T, cost: int) -> None:
        self._waiting.append(_Waiting(item, cost, self.clock()))

    def remove(self, item: T) -> bool:
        """Whether the item was still waiting."""
        before = len(self._waiting)
        self._waiting = [waiting for waiting in self._waiting if waiting.item is not item]
        return len(self._waiting) < before

    def __len__(self) -> int:
        return len(self._waiting)

    def admit(self, running_songs: int, running_cost: int) -> list[T]:
        """Takes out those that may start now, first in line first. Who does not fit holds back all behind it."""
        now = self.clock()
        line = sorted(self._waiting, key=lambda waiting: waiting.cost - AGEING_PER_S * (now - waiting.since))
        admitted: list[T] = []
        for waiting in line:
            is_alone = running_songs == 0
            has_room = running_songs < self.limits.songs and running_cost + waiting.cost <= self.limits.cost
            if not (is_alone or has_room):
                break
            running_songs += 1
            running_cost += waiting.cost
            admitted.append(waiting.item)
            self._waiting.remove(waiting)
        return admitted


def halves(items: list[T]) -> tuple[list[T], list[T]]:
    """For a second try when the whole did not fit into memory."""
    middle = len(items) // 2
    return items[:middle], items[middle:]
