"""What players draw of a track: its lowest and highest samples, over as many spans as they have pixels."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from models.errors import Overloaded
from models.music import MAX_SECONDS, SAMPLE_RATE
from models.source_audio import OUTLINE_SAMPLES, AudioLimits, Outline, outline_in_subprocess
from serve_app.artifacts.face import Artifacts
from serve_app.dialects.desk import Peaks

DECODED_AT_ONCE = 1  # each takes up to a few CPU seconds
WAITING_AT_MOST = 32
KEPT_AT_MOST = 32  # of up to 1 MB each


class Waveforms:
    """Decodes a track once for all who ask for it, and keeps the outlines of the last ones."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._limits = AudioLimits(seconds=MAX_SECONDS + 1)  # some formats end a little late
        self._decoders = ThreadPoolExecutor(DECODED_AT_ONCE, "waveform")
        self._outlines: OrderedDict[str, asyncio.Future[Outline]] = OrderedDict()  # the last used at the end

    async def peaks(self, ref: str, points: int) -> Peaks:
        """Of as many points, or fewer where the track is too short to fill them. Raises Overloaded, and StorageFailed
        for a track that is not there."""
        return _reduced(await asyncio.shield(self._outline(ref)), points)  # somebody else may wait for it, too

    def _outline(self, ref: str) -> asyncio.Future[Outline]:
        outline = self._outlines.get(ref)
        if outline is None:
            if sum(not other.done() for other in self._outlines.values()) >= WAITING_AT_MOST:
                raise Overloaded(f"Server busy: {WAITING_AT_MOST} waveforms are being drawn")
            outline = asyncio.get_running_loop().run_in_executor(self._decoders, self._decode, ref)
            self._outlines[ref] = outline
            outline.add_done_callback(lambda done: self._settle(ref, done))
        self._outlines.move_to_end(ref)
        return outline

    def _settle(self, ref: str, outline: asyncio.Future[Outline]) -> None:
        """What failed is tried anew the next time; the least used goes when there are too many."""
        if outline.cancelled() or outline.exception() is not None:
            del self._outlines[ref]
        while len(self._outlines) > KEPT_AT_MOST and next(iter(self._outlines.values())).done():
            self._outlines.popitem(last=False)

    def _decode(self, ref: str) -> Outline:
        with self._artifacts.fetched(ref) as path:
            return outline_in_subprocess(path, self._limits)


def _reduced(outline: Outline, points: int) -> Peaks:
    starts = np.linspace(0, len(outline), min(points, len(outline)), endpoint=False).astype(int)
    return Peaks(
        seconds=len(outline) * OUTLINE_SAMPLES / SAMPLE_RATE,
        lowest=_readable(np.minimum.reduceat(outline[:, 0], starts)),
        highest=_readable(np.maximum.reduceat(outline[:, 1], starts)),
    )


def _readable(samples: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> tuple[float, ...]:
    return tuple(round(sample, 4) for sample in samples.tolist())
