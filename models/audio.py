"""Samples to files. Encoding takes CPU seconds: call it beside a device thread and never on an event loop."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import av
import lameenc
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from models import gapless
from models.errors import InvalidRequest
from models.music import CHANNELS, SAMPLE_RATE, AudioFormat, Encoding

Pcm = NDArray[np.int16]  # (sample, channel)

MP3_QUALITY = 5  # LAME's middle: a third of the CPU time of quality 2, inaudible at this rate
SAMPLE_RATES = (44_100, 48_000)
KBIT_PER_S = {AudioFormat.MP3: 192, AudioFormat.OPUS: 128, AudioFormat.AAC: 192}  # unless another rate is asked for
ALLOWED_KBIT_PER_S = (64, 96, 128, 160, 192, 224, 256, 320)
MEDIA_TYPES = {
    AudioFormat.MP3: "audio/mpeg",
    AudioFormat.WAV: "audio/wav",
    AudioFormat.FLAC: "audio/flac",
    AudioFormat.OPUS: "audio/ogg",
    AudioFormat.AAC: "audio/aac",
}


@dataclass(frozen=True, slots=True)
class _Codec:
    """One of FFmpeg's."""

    name: str
    container: str
    options: dict[str, str] = field(default_factory=dict)


_OPUS = _Codec("libopus", "ogg")
_AAC = _Codec("aac", "adts", {"aac_coder": "fast"})  # 2.4 times as fast as the other; meant for rates above 64 kbit/s
_BLOCK = 1 << 16  # samples handed to FFmpeg at once


def check_encoding(encoding: Encoding) -> None:
    """Raises InvalidRequest for what `encode` cannot do."""
    if messages := [message for _, message in objections(encoding)]:
        raise InvalidRequest("; ".join(messages))


def objections(encoding: Encoding) -> Iterator[tuple[str, str]]:
    """Fields of a request whose encoding `encode` cannot do, and why."""
    audio_format, sample_rate, kbit_per_s = encoding.audio_format, encoding.sample_rate, encoding.kbit_per_s
    if sample_rate not in SAMPLE_RATES:
        allowed = ", ".join(map(str, SAMPLE_RATES))
        yield "audio_sample_rate", f"a sample rate of {sample_rate} Hz; allowed: {allowed}"
    elif sample_rate not in sample_rates_of(audio_format):
        yield "audio_sample_rate", f"opus at {sample_rate} Hz; opus is always {SAMPLE_RATE} Hz"
    if kbit_per_s is None:
        return
    if audio_format not in KBIT_PER_S:
        yield "audio_bitrate", f"{kbit_per_s} kbit/s of {audio_format}, which has no bit rate to choose"
    elif kbit_per_s not in ALLOWED_KBIT_PER_S:
        yield "audio_bitrate", f"{kbit_per_s} kbit/s; allowed: {', '.join(map(str, ALLOWED_KBIT_PER_S))}"


def sample_rates_of(audio_format: AudioFormat) -> tuple[int, ...]:
    return (SAMPLE_RATE,) if audio_format is AudioFormat.OPUS else SAMPLE_RATES


def encode(pcm: Pcm, encoding: Encoding) -> bytes:
    """A whole file of 48 kHz stereo samples, 16 bit where the format has a bit depth; the same every time.

    All but aac decode to exactly as many samples as went in. aac is a bare stream (ADTS), which cannot say where it
    begins: 1,024 samples late, and it ends up to 2,047 later. Raises InvalidRequest as `check_encoding` does.
    """
    return encode_parts([pcm], encoding)


def encode_parts(parts: Iterable[Pcm], encoding: Encoding) -> bytes:
    """As `encode`, of samples that come in parts; however they were cut, the file is the same."""
    check_encoding(encoding)
    audio_format, sample_rate = encoding.audio_format, encoding.sample_rate
    if sample_rate != SAMPLE_RATE:
        parts = [soxr.resample(np.concatenate(list(parts)), SAMPLE_RATE, sample_rate)]
    kbit_per_s = encoding.kbit_per_s or KBIT_PER_S.get(audio_format, 0)
    match audio_format:
        case AudioFormat.MP3:
            return _encode_mp3(parts, sample_rate, kbit_per_s)
        case AudioFormat.OPUS:
            return _encode_with_ffmpeg(parts, _OPUS, sample_rate, kbit_per_s)
        case AudioFormat.AAC:
            return _encode_with_ffmpeg(parts, _AAC, sample_rate, kbit_per_s)
        case AudioFormat.WAV | AudioFormat.FLAC:
            return _encode_with_libsndfile(parts, audio_format, sample_rate)


def _encode_with_libsndfile(parts: Iterable[Pcm], audio_format: AudioFormat, sample_rate: int) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", sample_rate, CHANNELS, "PCM_16", format=audio_format.upper()) as output:
        for part in parts:
            output.write(part)
    return file.getvalue()


def _encode_mp3(parts: Iterable[Pcm], sample_rate: int, kbit_per_s: int) -> bytes:
    """By LAME itself: the one within FFmpeg's wheel takes three times as long."""
    lame: Any = lameenc.Encoder()
    lame.set_bit_rate(kbit_per_s)
    lame.set_in_sample_rate(sample_rate)
    lame.set_out_sample_rate(sample_rate)
    lame.set_channels(CHANNELS)
    lame.set_quality(MP3_QUALITY)
    lame.silence()
    content, samples = bytearray(), 0
    for part in parts:
        content += lame.encode(np.ascontiguousarray(part).tobytes())
        samples += len(part)
    content += lame.flush()
    return gapless.with_header(bytes(content), samples)


def _encode_with_ffmpeg(parts: Iterable[Pcm], codec: _Codec, sample_rate: int, kbit_per_s: int) -> bytes:
    file = io.BytesIO()
    # bitexact: no random serial number in the file
    with av.open(file, "w", format=codec.container, options={"fflags": "+bitexact"}) as output:
        stream: Any = output.add_stream(codec.name, rate=sample_rate, options=codec.options)
        stream.layout = "stereo"
        stream.bit_rate = 1000 * kbit_per_s
        at = 0
        for part in parts:
            for start in range(0, len(part), _BLOCK):
                block = np.ascontiguousarray(part[start : start + _BLOCK])
                frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16", layout="stereo")
                frame.sample_rate, frame.pts = sample_rate, at
                output.mux(stream.encode(frame))
                at += len(block)
        output.mux(stream.encode(None))
    return file.getvalue()
