"""How good the order of songs is: our scheduling code and its peers under a virtual clock, all with the same costs.

    python -m benchmarks.scheduling [--costs FILE] [--songs N] [--traces N]

Songs are turbo songs of 8 steps, 15 to 600 s long (log-normal, median 120 s), and come at random (Poisson). One device
does everything: a step of all songs present, then the decoding of those that are done. A cost file says how long that
takes, so the times here are forecasts and the ratios are what counts. Efficiency is the work, each token at the speed
of an endless batch, over the time it took; capacity is that with everybody waiting at the start.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Protocol

from models.batching import NOTHING, BatchLimits, Size, WaitingLine

COSTS = Path(__file__).parent / "costs" / "h100-calculated.json"
TOKENS_PER_SECOND = 12.5
STEPS = 8
SHORT_S = 60.0
BUCKETS_S = (30, 60, 120, 180, 240, 360, 480, 600)
LOADS = (0.6, 0.75, 0.93)
PEER_BUDGETS = (8_000, 12_000, 16_000, 24_000)  # padded peers get the one that suits them best
PACE_KEPT = 0.9  # as in models/dit/loop.py
LINES = (10, 100_000)


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of device time. A step takes its tokens' time, more by half_speed_tokens/tokens in a small batch."""

    name: str
    is_measured: bool
    source: str
    token_s: float
    token_pair_s: float  # attention, for each pair of tokens of one song
    half_speed_tokens: float
    step_floor_s: float
    decoded_second_s: float  # VAE, for each second of audio
    song_s: float  # text and condition encoders, once a song

    @classmethod
    def read(cls, path: Path) -> Costs:
        return cls(**json.loads(path.read_text()))

    def work_s(self, tokens: int) -> float:
        """One step of one song at the speed of an endless batch."""
        return self.token_s * tokens + self.token_pair_s * tokens**2

    def step_s(self, rows: Sequence[int]) -> float:
        tokens = sum(rows)
        slowed = sum(map(self.work_s, rows)) * (1 + self.half_speed_tokens / tokens)
        return max(self.step_floor_s, slowed)


@dataclass(frozen=True, slots=True)
class Song:
    number: int
    arrived_s: float
    seconds: float

    @property
    def tokens(self) -> int:
        return math.ceil(self.seconds * TOKENS_PER_SECOND)

    @property
    def is_short(self) -> bool:
        return self.seconds <= SHORT_S


@dataclass(slots=True)
class Place:
    """A song in the running batch."""

    song: Song
    steps_left: int = STEPS


Latencies = list[float]  # of each song, from its arrival to its last decoded sample
Policy = Callable[[Sequence[Song], Costs], Latencies]


class Line(Protocol):
    """What the step loop asks of those who wait."""

    def __len__(self) -> int: ...
    def add(self, item: Song, size: Size, expected_s: float) -> None: ...
    def admit(self, present: Size) -> list[Song]: ...


class ArrivalOrder:
    """First come, first served; otherwise as WaitingLine."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: deque[tuple[Song, Size]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Song, size: Size, expected_s: float) -> None:
        self._waiting.append((item, size))

    def admit(self, present: Size) -> list[Song]:
        admitted = []
        while self._waiting and self._limits.has_room(present, self._waiting[0][1]):
            song, size = self._waiting.popleft()
            present = present + size
            admitted.append(song)
        return admitted


class Arrivals:
    """Songs in the order they come."""

    def __init__(self, songs: Iterable[Song]) -> None:
        self._coming = deque(songs)

    def __len__(self) -> int:
        return len(self._coming)

    def until(self, now: float) -> list[Song]:
        come = []
        while self._coming and self._coming[0].arrived_s <= now:
            come.append(self._coming.popleft())
        return come

    @property
    def next_s(self) -> float:
        return self._coming[0].arrived_s


def size_of(song: Song) -> Size:
    return Size(1, song.tokens)


def step_by_step(songs: Sequence[Song], costs: Costs, line: Line) -> Latencies:
    """As models/dit/loop.py: before every step whoever has room is seated, at the pace learnt from the steps before."""
    arrivals, seats, latencies = Arrivals(songs), list[Place](), [0.0] * len(songs)
    now = pace_s = 0.0

    def hand_in() -> None:
        for song in arrivals.until(now):
            line.add(song, size_of(song), pace_s * song.tokens * STEPS)

    while arrivals or seats or len(line):
        hand_in()
        admitted = line.admit(sum((size_of(place.song) for place in seats), NOTHING))
        seats += map(Place, admitted)
        if not seats:
            now = arrivals.next_s
            continue
        rows = [place.song.tokens for place in seats]
        step_s = costs.step_s(rows)
        now += costs.song_s * len(admitted) + step_s
        hand_in()  # before the pace has this step in it
        pace_s = PACE_KEPT * pace_s + (1 - PACE_KEPT) * step_s / sum(rows) if pace_s else step_s / sum(rows)
        for place in seats:
            place.steps_left -= 1
            if not place.steps_left:
                now += costs.decoded_second_s * place.song.seconds
                latencies[place.song.number] = now - place.song.arrived_s
        seats = [place for place in seats if place.steps_left]
    return latencies


Take = Callable[[deque[Song]], tuple[list[Song], list[int]]]  # the next batch, and the tokens of its rows


def batch_by_batch(songs: Sequence[Song], costs: Costs, take: Take) -> Latencies:
    """A batch is begun when the last is finished, with whoever is there: no policy here holds songs back."""
    arrivals, waiting, latencies = Arrivals(songs), deque[Song](), [0.0] * len(songs)
    now = 0.0
    while arrivals or waiting:
        waiting += arrivals.until(now)
        if not waiting:
            now = arrivals.next_s
            continue
        batch, rows = take(waiting)
        now += costs.song_s * len(batch) + STEPS * costs.step_s(rows)
        for song in batch:  # padding is cut off before it is decoded
            now += costs.decoded_second_s * song.seconds
            latencies[song.number] = now - song.arrived_s
    return latencies


def packed(limits: BatchLimits) -> Take:
    def take(waiting: deque[Song]) -> tuple[list[Song], list[int]]:
        batch, present = list[Song](), NOTHING
        while waiting and limits.has_room(present, size_of(waiting[0])):
            present = present + size_of(waiting[0])
            batch.append(waiting.popleft())
        return batch, [song.tokens for song in batch]

    return take


def padded_to_the_longest(limits: BatchLimits) -> Take:
    def take(waiting: deque[Song]) -> tuple[list[Song], list[int]]:
        batch, longest = list[Song](), 0
        while waiting:
            widest = max(longest, waiting[0].tokens)
            if not limits.has_room(Size(len(batch), widest * len(batch)), Size(1, widest)):
                break
            longest = widest
            batch.append(waiting.popleft())
        return batch, [longest] * len(batch)

    return take


def padded_to_buckets(limits: BatchLimits) -> Take:
    def bucket(song: Song) -> int:
        return math.ceil(TOKENS_PER_SECOND * next(most for most in BUCKETS_S if song.seconds <= most))

    def take(waiting: deque[Song]) -> tuple[list[Song], list[int]]:
        """The oldest song and the next ones of its bucket."""
        tokens = bucket(waiting[0])
        most = max(1, min(limits.songs, limits.cost // tokens))
        batch = [song for song in waiting if bucket(song) == tokens][:most]
        for song in batch:
            waiting.remove(song)
        return batch, [tokens] * len(batch)

    return take


def stepping(line: Callable[[], Line]) -> Policy:
    return lambda songs, costs: step_by_step(songs, costs, line())


def batching(take: Take) -> Policy:
    return lambda songs, costs: batch_by_batch(songs, costs, take)


def best_of(form: Callable[[BatchLimits], Take], songs: Sequence[Song], costs: Costs) -> Policy:
    """With the token budget at which all songs are done first."""
    policies = [batching(form(BatchLimits(cost=budget))) for budget in PEER_BUDGETS]
    return min(policies, key=lambda policy: max(policy(songs, costs)))


def policies(crowd: Sequence[Song], costs: Costs, limits: BatchLimits) -> dict[str, Policy]:
    """Ours first. `crowd` is what the padded ones are tuned on."""
    return {
        "ours": stepping(lambda: WaitingLine[Song](limits)),
        "first come": stepping(lambda: ArrivalOrder(limits)),
        "by request": batching(packed(limits)),
        "padded to buckets": best_of(padded_to_buckets, crowd, costs),
        "padded to longest": best_of(padded_to_the_longest, crowd, costs),
        "serial": batching(packed(BatchLimits(songs=1))),
    }


def poisson(count: int, per_s: float, seed: int) -> list[Song]:
    """Songs of random length at random times."""
    rng = random.Random(seed)
    songs, now = list[Song](), 0.0
    while len(songs) < count:
        seconds = 120 * math.exp(rng.gauss(0, 0.8))
        if 15 <= seconds <= 600:
            now += rng.expovariate(per_s)
            songs.append(Song(len(songs), now, seconds))
    return songs


def crowd_of(count: int) -> list[Song]:
    """Everybody there at the start."""
    return [replace(song, arrived_s=0.0) for song in poisson(count, 1.0, seed=0)]


def least_s(songs: Iterable[Song], costs: Costs) -> float:
    """The work of these songs at the speed of an endless batch."""
    return sum(
        STEPS * costs.work_s(song.tokens) + costs.decoded_second_s * song.seconds + costs.song_s for song in songs
    )


@dataclass(frozen=True, slots=True)
class Capacity:
    songs_per_s: float
    efficiency: float


def capacity(policy: Policy, crowd: Sequence[Song], costs: Costs) -> Capacity:
    makespan_s = max(policy(crowd, costs))
    return Capacity(len(crowd) / makespan_s, least_s(crowd, costs) / makespan_s)


@dataclass(frozen=True, slots=True)
class Tail:
    """Latencies in seconds, and each song's latency over what it is first come, first served."""

    p50_s: float
    p95_s: float
    short_p95_s: float
    short_p95_ratio: float  # over that of first come, first served
    worst_ratio: float  # of any song
    over_twice: float  # share of songs beyond a ratio of 2
    worst_excess_s: float  # the most any song waited beyond twice


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def tail(songs: Sequence[Song], latencies: Latencies, first_come: Latencies) -> Tail:
    def short_p95_s(own: Latencies) -> float:
        return quantile((latency for song, latency in zip(songs, own, strict=True) if song.is_short), 0.95)

    ratios = [own / fair for own, fair in zip(latencies, first_come, strict=True)]
    return Tail(
        p50_s=quantile(latencies, 0.5),
        p95_s=quantile(latencies, 0.95),
        short_p95_s=short_p95_s(latencies),
        short_p95_ratio=short_p95_s(latencies) / short_p95_s(first_come),
        worst_ratio=max(ratios),
        over_twice=sum(ratio > 2 for ratio in ratios) / len(ratios),
        worst_excess_s=max(own - 2 * fair for own, fair in zip(latencies, first_come, strict=True)),
    )


def merged(tails: Sequence[Tail]) -> Tail:
    """Medians over traces; of the worst, the worst."""
    values = {name: [asdict(own)[name] for own in tails] for name in asdict(tails[0])}
    return Tail(**{name: (max if name.startswith("worst") else median)(own) for name, own in values.items()})


def tails(chosen: dict[str, Policy], costs: Costs, traces: Iterable[Sequence[Song]]) -> dict[str, Tail]:
    found: dict[str, list[Tail]] = {name: [] for name in chosen}
    for trace in traces:
        first_come = chosen["first come"](trace, costs)
        for name, policy in chosen.items():
            found[name].append(tail(trace, policy(trace, costs), first_come))
    return {name: merged(own) for name, own in found.items()}


def decision_us(waiting: int, decisions: int = 20_000, rounds: int = 5) -> float:
    """CPU microseconds to put one song in line, withdraw one in ten, and admit one, while so many others wait."""
    rng = random.Random(0)
    line: WaitingLine[int] = WaitingLine(BatchLimits(songs=1))
    sizes = [rng.uniform(0.1, 5.0) for _ in range(waiting + decisions * rounds)]
    for item in range(waiting):
        line.add(item, Size(1, 1000), sizes[item])
    best_s = math.inf
    for start in range(waiting, len(sizes), decisions):
        began = time.process_time()
        for item in range(start, start + decisions):
            line.add(item, Size(1, 1000), sizes[item])
            if item % 10 == 0:
                line.withdraw(item)
            else:
                line.admit(NOTHING)
        best_s = min(best_s, time.process_time() - began)
    return 1e6 * best_s / decisions


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--costs", type=Path, default=COSTS, help="a JSON file like those in benchmarks/costs")
    arguments.add_argument("--songs", type=int, default=5000, help="in each trace")
    arguments.add_argument("--traces", type=int, default=7)
    arguments.add_argument("--tokens", type=int, default=BatchLimits().cost, help="of one batch of ours")
    options = arguments.parse_args()
    costs, limits = Costs.read(options.costs), BatchLimits(cost=options.tokens)
    crowd = crowd_of(options.songs)
    chosen = policies(crowd, costs, limits)
    capacities = {name: capacity(policy, crowd, costs) for name, policy in chosen.items()}
    ours = capacities["ours"].songs_per_s

    print(f"costs: {costs.name} ({options.costs.name}); batches of {limits.songs} songs, {limits.cost} tokens\n")
    print(f"{'':18} capacity  efficiency  ours is")
    for name, own in capacities.items():
        print(f"{name:18} {own.songs_per_s:6.2f}/s {own.efficiency:10.3f} {ours / own.songs_per_s:9.2f} x")
    by_load = {}
    for load in LOADS:
        traces = (poisson(options.songs, load * ours, seed) for seed in range(1, options.traces + 1))
        by_load[load] = tails(chosen, costs, traces)
        print(f"\n{load * ours:.2f}/s, {load:.0%} of ours")
        print(f"{'':18}  p50 s   p95 s   short p95 s   over first come   songs over twice   worst")
        for name, found in by_load[load].items():
            remark = "" if load * ours < capacities[name].songs_per_s else "   beyond its capacity"
            print(
                f"{name:18} {found.p50_s:6.2f} {found.p95_s:7.2f} {found.short_p95_s:13.2f} "
                f"{found.short_p95_ratio:17.2f} {found.over_twice:18.2%} {found.worst_ratio:7.2f}{remark}"
            )
    costs_us = {waiting: decision_us(waiting) for waiting in LINES}
    print("\n" + "\n".join(f"a decision with {waiting} waiting: {us:.1f} us" for waiting, us in costs_us.items()))
    document = {
        "costs": asdict(costs),
        "limits": asdict(limits),
        "capacity": {name: asdict(own) for name, own in capacities.items()},
        "tail": {load: {name: asdict(own) for name, own in found.items()} for load, found in by_load.items()},
        "decision_us": costs_us,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
