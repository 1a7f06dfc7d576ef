import io

import numpy as np
import pytest
import soundfile

from models import audio
from models.music import AudioFormat


def tone(seconds: float) -> audio.Pcm:
    time = np.arange(int(seconds * 48_000)) / 48_000
    left, right = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 660 * time)
    return (np.stack([left, right], axis=1) * 20_000).astype(np.int16)


def loudest_hertz(pcm: audio.Pcm) -> list[int]:
    """Of each channel, over its first ten seconds."""
    spectrum = np.abs(np.fft.rfft(pcm[:480_000], axis=0))
    return [round(int(peak) / 10) for peak in spectrum.argmax(axis=0)]


@pytest.mark.parametrize("audio_format", list(AudioFormat))
@pytest.mark.parametrize("seconds", [10, 12.34])
def test_a_file_decodes_as_what_went_in(audio_format: AudioFormat, seconds: float) -> None:
    pcm = tone(seconds)
    samples, rate = soundfile.read(io.BytesIO(audio.encode(pcm, audio_format)), dtype="int16")
    assert (rate, samples.shape[1]) == (48_000, 2)
    assert abs(len(samples) - len(pcm)) / 48_000 < 0.1
    if audio_format is AudioFormat.MP3:
        assert loudest_hertz(samples) == loudest_hertz(pcm) == [440, 660]
        assert abs(np.std(samples) / np.std(pcm) - 1) < 0.05
    else:
        assert np.array_equal(samples, pcm)


def test_a_format_has_its_media_type() -> None:
    assert {audio_format.value: audio.MEDIA_TYPES[audio_format] for audio_format in AudioFormat} == {
        "mp3": "audio/mpeg",
        "wav": "audio/wav",
        "flac": "audio/flac",
    }
