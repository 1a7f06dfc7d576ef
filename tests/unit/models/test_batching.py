"""Who runs next, without threads, tensors or a clock."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from models.batching import NOTHING, BatchLimits, Size, WaitingLine, run_in_halves

SHORT, LONG = Size(1, 100), Size(1, 1000)


def test_songs_that_came_together_go_shortest_first() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=1))
    line.add("long", LONG, arrived_s=0.0, expected_s=10.0)
    line.add("short", SHORT, arrived_s=0.0, expected_s=1.0)

    assert line.admit(NOTHING) == ["short"]


def test_a_long_song_that_has_waited_long_goes_before_a_short_one() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=1), patience=2.0)
    line.add("long", LONG, arrived_s=0.0, expected_s=10.0)
    line.add("short", SHORT, arrived_s=18.5, expected_s=1.0)

    assert line.admit(NOTHING) == ["long"]


def test_equal_songs_go_in_order_of_arrival() -> None:
    line: WaitingLine[int] = WaitingLine(BatchLimits(songs=8))
    for number in range(20):
        line.add(number, SHORT, arrived_s=5.0, expected_s=1.0)

    assert line.admit(NOTHING) == list(range(8))
    assert line.admit(Size(6, 600)) == [8, 9]
    assert len(line) == 10


def test_cost_limits_a_batch_before_its_songs_do() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=8, cost=1500))
    line.add("first", LONG, 0.0, 1.0)
    line.add("second", LONG, 0.0, 1.0)

    assert line.admit(NOTHING) == ["first"]


def test_a_short_song_does_not_slip_past_a_long_one_that_is_next_but_does_not_fit() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=8, cost=1500))
    line.add("long", LONG, arrived_s=0.0, expected_s=1.0)
    line.add("short", SHORT, arrived_s=100.0, expected_s=1.0)

    assert line.admit(Size(1, 1000)) == []


def test_a_song_beyond_the_limits_runs_alone() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits(songs=1, cost=10))
    line.add("guided", Size(2, 2000), 0.0, 1.0)

    assert line.admit(SHORT) == []
    assert line.admit(NOTHING) == ["guided"]


def test_a_song_that_was_withdrawn_is_passed_over() -> None:
    line: WaitingLine[str] = WaitingLine(BatchLimits())
    line.add("gone", SHORT, 0.0, 1.0)
    line.add("here", SHORT, 0.0, 1.0)

    line.withdraw("gone")

    assert len(line) == 1
    assert line.admit(NOTHING) == ["here"]


def test_limits_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BatchLimits(songs=0)


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
