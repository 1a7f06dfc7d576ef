"""A caller's file to samples: recognised by its first bytes, refused beyond limits, never trusted in what it claims.

Whoever sent the file chose every byte of it, and decoders are C. So a server calls `read_in_subprocess`, whose child
has limits on memory and time, and no more to lose than the file itself; the rest is what that child runs.
`examine_in_subprocess` does all the same and keeps none of it, so that a file is refused when it comes, and
`outline_in_subprocess` keeps as much as a waveform is drawn from.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import soxr
from av.audio.codeccontext import AudioCodecContext
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from models.errors import InvalidAudio, RequestError, TooLong
from models.music import CHANNELS, SAMPLE_RATE, SILENCE

log = logging.getLogger(__name__)

Waveform = NDArray[np.float32]  # (sample, channel), 48 kHz stereo, within -1 and 1
Outline = NDArray[np.float32]  # (span, 2): the lowest and the highest sample of any channel in each span

OUTLINE_SAMPLES = 240  # of a span: 200 spans are a second

SAMPLE_RATES = (8_000, 192_000)  # least and most
BROKEN_PACKETS = 0.05  # share that is skipped over, as players do
ALLOWED = "wav, flac, mp3, aac, m4a, and ogg with vorbis, opus or flac"
ADDED_S = 0.1  # by headers to what is in a file; its samples are counted all the same
MISSING_S = 1.0  # that a file may be shorter than it says
HALF_POWER = 0.5**0.5
_HEAD = 64
_SIGNATURES = {
    "wav": rb"(RIFF|RF64)....WAVE",
    "flac": rb"fLaC",
    "ogg": rb"OggS",
    "m4a": rb"....ftyp",
    "aac": rb"\xff[\xf0\xf1\xf8\xf9]",
    "mp3": rb"ID3|\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff]",
}
_DEMUXERS = {"wav": "wav", "flac": "flac", "ogg": "ogg", "mp3": "mp3", "m4a": "mov", "aac": "aac"}
_CODECS = (
    *("flac", "mp3", "mp3float", "aac", "alac", "vorbis", "opus"),
    *("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le", "pcm_alaw", "pcm_mulaw"),
    *("pcm_s16be", "pcm_s24be", "pcm_s32be"),
)
_SIDES = {  # of a channel, by FFmpeg's name for it; one that is not here is a centre
    **dict.fromkeys(("FL", "FLC", "DL"), (1.0, 0.0)),
    **dict.fromkeys(("FR", "FRC", "DR"), (0.0, 1.0)),
    **dict.fromkeys(("BL", "SL"), (HALF_POWER, 0.0)),
    **dict.fromkeys(("BR", "SR"), (0.0, HALF_POWER)),
    "LFE": (0.0, 0.0),
}
_NO_NAME = "NONE"
_LAYOUTS = ("mono", "stereo", "2.1", "4.0", "5.0", "5.1", "6.1", "7.1")
_LENGTH_IS_A_GUESS = ("mp3", "aac")  # made from the size of the file and the bit rate where it begins


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """`file_bytes` as sent, `seconds` as decoded. For the child: CPU seconds, and those on the wall, where the machine
    is busy with other things; and bytes of address space."""

    seconds: float = 600.0
    channels: int = 8
    file_bytes: int = 256 * 1024**2
    cpu_s: int = 60
    wall_s: float = 300.0
    memory_bytes: int = 1024**3

    def check_size(self, file_bytes: int) -> None:
        """Raises TooLong."""
        if file_bytes > self.file_bytes:
            raise TooLong(f"{file_bytes} bytes of audio; at most {self.file_bytes} are taken")


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file says of itself. `seconds` is `None` where it does not say, or only guesses."""

    container: str
    codec: str
    sample_rate: int
    channels: int
    seconds: float | None


def container_of(head: bytes) -> str:
    """Told from a file's first 64 bytes; names and media types are the caller's invention. Raises InvalidAudio."""
    for container, pattern in _SIGNATURES.items():
        if re.match(pattern, head, re.DOTALL):
            return container
    seen = f"begins with {head[:8]!r}" if head else "is empty"
    raise InvalidAudio(f"the file {seen}, so it is no audio that can be read; allowed: {ALLOWED}")


def probe(path: Path, limits: AudioLimits) -> AudioInfo:
    """Reads headers only. Raises InvalidAudio, and TooLong for a size or a length beyond the limits."""
    with _opened(path, limits) as (_, info):
        return info


def examine(path: Path, limits: AudioLimits) -> AudioInfo:
    """Decodes the whole file: `seconds` is what is in it. Raises as `blocks` does, and InvalidAudio for silence."""
    info = probe(path, limits)
    samples, peak = 0, 0.0
    for block in blocks(path, limits):
        samples += len(block)
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
    if peak <= SILENCE:
        raise InvalidAudio(f"{samples / SAMPLE_RATE:.1f} s of silence; nothing can be made from it")
    return replace(info, seconds=samples / SAMPLE_RATE)


def blocks(path: Path, limits: AudioLimits) -> Iterator[Waveform]:
    """The samples, a packet at a time. Raises InvalidAudio, TooLong at the sample that is too many, and MemoryError,
    which `read_in_subprocess` makes an InvalidAudio."""
    with _opened(path, limits) as (file, info):
        resampler = soxr.ResampleStream(info.sample_rate, SAMPLE_RATE, CHANNELS)
        most = round(limits.seconds * info.sample_rate)
        samples = 0
        for block in _decoded(file, info):
            samples += len(block)
            if samples > most:
                raise TooLong(f"the audio is longer than {limits.seconds:g} s, the most that is taken")
            yield _checked(resampler.resample_chunk(block))
        if not samples:
            raise InvalidAudio("there is no sound in this file")
        if info.seconds is not None and samples / info.sample_rate < info.seconds - MISSING_S:
            raise InvalidAudio(f"{samples / info.sample_rate:.1f} s of the {info.seconds:.1f} s of this file are there")
        yield _checked(resampler.resample_chunk(np.zeros((0, CHANNELS), np.float32), last=True))


def outline(path: Path, limits: AudioLimits) -> Iterator[Outline]:
    """In parts; the last span may be a shorter one. Raises as `blocks` does."""
    left: Waveform = np.zeros((0, CHANNELS), np.float32)
    for block in blocks(path, limits):
        samples = np.concatenate([left, block])
        whole = len(samples) // OUTLINE_SAMPLES * OUTLINE_SAMPLES
        yield _extremes(samples[:whole].reshape(-1, OUTLINE_SAMPLES * CHANNELS))
        left = samples[whole:]
    if len(left):
        yield _extremes(left.reshape(1, -1))


def _extremes(spans: NDArray[np.float32]) -> Outline:
    return np.stack([spans.min(axis=1), spans.max(axis=1)], axis=1)


def examine_in_subprocess(path: Path, limits: AudioLimits) -> AudioInfo:
    """Takes CPU seconds and waits: not for an event loop. Raises InvalidAudio and TooLong."""
    limits.check_size(path.stat().st_size)
    return AudioInfo(**_answer_of_child({"path": str(path.absolute()), "into": None, "limits": asdict(limits)}))


def read_in_subprocess(path: Path, limits: AudioLimits) -> Waveform:
    """The whole file. Takes CPU seconds and waits: not for an event loop. Raises InvalidAudio and TooLong."""
    return _floats_of_child(path, limits, "samples").reshape(-1, CHANNELS)


def outline_in_subprocess(path: Path, limits: AudioLimits) -> Outline:
    """Of the whole file. Takes CPU seconds and waits: not for an event loop. Raises InvalidAudio and TooLong."""
    return _floats_of_child(path, limits, "outline").reshape(-1, 2)


def _floats_of_child(path: Path, limits: AudioLimits, what: str) -> NDArray[np.float32]:
    limits.check_size(path.stat().st_size)
    with tempfile.TemporaryDirectory(prefix="audio-") as folder:
        into = Path(folder) / f"{what}.f32"
        order = {"path": str(path.absolute()), "what": what, "into": str(into), "limits": asdict(limits)}
        _answer_of_child(order)
        return np.fromfile(into, np.float32)


@contextmanager
def _opened(path: Path, limits: AudioLimits) -> Iterator[tuple[InputContainer, AudioInfo]]:
    limits.check_size(path.stat().st_size)
    with path.open("rb") as file:
        container = container_of(file.read(_HEAD))
    try:
        with av.open(
            str(path.absolute()),
            format=_DEMUXERS[container],
            options={"protocol_whitelist": "file", "codec_whitelist": ",".join(_CODECS)},
            metadata_errors="replace",
        ) as opened:
            yield opened, _info(opened, container, limits)
    except (av.FFmpegError, ValueError) as error:  # a ValueError is PyAV's, where a file changes on its way
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(f"no memory left for this {container} file") from error
        raise InvalidAudio(f"this {container} file cannot be read") from error


def _info(file: InputContainer, container: str, limits: AudioLimits) -> AudioInfo:
    if not file.streams.audio:
        raise InvalidAudio(f"there is no sound in this {container} file; allowed: {ALLOWED}")
    stream = file.streams.audio[0]
    context: AudioCodecContext | None = stream.codec_context  # there is none where FFmpeg knows no decoder
    if context is None or context.name not in _CODECS:
        raise InvalidAudio(f"{context.name if context else 'nothing known'} in a {container} file; allowed: {ALLOWED}")
    info = AudioInfo(
        container=container,
        codec=context.name,
        sample_rate=context.sample_rate,
        channels=context.channels,
        seconds=_claimed_s(stream) if container not in _LENGTH_IS_A_GUESS else None,
    )
    least, most = SAMPLE_RATES
    if not least <= info.sample_rate <= most:
        raise InvalidAudio(f"a sample rate of {info.sample_rate} Hz; allowed: {least} to {most}")
    if not 1 <= info.channels <= limits.channels:
        raise InvalidAudio(f"{info.channels} channels; allowed: 1 to {limits.channels}")
    if info.seconds is not None and info.seconds - ADDED_S > limits.seconds:
        raise TooLong(f"the audio is {info.seconds:.1f} s long; at most {limits.seconds:g} s are taken")
    return info


def _claimed_s(stream: AudioStream) -> float | None:
    if stream.duration is None or stream.time_base is None:
        return None
    return float(stream.duration * stream.time_base)


def _decoded(file: InputContainer, info: AudioInfo) -> Iterator[Waveform]:
    """Stereo at the file's own rate."""
    stream = file.streams.audio[0]
    stream.codec_context.thread_count = 1
    to_floats = av.AudioResampler(format="flt")
    packets = broken = 0
    for packet in file.demux(stream):
        packets += 1
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            broken += 1
            continue
        for frame in frames:
            if frame.sample_rate != info.sample_rate:
                raise InvalidAudio(f"the sample rate changes from {info.sample_rate} to {frame.sample_rate} Hz")
            weights = _stereo_weights(tuple(channel.name for channel in frame.layout.channels))
            for part in to_floats.resample(frame):
                samples = part.to_ndarray().astype(np.float32, copy=False).reshape(part.samples, len(weights))
                yield samples @ weights
    if broken > BROKEN_PACKETS * packets:
        raise InvalidAudio(f"{broken} of {packets} packets of this {info.container} file are broken")


@cache
def _stereo_weights(channels: tuple[str, ...]) -> NDArray[np.float32]:
    """(channel, side): front at full level, centre and surround 3 dB below (ITU-R BS.775), then all so much lower
    that nothing clips. One channel becomes two alike. Where a file does not name its channels, as their number has it.
    """
    if _NO_NAME in channels and len(channels) <= len(_LAYOUTS):
        channels = tuple(channel.name for channel in av.AudioLayout(_LAYOUTS[len(channels) - 1]).channels)
    weights = np.array([_SIDES.get(channel, (HALF_POWER, HALF_POWER)) for channel in channels], np.float32)
    weights /= max(weights.sum(axis=0).max(), HALF_POWER)
    return weights


def _checked(samples: Waveform) -> Waveform:
    if not np.isfinite(samples).all():
        raise InvalidAudio("there is NaN or infinity in this file")
    return samples.clip(-1, 1)


def _answer_of_child(order: dict[str, Any]) -> dict[str, Any]:
    """Raises InvalidAudio and TooLong, as the child found or for what became of it."""
    wall_s = order["limits"]["wall_s"]
    try:
        child = subprocess.run(
            [sys.executable, "-m", "models.source_audio"],
            cwd=Path(__file__).parent.parent,
            env={"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=wall_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InvalidAudio(f"the audio took more than {wall_s:g} s to decode") from None
    if child.returncode:
        log.warning("decoding ended with %d: %s", child.returncode, child.stderr[-2000:].decode(errors="replace"))
        raise InvalidAudio("decoding this audio took more time or memory than it may, or broke the decoder")
    answer: dict[str, Any] = json.loads(child.stdout)
    if "refusal" in answer:
        raise next(kind for kind in (InvalidAudio, TooLong) if kind.code == answer["code"])(answer["refusal"])
    return answer


def _confine(limits: AudioLimits) -> None:
    """This process, for the rest of its life."""
    samples_bytes = math.ceil(limits.seconds + 1) * SAMPLE_RATE * CHANNELS * np.dtype(np.float32).itemsize
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, samples_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _main() -> None:
    order: dict[str, Any] = json.load(sys.stdin)
    limits = AudioLimits(**order["limits"])
    _confine(limits)
    try:
        answer = _done(order, limits)
    except RequestError as refusal:
        answer = {"refusal": refusal.message, "code": refusal.code}
    print(json.dumps(answer))  # noqa: T201 that is the answer


def _done(order: dict[str, Any], limits: AudioLimits) -> dict[str, Any]:
    path = Path(order["path"])
    if order["into"] is None:
        return asdict(examine(path, limits))
    with open(order["into"], "wb") as file:
        for part in {"samples": blocks, "outline": outline}[order["what"]](path, limits):
            file.write(part.tobytes())
    return {}


if __name__ == "__main__":
    _main()
