import random

from hypothesis import given
from hypothesis import strategies as st

from models.batching import AGEING_PER_S, Admission, BatchLimits, halves


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def line(limits: BatchLimits) -> tuple[Admission[str], Clock]:
    clock = Clock()
    return Admission(limits, clock), clock


def test_all_that_fit_are_let_in_at_once() -> None:
    waiting, _ = line(BatchLimits(songs=8, cost=1000))
    for name in "abc":
        waiting.add(name, 300)
    assert waiting.admit(0, 0) == ["a", "b", "c"]
    assert len(waiting) == 0


def test_no_more_than_the_songs_and_the_cost_allowed_run_together() -> None:
    waiting, _ = line(BatchLimits(songs=2, cost=1000))
    for name in "abc":
        waiting.add(name, 100)
    assert waiting.admit(0, 0) == ["a", "b"]
    assert waiting.admit(2, 200) == []
    assert waiting.admit(1, 950) == []
    assert waiting.admit(1, 900) == ["c"]


def test_a_song_larger_than_the_limit_runs_alone() -> None:
    waiting, _ = line(BatchLimits(songs=8, cost=1000))
    waiting.add("long", 5000)
    assert waiting.admit(1, 10) == []
    assert waiting.admit(0, 0) == ["long"]


def test_a_short_song_overtakes_a_long_one_that_came_just_before() -> None:
    waiting, clock = line(BatchLimits(songs=1, cost=10_000))
    waiting.add("long", 7500)
    clock.now = 1.0
    waiting.add("short", 125)
    assert waiting.admit(0, 0) == ["short"]


def test_a_long_song_is_not_overtaken_for_ever() -> None:
    waiting, clock = line(BatchLimits(songs=1, cost=10_000))
    waiting.add("long", 7500)
    clock.now = 7500 / AGEING_PER_S + 1
    waiting.add("short", 125)
    assert waiting.admit(0, 0) == ["long"]


def test_who_waits_for_room_holds_back_those_behind() -> None:
    waiting, clock = line(BatchLimits(songs=8, cost=1000))
    waiting.add("large", 900)
    clock.now = 60.0
    waiting.add("small", 100)
    assert waiting.admit(1, 500) == []


def test_who_leaves_the_line_is_never_let_in() -> None:
    waiting, _ = line(BatchLimits(songs=8, cost=1000))
    waiting.add("a", 1)
    assert waiting.remove("a")
    assert not waiting.remove("a")
    assert waiting.admit(0, 0) == []


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60), st.integers(0, 2**32))
def test_everybody_is_let_in_once_and_the_limits_hold_throughout(costs: list[int], seed: int) -> None:
    rng = random.Random(seed)
    limits = BatchLimits(songs=4, cost=1500)
    clock = Clock()
    waiting: Admission[int] = Admission(limits, clock)
    running: list[int] = []
    done: list[int] = []
    left = list(range(len(costs)))
    while left or running or len(waiting):
        clock.now += rng.random()
        if left and rng.random() < 0.6:
            waiting.add(left[0], costs[left.pop(0)])
        running += waiting.admit(len(running), sum(costs[item] for item in running))
        assert len(running) <= limits.songs
        assert len(running) <= 1 or sum(costs[item] for item in running) <= limits.cost
        if running and rng.random() < 0.5:
            done.append(running.pop(rng.randrange(len(running))))
    assert sorted(done) == list(range(len(costs)))


def test_halves_lose_nobody() -> None:
    assert halves([1, 2, 3]) == ([1], [2, 3])
    assert halves([1, 2]) == ([1], [2])
