"""The step loop: songs join a running batch at any step, each on its own schedule, and leave when they are done."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.batching import Admission, BatchLimits, halves
from models.checkpoints import TEXT_ENCODER, locate, variant_named
from models.dit import sampling
from models.dit.conditioning import Conditioner
from models.dit.sampling import Sampling
from models.dit.stepping import Stepper, Trajectory
from models.dit.transformer import Transformer
from models.errors import AceError, BadLatents, EngineError, OutOfMemory
from models.music import FRAMES_PER_SECOND, Latents, Metas, MusicRequest, OnProgress, Song, SongPlan, frames_of, ignore
from models.weights import read_dit

log = logging.getLogger(__name__)
STUCK_AFTER_S = 300.0


@dataclass(slots=True, eq=False)
class _Work:
    """A song between `denoise` and its answer. `say` reaches its caller's thread."""

    song: Song
    sampling: Sampling
    remarks: tuple[str, ...]
    cost: int  # tokens of one step
    answer: Future[Latents]
    say: Callable[[int, int], object]
    is_cancelled: bool = False


@dataclass(slots=True, eq=False)
class _Running:
    work: _Work
    song: Trajectory
    remarks: tuple[str, ...]


class DitEngine:
    """One DiT variant. `denoise` may be called from any event loop; everything on the device happens in one thread.

    `packs_rows`: all songs in one forward, the way of a GPU. Otherwise each in its own, which on a CPU costs nothing and
    makes a song the same to the last bit whoever is beside it.
    """

    def __init__(
        self, checkpoints: Path, name: str, limits: BatchLimits, device: torch.device, packs_rows: bool | None = None
    ) -> None:
        self._variant = variant_named(name)
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = read_dit(locate(name, checkpoints), dtype)
        if weights.config.is_turbo != self._variant.is_turbo:
            raise EngineError(f"checkpoint {name} says is_turbo {weights.config.is_turbo}, which is not what {name} is")
        self._conditioner = Conditioner(weights, locate(TEXT_ENCODER, checkpoints), device, dtype)
        packs_rows = device.type == "cuda" if packs_rows is None else packs_rows
        transformer = Transformer(weights, device, dtype)
        self._stepper = Stepper(transformer, self._conditioner.null, weights.config.is_turbo, packs_rows)
        self._device = device
        self._waiting: Admission[_Work] = Admission(limits, time.monotonic)
        self._running: list[_Running] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._step_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"dit-{name}", daemon=True)
        self._thread.start()

    async def denoise(self, song: Song, on_progress: OnProgress = ignore) -> Latents:
        """Raises AceError. Cancelling it frees the song's place at the next step."""
        loop = asyncio.get_running_loop()
        work = self._take(song, lambda done, planned: loop.call_soon_threadsafe(on_progress, done, planned))
        try:
            return await asyncio.wrap_future(work.answer)
        except asyncio.CancelledError:
            with self._changed:
                work.is_cancelled = True
                self._waiting.remove(work)
            raise

    def warm_up(self) -> None:
        """Makes ten seconds of nothing in particular, through every part a song goes through. Blocks."""
        request = MusicRequest(model=self._variant.name, seeds=(0,), inference_steps=1)
        plan = SongPlan(caption="", lyrics="", language="unknown", metas=Metas(duration=10.0), codes=(0,) * 50)
        self._take(Song(request, 0, plan), ignore).answer.result()

    def check_health(self) -> None:
        """Raises EngineError when the device thread has died or has been on one step for too long."""
        if not self._thread.is_alive():
            raise EngineError("the DiT's device thread has died")
        since = self._step_since
        if since is not None and time.monotonic() - since > STUCK_AFTER_S:
            raise EngineError(f"the DiT has been on one step for more than {STUCK_AFTER_S:.0f} s")

    def close(self) -> None:
        """Ends the device thread; songs under way fail."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _take(self, song: Song, say: Callable[[int, int], object]) -> _Work:
        """Puts a song in line."""
        work = self._work_of(song, say)
        with self._changed:
            self._refuse_when_closed()
            self._waiting.add(work, work.cost)
            self._changed.notify()
        return work

    def _work_of(self, song: Song, say: Callable[[int, int], object]) -> _Work:
        settings, remarks = sampling.resolve(song.request, self._variant)
        duration = song.plan.metas.duration
        assert duration is not None, "the pipeline settles every song's length"
        tokens = (frames_of(duration) + 1) // 2
        return _Work(song, settings, remarks, tokens * (2 if settings.is_guided else 1), Future(), say)

    def _refuse_when_closed(self) -> None:
        if self._is_closed or not self._thread.is_alive():
            raise EngineError("the DiT engine is closed")

    @torch.inference_mode()
    def _run(self) -> None:
        """The device thread."""
        while True:
            with self._changed:
                while not (self._is_closed or self._running or len(self._waiting)):
                    self._changed.wait()
                if self._is_closed:
                    break
                cost = sum(running.work.cost for running in self._running)
                admitted = self._waiting.admit(len(self._running), cost)
            for work in admitted:
                self._start(work)
            self._leave_cancelled()
            if self._running:
                self._step_since = time.monotonic()
                self._step(list(self._running))
                self._step_since = None
        self._fail_all(EngineError("the DiT engine was closed"))

    def _start(self, work: _Work) -> None:
        try:
            conditions = self._conditioner.conditions_of(work.song)
        except Exception as error:
            self._fail(work, error)
            return
        noise, generator = sampling.noise_of(work.song.seed, len(conditions.context))
        song = Trajectory(work.sampling, conditions.condition, conditions.context, noise.to(self._device), generator)
        self._running.append(_Running(work, song, conditions.remarks))

    def _leave_cancelled(self) -> None:
        self._running = [running for running in self._running if not running.work.is_cancelled]

    def _step(self, batch: list[_Running]) -> None:
        """One step of every song in the batch; in halves when the whole does not fit, down to a song alone."""
        try:
            predicted = self._stepper.predict([running.song for running in batch])
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if len(batch) > 1:
                for half in halves(batch):
                    self._step(half)
                return
            seconds = len(batch[0].song.x) / FRAMES_PER_SECOND
            self._leave(batch[0], OutOfMemory(f"a song of {seconds:g} s does not fit on this device"))
        except Exception as error:
            for running in batch:
                self._leave(running, error)
        else:
            for running, velocities in zip(batch, predicted, strict=True):
                self._advance(running, velocities)

    def _advance(self, running: _Running, velocities: list[Tensor]) -> None:
        try:
            self._stepper.advance(running.song, velocities)
        except BadLatents as error:
            self._leave(running, error)
            return
        running.work.say(running.song.step, len(running.song.sampling.timesteps))
        if running.song.is_done:
            self._finish(running)

    def _finish(self, running: _Running) -> None:
        values = running.song.x.cpu().numpy()
        if not values.any():
            self._leave(running, BadLatents("nothing but zeros came out of the DiT"))
            return
        self._running.remove(running)
        if not running.work.answer.done():  # cancelled meanwhile
            running.work.answer.set_result(Latents(values, running.work.remarks + running.remarks))

    def _leave(self, running: _Running, error: Exception) -> None:
        self._running.remove(running)
        self._fail(running.work, error)

    def _fail(self, work: _Work, error: Exception) -> None:
        if not isinstance(error, AceError):
            log.error("a song failed in the DiT", exc_info=error)
        if not work.answer.done():
            work.answer.set_exception(error)

    def _fail_all(self, error: EngineError) -> None:
        for running in self._running:
            self._fail(running.work, error)
        for work in self._waiting.admit(-len(self._waiting), 0):
            self._fail(work, error)
