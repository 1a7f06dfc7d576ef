"""The one thread that drives the device: at every step it admits, asks the DiT once for all, and moves each song on."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.batching import NOTHING, BatchLimits, Size, WaitingLine, run_in_halves
from models.dit.adapters import NO_ADAPTERS, Blend
from models.dit.sampling import Sampling, noises_of
from models.dit.stepping import Conditions, Trajectory
from models.dit.transformer import Row
from models.errors import AceError, BadLatents, Cancelled, DeadlineExceeded, EngineError, OutOfMemory
from models.music import FRAMES_PER_SECOND, Latents, OnProgress, Song

T = TypeVar("T")
log = logging.getLogger(__name__)

PACE_KEPT = 0.9  # share of the old figure that stays when another step has been timed


@dataclass(frozen=True, slots=True)
class Health:
    """`step_age_s` is how long the present step has been running, 0 between steps; `error` is what ended the thread."""

    is_alive: bool
    step_age_s: float
    error: str | None
    songs: int
    waiting: int


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A song from `denoise` to its answer."""

    song: Song
    sampling: Sampling
    frames: int
    remarks: tuple[str, ...]
    on_progress: OnProgress  # called in the device thread; must neither wait nor raise
    answer: Future[Latents]
    adapters: Blend = NO_ADAPTERS
    deadline: float = math.inf  # by the loop's clock

    @property
    def tokens(self) -> int:
        return (self.frames + 1) // 2

    @property
    def size(self) -> Size:
        return Size(self.sampling.rows, self.sampling.rows * self.tokens)

    def fail(self, error: AceError) -> None:
        if not self.answer.done() and self.answer.set_running_or_notify_cancel():
            self.answer.set_exception(error)

    def succeed(self, latents: Latents) -> None:
        if not self.answer.done() and self.answer.set_running_or_notify_cancel():
            self.answer.set_result(latents)


@dataclass(frozen=True, slots=True)
class Device:
    """What runs there. `null` (1, width) is the condition of guidance's second row."""

    conditions_of: Callable[[Song], Conditions]
    velocities: Callable[[Sequence[Row]], Sequence[Tensor]]
    null: Tensor


@dataclass(frozen=True, slots=True)
class _Errand:
    """Something else that only the device's thread may do."""

    work: Callable[[], Any]
    frames: int  # of the audio it is about
    answer: Future[Any]

    def run(self) -> None:
        if self.answer.set_running_or_notify_cancel():
            try:
                self.answer.set_result(self.work())
            except Exception as error:
                self.fail(_as_ace_error(error, self.frames))
                _raise_if_lost(error)

    def fail(self, error: AceError) -> None:
        with suppress(InvalidStateError):  # whoever asked has left
            self.answer.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Seat:
    """A song in the batch."""

    ticket: Ticket
    trajectory: Trajectory
    remarks: tuple[str, ...]


class StepLoop:
    """Runs until it is closed, or the device is lost."""

    def __init__(self, device: Device, limits: BatchLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._device = device
        self._line: WaitingLine[Ticket] = WaitingLine(limits)
        self._changed = threading.Condition()  # guards the line and the flag; the seats are the thread's own
        self._is_closing = False
        self._errands: deque[_Errand] = deque()
        self._seats: list[_Seat] = []
        self._pace_s = 0.0  # for one token of one row, learnt from the steps run
        self._step_since: float | None = None
        self._error: str | None = None
        self._thread = threading.Thread(target=self._run, name="dit-device", daemon=True)
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Raises EngineError once the thread has ended."""
        expected_s = self._pace_s * ticket.tokens * ticket.sampling.calls
        with self._changed:
            if self._is_closing:
                raise EngineError(f"the DiT takes no more songs: {self._error or 'it was closed'}")
            self._line.add(ticket, ticket.size, expected_s)
            self._changed.notify()

    def errand(self, work: Callable[[], T], frames: int) -> Future[T]:
        """Done in the device's thread before its next step, about audio of so many frames. Raises EngineError once the
        thread has ended."""
        errand = _Errand(work, frames, Future())
        with self._changed:
            if self._is_closing:
                raise EngineError(f"the DiT takes no more work: {self._error or 'it was closed'}")
            self._errands.append(errand)
            self._changed.notify()
        return errand.answer

    def withdraw(self, ticket: Ticket) -> None:
        """A waiting song is forgotten, a running one leaves at the next step, a finished one is no matter."""
        ticket.answer.cancel()
        with self._changed:
            self._line.withdraw(ticket)

    def health(self) -> Health:
        since = self._step_since
        age_s = 0.0 if since is None else self.clock() - since
        return Health(self._thread.is_alive(), age_s, self._error, len(self._seats), len(self._line))

    def close(self) -> None:
        """Waits for the present step; songs not finished by then fail with Cancelled."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        reason: AceError = Cancelled("the DiT is being closed")
        try:
            with torch.inference_mode():
                while self._admit():
                    self._step()
        except Exception as error:
            log.exception("the DiT's device thread ends")
            self._error = repr(error)
            reason = EngineError(f"the DiT's device thread ended: {error!r}")
        with self._changed:
            self._is_closing = True
            left: list[Ticket | _Errand] = [*(seat.ticket for seat in self._seats), *self._line.clear(), *self._errands]
        for each in left:
            each.fail(reason)
        self._seats = []

    def _admit(self) -> bool:
        """Waits for something to do and seats whom there is room for. False once the loop is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing or self._seats or len(self._line) or self._errands)
            if self._is_closing:
                return False
        self._run_errands()
        with self._changed:
            self._seats = [seat for seat in self._seats if not seat.ticket.answer.done()]
            admitted = self._line.admit(sum((seat.ticket.size for seat in self._seats), NOTHING))
        for ticket in admitted:
            self._seat(ticket)
        return True

    def _run_errands(self) -> None:
        self._step_since = self.clock()
        try:
            for _ in range(len(self._errands)):
                self._errands.popleft().run()
        finally:
            self._step_since = None

    def _seat(self, ticket: Ticket) -> None:
        if self._is_overdue(ticket):
            ticket.fail(_overdue())
            return
        try:
            conditions = self._device.conditions_of(ticket.song)
            noises = noises_of(ticket.song, ticket.frames)
            trajectory = Trajectory(ticket.sampling, conditions, self._device.null, noises, ticket.adapters)
        except Exception as error:
            ticket.fail(_as_ace_error(error, ticket.frames))
            _raise_if_lost(error)
        else:
            self._seats.append(_Seat(ticket, trajectory, ticket.remarks + conditions.remarks))

    def _step(self) -> None:
        """One forward for everybody, in halves where memory does not suffice; what fails there fails all in it.

        Songs that are done, withdrawn or overdue have left when it returns.
        """
        asked = [seat.trajectory.rows() for seat in self._seats]
        rows = [row for own in asked for row in own]
        self._step_since = started = self.clock()
        try:
            answers = run_in_halves(self._device.velocities, rows, torch.OutOfMemoryError)
            for seat, own in zip(self._seats, asked, strict=True):
                mine, answers = answers[: len(own)], answers[len(own) :]
                _advance(seat, mine)
            self._report()
        except Exception as error:
            for seat in self._seats:
                seat.ticket.fail(_as_ace_error(error, seat.ticket.frames))
            _raise_if_lost(error)
        finally:
            self._step_since = None
        if rows:
            pace_s = (self.clock() - started) / sum(seat.ticket.size.cost for seat in self._seats)
            self._pace_s = PACE_KEPT * self._pace_s + (1 - PACE_KEPT) * pace_s if self._pace_s else pace_s
        for seat in self._seats:
            if self._is_overdue(seat.ticket):
                seat.ticket.fail(_overdue())
        self._seats = [seat for seat in self._seats if not seat.ticket.answer.done()]

    def _is_overdue(self, ticket: Ticket) -> bool:
        return self.clock() > ticket.deadline

    def _report(self) -> None:
        """Progress, results and spoilt songs, after one look at the device for all of them."""
        seats = [seat for seat in self._seats if not seat.ticket.answer.done()]
        if not seats:
            return
        are_finite = torch.stack([seat.trajectory.x.isfinite().all() for seat in seats]).tolist()
        for seat, is_finite in zip(seats, are_finite, strict=True):
            trajectory = seat.trajectory
            if not is_finite:
                seat.ticket.fail(BadLatents(f"NaN or infinity came out of step {trajectory.step} of the DiT"))
                continue
            seat.ticket.on_progress(trajectory.step, trajectory.sampling.steps)
            if trajectory.is_done:
                _finish(seat)


def _advance(seat: _Seat, answers: Sequence[Tensor | None]) -> None:
    """What fails here is one song's own matter."""
    velocities = [velocity for velocity in answers if velocity is not None]
    if len(velocities) < len(answers):
        seat.ticket.fail(_too_large(seat.ticket.frames))
        return
    try:
        seat.trajectory.advance(velocities)
    except Exception as error:
        seat.ticket.fail(_as_ace_error(error, seat.ticket.frames))
        _raise_if_lost(error)


def _finish(seat: _Seat) -> None:
    values: NDArray[np.float32] = seat.trajectory.x.cpu().numpy()
    if values.any():
        seat.ticket.succeed(Latents(values, seat.remarks))
    else:
        seat.ticket.fail(BadLatents("nothing but zeros came out of the DiT"))


def _overdue() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the song was made")


def _too_large(frames: int) -> OutOfMemory:
    return OutOfMemory(f"a song of {frames / FRAMES_PER_SECOND:g} s does not fit on this device")


def _as_ace_error(error: Exception, frames: int) -> AceError:
    if isinstance(error, AceError):
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return _too_large(frames)
    log.error("a song failed in the DiT", exc_info=error)
    return EngineError(f"a song failed in the DiT: {error!r}")


def _raise_if_lost(error: Exception) -> None:
    """After an error of the device itself nothing in this process can use it again: the thread ends, health says so."""
    if isinstance(error, torch.AcceleratorError):
        raise error
