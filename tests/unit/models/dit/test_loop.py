"""The device thread, over a DiT that answers what a test tells it to."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future

import pytest
import torch
from torch import Tensor

from models.batching import BatchLimits
from models.dit.loop import Device, StepLoop, Ticket
from models.dit.sampling import Sampling, schedule
from models.dit.stepping import Condition, Conditions, Trajectory
from models.dit.transformer import Row
from models.errors import BadLatents, Cancelled, DeadlineExceeded, EngineError, InvalidRequest, OutOfMemory
from models.music import Metas, MusicRequest, Song, SongPlan, ignore

WAIT_S = 20.0
POISON = "poison"
TOO_LARGE_FRAMES = 1000


class FakeDit:
    """Velocity 0.5 everywhere. `gate` lets one forward through for each permit, where a test holds the permits."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []  # frames of the rows of each forward
        self.gate: threading.Semaphore | None = None
        self.arrived = threading.Semaphore(0)
        self.fault: Exception | None = None

    def conditions_of(self, song: Song) -> Conditions:
        if song.plan.caption == "unreadable":
            raise InvalidRequest("nothing can be made of this")
        frames = int(song.plan.lyrics)
        context = torch.full((frames, 128), float("nan") if song.plan.caption == POISON else 0.0)
        return Conditions(Condition(torch.zeros(3, 8), context))

    def velocities(self, rows: Sequence[Row]) -> list[Tensor]:
        self.arrived.release()
        if self.gate is not None:
            assert self.gate.acquire(timeout=WAIT_S)
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        if any(len(row.x) == TOO_LARGE_FRAMES for row in rows):
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append([len(row.x) for row in rows])
        return [torch.full_like(row.x, 0.5) + row.context[:, :64] for row in rows]


@pytest.fixture
def dit() -> FakeDit:
    return FakeDit()


@pytest.fixture
def loop(dit: FakeDit) -> Iterator[StepLoop]:
    running = StepLoop(Device(dit.conditions_of, dit.velocities, torch.zeros(1, 8)), BatchLimits(songs=3))
    yield running
    dit.gate = None
    running.close()


def ticket(
    frames: int = 20,
    steps: int = 4,
    caption: str = "",
    on_progress: Callable[[int, int], None] = ignore,
    deadline: float = math.inf,
) -> Ticket:
    request = MusicRequest(model="any", seeds=(frames,))
    plan = SongPlan(caption=caption, lyrics=str(frames), language="en", metas=Metas())
    settings = Sampling(schedule(steps, 1.0))
    return Ticket(Song(request, 0, plan), settings, frames, (), on_progress, Future(), deadline=deadline)


def hold(dit: FakeDit) -> threading.Semaphore:
    dit.gate = threading.Semaphore(0)
    return dit.gate


def test_a_song_is_its_noise_moved_along_the_velocity(loop: StepLoop) -> None:
    song = ticket(frames=20)

    loop.submit(song)

    noise = torch.randn((20, 64), generator=torch.Generator().manual_seed(20))
    values = song.answer.result(WAIT_S).values
    torch.testing.assert_close(torch.from_numpy(values), noise - 0.5)


def test_songs_join_and_leave_a_running_batch_at_any_step(dit: FakeDit, loop: StepLoop) -> None:
    gate = hold(dit)
    long, short = ticket(frames=20, steps=4), ticket(frames=10, steps=2)
    loop.submit(long)
    assert dit.arrived.acquire(timeout=WAIT_S)  # its first step has begun

    loop.submit(short)
    gate.release(4)
    long.answer.result(WAIT_S)

    assert dit.batches == [[20], [20, 10], [20, 10], [20]]
    assert short.answer.result(0).values.shape == (10, 64)


def test_no_more_songs_run_at_once_than_the_limits_say(dit: FakeDit, loop: StepLoop) -> None:
    songs = [ticket(frames=10 + number) for number in range(7)]
    gate = hold(dit)
    for song in songs:
        loop.submit(song)
    gate.release(100)
    for song in songs:
        song.answer.result(WAIT_S)

    assert max(len(batch) for batch in dit.batches) == 3


def test_progress_is_told_step_by_step(loop: StepLoop) -> None:
    told: list[tuple[int, int]] = []
    song = ticket(steps=3, on_progress=lambda done, planned: told.append((done, planned)))

    loop.submit(song)
    song.answer.result(WAIT_S)

    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_song_withdrawn_while_it_runs_is_gone_at_the_next_step(dit: FakeDit, loop: StepLoop) -> None:
    gate = hold(dit)
    gone, stays = ticket(frames=20), ticket(frames=10)
    loop.submit(gone)
    assert dit.arrived.acquire(timeout=WAIT_S)
    loop.submit(stays)

    loop.withdraw(gone)
    gate.release(10)
    stays.answer.result(WAIT_S)

    assert [batch for batch in dit.batches if 20 in batch] == [[20]]
    with pytest.raises(CancelledError):
        gone.answer.result(0)


def test_a_song_withdrawn_while_it_waits_is_never_prepared(dit: FakeDit, loop: StepLoop) -> None:
    gate = hold(dit)
    songs = [ticket(frames=10 + number) for number in range(3)]
    for song in songs:
        loop.submit(song)
    waiting = ticket(frames=99)
    loop.submit(waiting)

    loop.withdraw(waiting)
    gate.release(100)
    for song in songs:
        song.answer.result(WAIT_S)

    assert all(99 not in batch for batch in dit.batches)


def test_a_poisoned_song_fails_alone(loop: StepLoop) -> None:
    poisoned, healthy = ticket(caption=POISON), ticket(frames=10)
    loop.submit(poisoned)
    loop.submit(healthy)

    with pytest.raises(BadLatents, match="step 1"):
        poisoned.answer.result(WAIT_S)
    assert healthy.answer.result(WAIT_S).values.shape == (10, 64)


def test_a_song_too_large_for_the_device_fails_alone(loop: StepLoop) -> None:
    large, small = ticket(frames=TOO_LARGE_FRAMES), ticket(frames=10)
    loop.submit(large)
    loop.submit(small)

    with pytest.raises(OutOfMemory, match="40 s"):
        large.answer.result(WAIT_S)
    assert small.answer.result(WAIT_S).values.shape == (10, 64)


def test_a_batch_too_large_is_run_in_halves_until_only_what_never_fits_has_failed(dit: FakeDit, loop: StepLoop) -> None:
    gate = hold(dit)
    blocker = ticket(frames=10, steps=1)  # so that the three are there at once
    loop.submit(blocker)
    assert dit.arrived.acquire(timeout=WAIT_S)
    songs = [ticket(frames=frames, steps=1) for frames in (20, TOO_LARGE_FRAMES, 30)]
    for song in songs:
        loop.submit(song)
    gate.release(100)

    with pytest.raises(OutOfMemory):
        songs[1].answer.result(WAIT_S)
    for song in (songs[0], songs[2]):
        assert len(song.answer.result(WAIT_S).values) == song.frames
    assert dit.batches == [[10], [20], [30]]  # of those that ran, after one of three and one of two that did not


def test_what_fails_in_a_songs_own_step_is_its_own_matter(loop: StepLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Trajectory.advance

    def advance(self: Trajectory, velocities: Sequence[Tensor]) -> None:
        if len(self.x) == 20:
            raise torch.OutOfMemoryError("out of memory")
        real(self, velocities)

    monkeypatch.setattr(Trajectory, "advance", advance)
    unlucky, lucky = ticket(frames=20), ticket(frames=10)
    loop.submit(unlucky)
    loop.submit(lucky)

    with pytest.raises(OutOfMemory):
        unlucky.answer.result(WAIT_S)
    assert lucky.answer.result(WAIT_S).values.shape == (10, 64)


@pytest.fixture
def now() -> list[float]:
    """What the loop's clock shows, in a list so that a test can move it."""
    return [100.0]


@pytest.fixture
def clocked(dit: FakeDit, now: list[float]) -> Iterator[StepLoop]:
    running = StepLoop(
        Device(dit.conditions_of, dit.velocities, torch.zeros(1, 8)), BatchLimits(songs=2), lambda: now[0]
    )
    yield running
    dit.gate = None
    running.close()


def test_a_song_leaves_with_the_step_in_which_its_deadline_passes(
    dit: FakeDit, clocked: StepLoop, now: list[float]
) -> None:
    gate = hold(dit)
    late, other = ticket(frames=20, deadline=101.0), ticket(frames=10, deadline=500.0)
    clocked.submit(late)
    assert dit.arrived.acquire(timeout=WAIT_S)
    clocked.submit(other)
    gate.release()
    assert dit.arrived.acquire(timeout=WAIT_S)  # the second step, with both

    now[0] = 101.5
    gate.release(10)

    with pytest.raises(DeadlineExceeded, match="deadline passed"):
        late.answer.result(WAIT_S)
    other.answer.result(WAIT_S)
    assert dit.batches == [[20], [20, 10], [10], [10], [10]]


def test_a_song_that_waits_past_its_deadline_is_never_prepared(
    dit: FakeDit, clocked: StepLoop, now: list[float]
) -> None:
    gate = hold(dit)
    songs = [ticket(frames=10), ticket(frames=11), ticket(caption="unreadable", deadline=101.0)]
    for song in songs:
        clocked.submit(song)
    assert dit.arrived.acquire(timeout=WAIT_S)

    now[0] = 102.0
    gate.release(20)

    with pytest.raises(DeadlineExceeded):
        songs[2].answer.result(WAIT_S)


def test_a_song_that_cannot_be_prepared_fails_with_its_own_error(loop: StepLoop) -> None:
    unreadable, healthy = ticket(caption="unreadable"), ticket()
    loop.submit(unreadable)
    loop.submit(healthy)

    with pytest.raises(InvalidRequest, match="nothing can be made"):
        unreadable.answer.result(WAIT_S)
    healthy.answer.result(WAIT_S)


def test_a_failed_step_fails_the_songs_in_it_and_no_later_one(dit: FakeDit, loop: StepLoop) -> None:
    dit.fault = RuntimeError("a bug")
    present = ticket()
    loop.submit(present)
    with pytest.raises(EngineError, match="a bug"):
        present.answer.result(WAIT_S)

    later = ticket()
    loop.submit(later)

    later.answer.result(WAIT_S)
    assert loop.health().is_alive


def test_a_lost_device_ends_the_thread_and_health_says_so(dit: FakeDit, loop: StepLoop) -> None:
    dit.fault = torch.AcceleratorError("an illegal memory access was encountered")
    song = ticket()
    loop.submit(song)

    with pytest.raises(EngineError, match="illegal memory access"):
        song.answer.result(WAIT_S)
    loop.close()
    health = loop.health()
    assert not health.is_alive
    assert "illegal memory access" in str(health.error)
    with pytest.raises(EngineError, match="no more songs"):
        loop.submit(ticket())


def test_the_age_of_the_present_step_is_told(dit: FakeDit) -> None:
    now = [100.0]
    running = StepLoop(Device(dit.conditions_of, dit.velocities, torch.zeros(1, 8)), BatchLimits(), lambda: now[0])
    gate = hold(dit)
    song = ticket(steps=1)
    running.submit(song)
    assert dit.arrived.acquire(timeout=WAIT_S)

    now[0] = 107.0

    assert running.health().step_age_s == 7.0
    gate.release()
    song.answer.result(WAIT_S)
    running.close()
    assert running.health().step_age_s == 0.0


def test_closing_fails_whoever_is_not_finished(dit: FakeDit, loop: StepLoop) -> None:
    gate = hold(dit)
    songs = [ticket(frames=10 + number) for number in range(5)]  # three run, two wait
    for song in songs:
        loop.submit(song)
    assert dit.arrived.acquire(timeout=WAIT_S)

    closing = threading.Thread(target=loop.close)
    closing.start()
    gate.release(100)
    closing.join(WAIT_S)

    assert isinstance(songs[-1].answer.exception(WAIT_S), Cancelled)


def test_an_errand_is_done_between_steps_in_the_devices_thread(dit: FakeDit, loop: StepLoop) -> None:
    gate = hold(dit)
    song = ticket(steps=2)
    loop.submit(song)
    assert dit.arrived.acquire(timeout=WAIT_S)  # its first step has begun

    errand = loop.errand(lambda: (threading.current_thread().name, len(dit.batches)), frames=5)
    gate.release(2)

    assert errand.result(WAIT_S) == ("dit-device", 1)
    song.answer.result(WAIT_S)


def test_an_errand_is_done_though_there_is_no_song(loop: StepLoop) -> None:
    assert [loop.errand(lambda n=n: n, frames=5).result(WAIT_S) for n in range(3)] == [0, 1, 2]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (torch.OutOfMemoryError("out of memory"), OutOfMemory),
        (InvalidRequest("nothing to hear"), InvalidRequest),
        (RuntimeError("a bug"), EngineError),
    ],
)
def test_an_errand_that_fails_fails_nobody_else(loop: StepLoop, fault: Exception, error: type[Exception]) -> None:
    def fail() -> None:
        raise fault

    with pytest.raises(error):
        loop.errand(fail, frames=5).result(WAIT_S)
    song = ticket()
    loop.submit(song)
    song.answer.result(WAIT_S)


def test_an_errand_nobody_waits_for_any_more_is_not_done(dit: FakeDit, loop: StepLoop) -> None:
    gate, done = hold(dit), list[int]()
    loop.submit(ticket(steps=1))
    assert dit.arrived.acquire(timeout=WAIT_S)
    errand = loop.errand(lambda: done.append(1), frames=5)
    assert errand.cancel()
    gate.release()
    loop.errand(lambda: None, frames=5).result(WAIT_S)
    assert done == []


def test_errands_left_when_the_loop_closes_fail(dit: FakeDit, loop: StepLoop) -> None:
    gate = hold(dit)
    loop.submit(ticket(steps=1))
    assert dit.arrived.acquire(timeout=WAIT_S)
    errand = loop.errand(lambda: None, frames=5)
    closing = threading.Thread(target=loop.close)
    closing.start()
    while not loop._is_closing:
        time.sleep(0.001)
    gate.release()
    closing.join(WAIT_S)
    with pytest.raises(Cancelled):
        errand.result(WAIT_S)
    with pytest.raises(EngineError, match="takes no more work"):
        loop.errand(lambda: None, frames=5)
