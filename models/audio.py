"""Samples to files. Encoding takes CPU seconds: call it beside a device thread and never on an event loop."""

from __future__ import annotations

import io
from typing import Any

import lameenc
import numpy as np
import soundfile
from numpy.typing import NDArray

from models.music import CHANNELS, SAMPLE_RATE, AudioFormat

Pcm = NDArray[np.int16]  # (sample, channel)

MP3_KBIT_PER_S = 192
MP3_QUALITY = 5  # LAME's middle: a third of the CPU time of quality 2, inaudible at this rate
MEDIA_TYPES = {AudioFormat.MP3: "audio/mpeg", AudioFormat.WAV: "audio/wav", AudioFormat.FLAC: "audio/flac"}


def encode(pcm: Pcm, audio_format: AudioFormat) -> bytes:
    """A whole file, 48 kHz stereo, 16 bit where the format has a bit depth. An mp3 is up to 0.05 s longer."""
    if audio_format is AudioFormat.MP3:
        return _encode_mp3(pcm)
    file = io.BytesIO()
    soundfile.write(file, pcm, SAMPLE_RATE, format=audio_format.value.upper(), subtype="PCM_16")
    return file.getvalue()


def _encode_mp3(pcm: Pcm) -> bytes:
    lame: Any = lameenc.Encoder()
    lame.set_bit_rate(MP3_KBIT_PER_S)
    lame.set_in_sample_rate(SAMPLE_RATE)
    lame.set_channels(CHANNELS)
    lame.set_quality(MP3_QUALITY)
    lame.silence()
    return bytes(lame.encode(np.ascontiguousarray(pcm).tobytes()) + lame.flush())
