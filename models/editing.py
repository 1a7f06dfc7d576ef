"""What of a source is made anew and how strictly the rest is kept. Pure: DiT, VAE and pipeline reckon with the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.errors import InvalidAudio, InvalidRequest, TooLong
from models.music import (
    HEARD,
    MAX_SECONDS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    SOURCE_TASKS,
    MusicRequest,
    Task,
)

WINDOWED = (Task.REPAINT, Task.LEGO)  # the others make the whole length anew
TASKS_OF = {  # fields that mean something to some tasks only
    "src_audio": SOURCE_TASKS,
    "repainting_start": WINDOWED,
    "repainting_end": WINDOWED,
    "repaint_mode": WINDOWED,
    "repaint_strength": WINDOWED,
    "track_name": (Task.LEGO, Task.EXTRACT),
    "track_classes": (Task.COMPLETE,),
    "thinking": (Task.TEXT2MUSIC,),
    "sample_query": (Task.TEXT2MUSIC,),
    "use_format": (Task.TEXT2MUSIC,),
}

# the reference's bounds of the three modes, which `repaint_strength` moves between
CROSSFADE_FRAMES = 25
CROSSFADE_S = 0.05


@dataclass(frozen=True, slots=True)
class Window:
    """The part of a source that is made anew, in seconds from its beginning; it may stick out at both ends."""

    start: float = 0.0
    end: float | None = None  # None: where the source ends

    def on(self, samples: int) -> Span:
        """Raises InvalidRequest where nothing of a source of this many samples is left to be made, TooLong and
        InvalidAudio where what it is lengthened to is too much or too little for a song."""
        before = round(max(0.0, -self.start) * SAMPLE_RATE)
        first = round(self.start * SAMPLE_RATE) + before
        last = (samples if self.end is None else round(self.end * SAMPLE_RATE)) + before
        if last <= first:
            seconds = samples / SAMPLE_RATE
            raise InvalidRequest(
                f"repainting_start {self.start:g} s: nothing is left, the source ends at {seconds:g} s"
            )
        after = max(0, last - before - samples)
        total = before + samples + after
        if total < SAMPLES_PER_FRAME:
            raise InvalidAudio(f"{samples} samples of audio; a song is made from at least {SAMPLES_PER_FRAME}")
        if total > MAX_SECONDS * SAMPLE_RATE:
            raise TooLong(f"{total / SAMPLE_RATE:g} s of source audio; a song is at most {MAX_SECONDS:g} s")
        return Span(before, after, first, last)


WHOLE = Window()


@dataclass(frozen=True, slots=True)
class Span:
    """A window laid on a source: `before` and `after` samples of silence are added so that it lies inside, and then
    reaches from sample `first` to `last`, the end not included."""

    before: int
    after: int
    first: int
    last: int

    def frames(self, of: int) -> tuple[int, int]:
        """The same in latent frames of the lengthened source, at least one."""
        first = min(self.first // SAMPLES_PER_FRAME, of - 1)
        return first, max(first + 1, min(self.last // SAMPLES_PER_FRAME, of))


@dataclass(frozen=True, slots=True)
class Keeping:
    """How a song keeps to its source outside the window."""

    injection: float  # share of the steps after which the source is put back there
    crossfade_frames: int  # of the latents at each edge
    crossfade_s: float | None  # of the waveform; None: the source's own sound is not put back


@dataclass(frozen=True, slots=True)
class Splice:
    """The sound of a source, put back outside the window once the song is decoded."""

    audio: str  # artefact id
    window: Window
    crossfade_s: float


def source_of(request: MusicRequest) -> str | None:
    """The audio that the songs are made from, or that is analysed; given audio codes stand in for it."""
    needs_audio = request.task_type is not Task.TEXT2MUSIC or request.analysis in HEARD
    return request.src_audio if needs_audio and not request.audio_codes else None


def window_of(request: MusicRequest) -> Window:
    return Window(request.repainting_start, request.repainting_end) if request.task_type in WINDOWED else WHOLE


def keeping_of(request: MusicRequest) -> Keeping:
    """The reference's three modes (`_resolve_repaint_config`); Python rounds halves of a frame to even, as it does."""
    if request.repaint_mode == "aggressive":
        return Keeping(0.0, 0, None)
    share = 1.0 if request.repaint_mode == "conservative" else 1.0 - request.repaint_strength
    return Keeping(share, round(CROSSFADE_FRAMES * share), CROSSFADE_S * share)


def splice_of(request: MusicRequest) -> Splice | None:
    audio, window, crossfade_s = source_of(request), window_of(request), keeping_of(request).crossfade_s
    if audio is None or window == WHOLE or crossfade_s is None:
        return None
    return Splice(audio, window, crossfade_s)


def weights(total: int, first: int, last: int, crossfade: int) -> NDArray[np.float32]:
    """1 from `first` to `last`, 0 elsewhere, and ramps of at most `crossfade` between them, just outside the edges."""
    ours = np.zeros(total, np.float32)
    ours[first:last] = 1.0
    before, after = min(crossfade, first), min(crossfade, max(0, total - last))
    ours[first - before : first] = np.arange(1, before + 1) / (before + 1)
    ours[last : last + after] = np.arange(after, 0, -1) / (after + 1)
    return ours
