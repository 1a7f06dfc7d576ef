"""The simulation is the step loop's, and the order of songs is as good as it is said to be. All in virtual time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from benchmarks import scheduling
from benchmarks.scheduling import COSTS, Costs, capacity, crowd_of, poisson, policies, tail
from models import music
from models.batching import BatchLimits, WaitingLine
from models.dit.loop import Device, StepLoop, Ticket
from models.dit.sampling import Sampling, schedule
from models.dit.stepping import Condition, Conditions
from models.dit.transformer import Row
from models.music import Metas, MusicRequest, SongPlan

LIMITS = BatchLimits()
WAIT_S = 20.0
SCALE = 20  # real tensors of songs so much shorter, which cost as much


@pytest.fixture(scope="module")
def costs() -> Costs:
    return Costs.read(COSTS)


def test_a_step_costs_what_the_flops_of_the_model_say(costs: Costs) -> None:
    for seconds, tera_flop in ((60, 2.27), (180, 7.13), (240, 9.73), (600, 27.6)):
        tokens = int(seconds * 12.5)
        assert costs.work_s(tokens) * 478.8 == pytest.approx(tera_flop, rel=0.01)


def test_a_song_alone_takes_its_own_time_under_every_policy(costs: Costs) -> None:
    song = scheduling.Song(0, 3.0, 120.0)
    own_s = costs.song_s + 8 * costs.step_s([1500]) + 120 * costs.decoded_second_s
    chosen = policies([song], costs, LIMITS)

    assert len(chosen) == 6
    for name, policy in chosen.items():
        assert policy([song], costs) == [pytest.approx(own_s)], name


def test_our_order_is_efficient_quick_for_short_songs_and_fair_to_all(costs: Costs) -> None:
    crowd = crowd_of(1500)
    chosen = policies(crowd, costs, LIMITS)
    ours, buckets = (capacity(chosen[name], crowd, costs) for name in ("ours", "padded to buckets"))
    trace = poisson(2500, 0.93 * ours.songs_per_s, seed=1)
    found = tail(trace, chosen["ours"](trace, costs), chosen["first come"](trace, costs))

    assert ours.efficiency >= 0.95
    assert ours.songs_per_s >= 1.12 * buckets.songs_per_s
    assert found.short_p95_ratio <= 0.3
    assert found.worst_ratio <= 2


class VirtualDit:
    """Moves a clock of its own, and hands in whoever has come by then."""

    def __init__(self, songs: Sequence[scheduling.Song], costs: Costs, limits: BatchLimits) -> None:
        self.now = 0.0
        self.done_s: dict[int, float] = {}
        self.everybody_done = threading.Event()
        self._costs = costs
        self._songs = songs
        self._arrivals = scheduling.Arrivals(songs)
        device = Device(self.conditions_of, self.velocities, torch.zeros(1, 8))
        self.loop = StepLoop(device, limits, lambda: self.now)

    def hand_in(self) -> None:
        for song in self._arrivals.until(self.now):
            request = MusicRequest(model="any", seeds=(song.number,))
            plan = SongPlan(caption="", lyrics=str(song.tokens), language="en", metas=Metas())
            answer: Future[music.Latents] = Future()
            answer.add_done_callback(partial(self.note, song.number))
            settings = Sampling(schedule(scheduling.STEPS, 1.0))
            ticket = Ticket(music.Song(request, 0, plan), settings, 2 * song.tokens, (), music.ignore, answer)
            self.loop.submit(ticket)

    def note(self, number: int, answer: Future[music.Latents]) -> None:
        assert answer.exception() is None
        self.done_s[number] = self.now
        if len(self.done_s) == len(self._songs):
            self.everybody_done.set()

    def conditions_of(self, song: music.Song) -> Conditions:
        self.now += self._costs.song_s
        frames = 2 * int(song.plan.lyrics)
        return Conditions(Condition(torch.zeros(1, 8), torch.zeros(frames, 128)))

    def velocities(self, rows: Sequence[Row]) -> list[Tensor]:
        self.now += self._costs.step_s([len(row.x) // 2 for row in rows])
        self.hand_in()
        return [torch.ones_like(row.x) for row in rows]


def test_a_song_is_done_when_it_is_in_the_real_loop(costs: Costs) -> None:
    """The first song is long and the others follow fast: a clock that steps move stands still while there are none."""
    first, *others = poisson(60, 16.0, seed=3)
    songs = [replace(first, arrived_s=0.0, seconds=600.0), *others]
    songs = [replace(song, seconds=song.seconds / SCALE) for song in songs]
    limits = BatchLimits(cost=LIMITS.cost // SCALE)
    costs = replace(
        costs,
        token_s=SCALE * costs.token_s,
        token_pair_s=SCALE**2 * costs.token_pair_s,
        half_speed_tokens=costs.half_speed_tokens / SCALE,
        decoded_second_s=0.0,  # the loop has no VAE beside it
    )
    latencies = scheduling.step_by_step(songs, costs, WaitingLine[scheduling.Song](limits))
    real = VirtualDit(songs, costs, limits)

    real.hand_in()
    assert real.everybody_done.wait(WAIT_S)
    real.loop.close()

    assert list(real.done_s) != sorted(real.done_s)
    assert real.done_s == pytest.approx({song.number: song.arrived_s + latencies[song.number] for song in songs})
