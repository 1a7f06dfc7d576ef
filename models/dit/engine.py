"""One DiT variant on one device: songs join its running batch at any step, and leave when they are done."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from models.batching import BatchLimits
from models.checkpoints import TEXT_ENCODER, check_request, locate, variant_named
from models.dit import sampling
from models.dit.adapters import NO_ADAPTERS, AdapterCache, Blend
from models.dit.conditioning import Conditioner
from models.dit.loop import Device, Health, StepLoop, Ticket
from models.dit.transformer import Row, Transformer
from models.errors import CheckpointError, EngineError
from models.music import (
    MAX_SECONDS,
    Latents,
    Lora,
    Metas,
    MusicRequest,
    OnProgress,
    Song,
    SongPlan,
    Source,
    frames_of,
    ignore,
)
from models.weights import read_dit

STUCK_AFTER_S = 300.0
LONGEST_GUIDED = frames_of(MAX_SECONDS)  # tokens: two rows of half as many as there are frames


class DitEngine:
    """`denoise` may be called from any event loop; everything on the device happens in one thread.

    The same seed is the same song, bit for bit while it is alone. `packs_rows`: all songs in one forward, the way of a
    GPU, where neighbours move a song by rounding (1e-5 relative in fp32). Otherwise each in its own, which on a CPU
    costs nothing and keeps every bit. `compiles` the forward when it warms up; unless said, on a GPU only.
    """

    def __init__(
        self,
        checkpoints: Path,
        name: str,
        limits: BatchLimits | None = None,
        device: torch.device | None = None,
        packs_rows: bool | None = None,
        *,
        compiles: bool | None = None,
        adapters: Path | None = None,
    ) -> None:
        """Without a device: CUDA where there is one. `adapters` is the folder of LoRAs. Raises CheckpointError."""
        self._variant = variant_named(name)
        device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        weights = read_dit(locate(name, checkpoints), dtype)
        if weights.config.is_turbo != self._variant.is_turbo:
            raise CheckpointError(f"{name} says is_turbo {weights.config.is_turbo}, which is not what {name} is")
        conditioner = self._conditioner = Conditioner(weights, locate(TEXT_ENCODER, checkpoints), device, dtype)
        compiles = device.type == "cuda" if compiles is None else compiles
        transformer = self._transformer = Transformer(weights, device, dtype, is_compiled=compiles)
        self._adapters = AdapterCache(adapters, transformer.model)
        packs_rows = device.type == "cuda" if packs_rows is None else packs_rows
        limits = limits or BatchLimits()
        self._most_tokens = max(limits.cost, LONGEST_GUIDED)

        def one_by_one(rows: Sequence[Row]) -> list[Tensor]:
            return [transformer.velocities([row])[0] for row in rows]

        velocities = transformer.velocities if packs_rows else one_by_one
        self._loop = StepLoop(Device(conditioner.conditions_of, velocities, conditioner.null), limits)

    async def denoise(self, song: Song, on_progress: OnProgress = ignore) -> Latents:
        """Raises AceError. Cancelling it frees the song's place at the next step. `on_progress` gets steps."""
        async with self._borrowed(song.request.loras) as adapters:
            ticket = self._submit(song, _from_any_thread(on_progress), adapters)
            try:
                return await asyncio.wrap_future(ticket.answer)
            finally:
                self._loop.withdraw(ticket)

    async def codes(self, source: Source) -> tuple[int, ...]:
        """What a source is heard as, five audio codes a second. Raises EngineError."""
        return await asyncio.wrap_future(
            self._loop.errand(lambda: self._conditioner.codes_of(source), len(source.values))
        )

    def warm_up(self) -> None:
        """Compiles what is to be compiled, then makes ten seconds of nothing in particular, through every part a song
        goes through. Blocks; to be called before the first song."""
        self._transformer.warm_up(self._most_tokens)
        request = MusicRequest(model=self._variant.name, seeds=(0,), inference_steps=1)
        plan = SongPlan(caption="", lyrics="", language="unknown", metas=Metas(duration=10.0), codes=(0,) * 50)
        self._submit(Song(request, 0, plan), ignore).answer.result()

    def health(self) -> Health:
        return self._loop.health()

    def check_health(self) -> None:
        """Raises EngineError when the device thread has ended or has been on one step for too long."""
        health = self._loop.health()
        if not health.is_alive:
            raise EngineError(f"the DiT's device thread has ended: {health.error or 'it was closed'}")
        if health.step_age_s > STUCK_AFTER_S:
            raise EngineError(f"the DiT has been on one step for {health.step_age_s:.0f} s")

    def close(self) -> None:
        """Blocks until the present step is over; songs under way fail with Cancelled."""
        self._loop.close()

    @asynccontextmanager
    async def _borrowed(self, loras: Sequence[Lora]) -> AsyncIterator[Blend]:
        """Read beside the event loop. A reading whose caller has left is ended and given back all the same."""
        if not loras:
            yield NO_ADAPTERS
            return
        reading = asyncio.ensure_future(asyncio.to_thread(self._adapters.borrow, loras))
        try:
            yield await asyncio.shield(reading)
        finally:
            if reading.done():
                self._give_back(reading)
            else:
                reading.add_done_callback(self._give_back)

    def _give_back(self, reading: asyncio.Future[Blend]) -> None:
        if not reading.cancelled() and reading.exception() is None:
            self._adapters.give_back(reading.result())

    def _submit(self, song: Song, on_progress: OnProgress, adapters: Blend = NO_ADAPTERS) -> Ticket:
        """Puts a song in line."""
        check_request(song.request, self._variant)
        has_source = song.source is not None or bool(song.plan.codes)
        settings, remarks = sampling.resolve(song.request, self._variant, has_source)
        deadline = math.inf if song.deadline_s is None else self._loop.clock() + song.deadline_s
        ticket = Ticket(song, settings, song.frames, remarks, on_progress, Future(), adapters, deadline)
        self._loop.submit(ticket)
        return ticket


def _from_any_thread(on_progress: OnProgress) -> OnProgress:
    loop = asyncio.get_running_loop()

    def report(done: int, planned: int) -> None:
        with suppress(RuntimeError):  # the event loop has closed: nobody is left to tell
            loop.call_soon_threadsafe(on_progress, done, planned)

    return report
