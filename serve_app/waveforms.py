"""What players draw of a track: its lowest and highest samples, over as many spans as they have pixels."""

from __future__ import annotations

import asyncio
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from models.errors import Overloaded
from models.music import MAX_SECONDS, SAMPLE_RATE
from models.source_audio import OUTLINE_SAMPLES, AudioLimits, Outline, outline_in_subprocess
from serve_app.dialects.desk import Peaks, TrackFile

DECODED_AT_ONCE = 1  # each takes up to a few CPU seconds
WAITING_AT_MOST = 32
KEPT_AT_MOST = 32  # of up to 1 MB each

Open = Callable[[str], Awaitable[TrackFile | None]]


class Waveforms:
    """Decodes a track once for all who ask for it, and keeps the outlines of the last ones."""

    def __init__(self, open_track: Open) -> None:
        self._open = open_track
        self._limits = AudioLimits(seconds=MAX_SECONDS + 1)  # some formats end a little late
        self._decoders = ThreadPoolExecutor(DECODED_AT_ONCE, "waveform")
        self._outlines: OrderedDict[str, asyncio.Task[Outline | None]] = OrderedDict()  # the last used at the end

    async def peaks(self, ref: str, points: int) -> Peaks | None:
        """Of as many points, or fewer where the track is too short to fill them; `None` where it is gone. Raises
        Overloaded."""
        outline = await asyncio.shield(self._task(ref))  # somebody else may wait for it, too
        return None if outline is None else _reduced(outline, points)

    def _task(self, ref: str) -> asyncio.Task[Outline | None]:
        task = self._outlines.get(ref)
        if task is None:
            if sum(not task.done() for task in self._outlines.values()) >= WAITING_AT_MOST:
                raise Overloaded(f"Server busy: {WAITING_AT_MOST} waveforms are being drawn")
            task = self._outlines[ref] = asyncio.create_task(self._decoded(ref))
            task.add_done_callback(lambda done: self._settle(ref, done))
        self._outlines.move_to_end(ref)
        return task

    def _settle(self, ref: str, task: asyncio.Task[Outline | None]) -> None:
        """What failed or is gone is asked for anew the next time; the least used goes when there are too many."""
        if task.cancelled() or task.exception() is not None or task.result() is None:
            del self._outlines[ref]
        while len(self._outlines) > KEPT_AT_MOST:
            self._outlines.popitem(last=False)

    async def _decoded(self, ref: str) -> Outline | None:
        file = await self._open(ref)
        if file is None:
            return None
        with tempfile.NamedTemporaryFile(
            prefix="waveform-"
        ) as copy:  # wherever tracks are kept, a decoder needs a file
            async for chunk in file.read(0, file.size - 1):
                await asyncio.to_thread(copy.write, chunk)
            await asyncio.to_thread(copy.flush)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._decoders, outline_in_subprocess, Path(copy.name), self._limits)


def _reduced(outline: Outline, points: int) -> Peaks:
    starts = np.linspace(0, len(outline), min(points, len(outline)), endpoint=False).astype(int)
    return Peaks(
        seconds=len(outline) * OUTLINE_SAMPLES / SAMPLE_RATE,
        lowest=tuple(np.minimum.reduceat(outline[:, 0], starts).round(4).tolist()),
        highest=tuple(np.maximum.reduceat(outline[:, 1], starts).round(4).tolist()),
    )
