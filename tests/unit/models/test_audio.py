"""Files are decoded by libsndfile where it can, which shares no code with what wrote mp3, opus and aac."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models import audio, source_audio
from models.errors import InvalidRequest
from models.music import AudioFormat, Encoding

EXACT = (AudioFormat.WAV, AudioFormat.FLAC)
AAC_DELAY = 1024


def music(seconds: float) -> audio.Pcm:
    """A tone in each ear, and enough noise that only one position fits when two are laid over each other."""
    time = np.arange(int(seconds * 48_000)) / 48_000
    tones = np.stack([np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 660 * time)], axis=1)
    noise = np.random.default_rng(0).standard_normal(tones.shape)
    return (tones * 15_000 + noise * 2_000).astype(np.int16)


def decoded(content: bytes, folder: Path) -> tuple[np.ndarray, int]:
    try:
        samples, rate = soundfile.read(io.BytesIO(content))
    except soundfile.LibsndfileError:  # it knows no aac
        (folder / "file").write_bytes(content)
        samples, rate = np.concatenate(list(source_audio.blocks(folder / "file", source_audio.AudioLimits()))), 48_000
    return samples, rate


def loudest_hertz(samples: np.ndarray, rate: int) -> list[int]:
    """Of each channel, over its first two seconds."""
    spectrum = np.abs(np.fft.rfft(samples[: 2 * rate], axis=0))
    return [round(int(peak) / 2) for peak in spectrum.argmax(axis=0)]


def samples_late(samples: np.ndarray, original: audio.Pcm) -> int:
    size = 1 << 17
    spectra = [np.fft.rfft(each[:60_000, 0], size) for each in (samples, original)]
    return int(np.fft.irfft(spectra[0] * spectra[1].conj()).argmax())


@pytest.mark.parametrize("audio_format", list(AudioFormat))
@pytest.mark.parametrize("seconds", [2, 3.0021])
def test_a_file_decodes_as_what_went_in(audio_format: AudioFormat, seconds: float, tmp_path: Path) -> None:
    pcm = music(seconds)
    samples, rate = decoded(audio.encode(pcm, Encoding(audio_format)), tmp_path)

    assert (rate, samples.shape[1]) == (48_000, 2)
    assert loudest_hertz(samples, rate) == [440, 660]
    assert np.std(samples) / np.std(pcm / 32768) == pytest.approx(1, abs=0.05)
    if audio_format is AudioFormat.AAC:
        assert samples_late(samples, pcm) == AAC_DELAY
        assert 0 <= len(samples) - len(pcm) - AAC_DELAY < 1024
    else:
        assert samples_late(samples, pcm) == 0
        assert len(samples) == len(pcm)
    if audio_format in EXACT:
        assert np.array_equal(samples, pcm / 32768)


@pytest.mark.parametrize("audio_format", [AudioFormat.WAV, AudioFormat.FLAC, AudioFormat.MP3])
def test_a_file_of_44100_hz_is_as_long_and_as_high(audio_format: AudioFormat) -> None:
    samples, rate = soundfile.read(io.BytesIO(audio.encode(music(3), Encoding(audio_format, sample_rate=44_100))))

    assert (rate, len(samples)) == (44_100, 3 * 44_100)
    assert loudest_hertz(samples, rate) == [440, 660]


@pytest.mark.parametrize("audio_format", list(audio.KBIT_PER_S))
@pytest.mark.parametrize("kbit_per_s", [64, 320])
def test_a_lossy_file_is_as_large_as_its_bit_rate(audio_format: AudioFormat, kbit_per_s: int, tmp_path: Path) -> None:
    content = audio.encode(music(4), Encoding(audio_format, kbit_per_s=kbit_per_s))
    samples, _ = decoded(content, tmp_path)

    assert 8 * len(content) / 4 / 1000 == pytest.approx(kbit_per_s, rel=0.3)
    assert loudest_hertz(samples, 48_000) == [440, 660]


@pytest.mark.parametrize("audio_format", list(AudioFormat))
def test_the_same_samples_are_the_same_file(audio_format: AudioFormat) -> None:
    pcm = music(1)
    assert audio.encode(pcm, Encoding(audio_format)) == audio.encode(pcm, Encoding(audio_format))


@pytest.mark.parametrize("sample_rate", [44_100, 48_000])
@pytest.mark.parametrize("audio_format", list(AudioFormat))
def test_however_the_samples_were_cut_the_file_is_the_same(audio_format: AudioFormat, sample_rate: int) -> None:
    if audio_format is AudioFormat.OPUS and sample_rate != 48_000:
        return
    pcm = music(3)
    cuts = [0, 1, 1000, 1000, 66_537, 140_001, len(pcm)]
    parts = (pcm[first:last] for first, last in pairwise(cuts))

    encoding = Encoding(audio_format, sample_rate)
    assert audio.encode_parts(parts, encoding) == audio.encode(pcm, encoding)


@pytest.mark.parametrize(
    ("audio_format", "sample_rate", "kbit_per_s", "says"),
    [
        (AudioFormat.WAV, 22_050, None, "22050 Hz; allowed: 44100, 48000"),
        (AudioFormat.OPUS, 44_100, None, "opus is always 48000 Hz"),
        (AudioFormat.FLAC, 48_000, 128, "no bit rate to choose"),
        (AudioFormat.MP3, 48_000, 200, "200 kbit/s; allowed: 64, 96"),
    ],
)
def test_what_a_format_cannot_be_is_refused(
    audio_format: AudioFormat, sample_rate: int, kbit_per_s: int | None, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        audio.encode(music(1), Encoding(audio_format, sample_rate, kbit_per_s))


def test_a_format_has_its_media_type() -> None:
    assert {audio_format.value: audio.MEDIA_TYPES[audio_format] for audio_format in AudioFormat} == {
        "mp3": "audio/mpeg",
        "wav": "audio/wav",
        "flac": "audio/flac",
        "opus": "audio/ogg",
        "aac": "audio/aac",
    }
