"""Who runs next, without threads, tensors or a clock."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.batching import NOTHING, BatchLimits, Size, WaitingLine, run_in_halves

SHORT, LONG = Size(1, 100), Size(1, 1000)
ONE_BY_ONE = BatchLimits(songs=1)


def line_of(*expected_s: float) -> WaitingLine[int]:
    """One item for each figure, numbered from 0, of a device that takes one at a time."""
    line: WaitingLine[int] = WaitingLine(ONE_BY_ONE)
    for number, own_s in enumerate(expected_s):
        line.add(number, SHORT, own_s)
    return line


def order(line: WaitingLine[int]) -> list[int]:
    return [number for _ in range(len(line)) for number in line.admit(NOTHING)]


def test_a_short_song_passes_long_ones_that_have_others_before_them() -> None:
    assert order(line_of(10, 10, 10, 1)) == [0, 3, 1, 2]


def test_a_song_that_found_nobody_waiting_is_next() -> None:
    assert order(line_of(10, 1, 1)) == [0, 1, 2]


def test_nobody_is_passed_by_more_work_than_it_found_waiting() -> None:
    line = line_of(2, 10)
    assert line.admit(NOTHING) == [0]
    line.add(2, SHORT, 1.5)
    line.add(3, SHORT, 1.0)
    line.add(4, SHORT, 1.0)

    assert order(line) == [3, 4, 1, 2]


def test_equal_songs_go_in_order_of_arrival() -> None:
    line: WaitingLine[int] = WaitingLine(BatchLimits(songs=8))
    for number in range(20):
        line.add(number, SHORT, 1.0)

    assert line.admit(NOTHING) == list(range(8))
    assert line.admit(Size(6, 600)) == [8, 9]
    assert len(line) == 10


@given(
    st.lists(
        st.one_of(st.floats(0.01, 100), st.just("admit"), st.integers(0, 200)),
        max_size=300,
    )
)
def test_no_song_ever_waits_for_more_than_twice_the_work_it_found(events: list[float | str | int]) -> None:
    """A float comes and is so long, an integer is the number of a song that is withdrawn."""
    line: WaitingLine[int] = WaitingLine(ONE_BY_ONE)
    lengths: dict[int, float] = {}
    found: dict[int, float] = {}
    waited: dict[int, float] = {}  # of those who wait: the work admitted since they came
    for event in [*events, *["admit"] * len(events)]:
        if isinstance(event, float):
            number = len(lengths)
            lengths[number], found[number] = event, sum(lengths[other] for other in waited)
            waited[number] = 0.0
            line.add(number, SHORT, event)
        elif isinstance(event, int):
            line.withdraw(event)
            waited.pop(event, None)
        else:
            for admitted in line.admit(NOTHING):
                assert waited.pop(admitted) <= 2 * found[admitted] + 1e-6
                waited = {number: own + lengths[admitted] for number, own in waited.items()}
    assert len(line) == len(waited) == 0


def test_a_line_that_is_never_empty_forgets_those_who_left() -> None:
    items = [_Item() for _ in range(2000)]
    alive = weakref.WeakSet(items)
    things: WaitingLine[_Item] = WaitingLine(ONE_BY_ONE)
    for number, item in enumerate(items):
        things.add(item, LONG, 1000.0 - number % 7)
        if number > 3:
            things.admit(NOTHING)
    del items, item

    assert len(things) == 4
    assert len(alive) < 500


def test_cost_limits_a_batch_before_its_songs_do() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=8, cost=1500))
    line.add("first", LONG, 1.0)
    line.add("second", LONG, 1.0)

    assert line.admit(NOTHING) == ["first"]


def test_a_short_song_does_not_slip_past_a_long_one_that_is_next_but_does_not_fit() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=8, cost=1500))
    line.add("long", LONG, 1.0)
    line.add("short", SHORT, 0.5)

    assert line.admit(Size(1, 1000)) == []


def test_a_song_beyond_the_limits_runs_alone() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=1, cost=10))
    line.add("guided", Size(2, 2000), 1.0)

    assert line.admit(SHORT) == []
    assert line.admit(NOTHING) == ["guided"]


def test_a_song_that_was_withdrawn_is_passed_over() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits())
    line.add("gone", SHORT, 1.0)
    line.add("here", SHORT, 1.0)

    line.withdraw("gone")

    assert len(line) == 1
    assert line.admit(NOTHING) == ["here"]


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BatchLimits(songs=0)


class _Item:
    pass


class _SmallDevice:
    """Takes items up to a total, and remembers what it was asked to run."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.runs: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        if sum(items) > self.most:
            raise MemoryError
        self.runs.append(list(items))
        return [10 * item for item in items]


def test_out_of_memory_halves_the_batch_and_keeps_the_order() -> None:
    device = _SmallDevice(most=5)

    assert run_in_halves(device, [1, 2, 3, 2], MemoryError) == [10, 20, 30, 20]
    assert device.runs == [[1, 2], [3, 2]]


def test_out_of_memory_fails_only_the_item_that_does_not_fit_alone() -> None:
    assert run_in_halves(_SmallDevice(most=5), [1, 9, 2], MemoryError) == [10, None, 20]


def test_another_error_is_not_mistaken_for_a_lack_of_memory() -> None:
    def fail(items: Sequence[int]) -> list[int]:
        raise RuntimeError("illegal address")

    with pytest.raises(RuntimeError, match="illegal address"):
        run_in_halves(fail, [1, 2], MemoryError)
