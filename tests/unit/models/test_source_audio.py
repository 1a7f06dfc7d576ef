"""Files as callers send them: of every kind, and made to do harm."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from av.audio.stream import AudioStream
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models import audio
from models.errors import InvalidAudio, RequestError, TooLong
from models.music import AudioFormat
from models.source_audio import (
    AudioInfo,
    AudioLimits,
    Waveform,
    blocks,
    container_of,
    examine,
    examine_in_subprocess,
    probe,
    read_in_subprocess,
)

LIMITS = AudioLimits(seconds=10.0, cpu_s=20)
SECONDS = 2
FLAC_LENGTH = slice(18, 26)  # of a file's bytes; the last 36 bits are the number of samples


def tones(seconds: float = SECONDS, rate: int = 48_000) -> Waveform:
    time = np.arange(int(seconds * rate)) / rate
    left, right = np.sin(2 * np.pi * 440 * time), np.sin(2 * np.pi * 660 * time)
    return (0.4 * np.stack([left, right], axis=1)).astype(np.float32)


def pcm(samples: Waveform) -> audio.Pcm:
    return (samples * 32768).astype(np.int16)


def written(samples: Waveform, kind: str, subtype: str, rate: int = 48_000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def muxed(samples: Waveform, codec: str, container: str, with_video: bool = False) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        video = output.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p") if with_video else None
        sound = output.add_stream(codec, rate=48_000, layout="stereo")
        assert isinstance(sound, AudioStream)
        if video is not None:
            picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            output.mux(video.encode(picture))
            output.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(pcm(samples).reshape(1, -1), format="s16", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, 0
        output.mux(sound.encode(frame))
        output.mux(sound.encode(None))
    return file.getvalue()


def with_flac_length(content: bytes, samples: int) -> bytes:
    fields = int.from_bytes(content[FLAC_LENGTH], "big") >> 36 << 36 | samples
    return content[:18] + fields.to_bytes(8, "big") + content[26:]


def read(path: Path, limits: AudioLimits = LIMITS) -> Waveform:
    return np.concatenate(list(blocks(path, limits)))


def loudest_hertz(samples: Waveform) -> list[int]:
    spectrum = np.abs(np.fft.rfft(samples[:48_000], axis=0))
    return [int(peak) for peak in spectrum.argmax(axis=0)]


Put = Callable[[bytes], Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def put(content: bytes) -> Path:
        path = tmp_path / "upload"
        path.write_bytes(content)
        return path

    return put


FILES: dict[str, Callable[[], bytes]] = {
    "wav pcm_s24le": lambda: written(tones(), "WAV", "PCM_24"),
    "wav pcm_f32le": lambda: written(tones(), "WAV", "FLOAT"),
    "wav pcm_mulaw": lambda: written(tones(), "WAV", "ULAW"),
    "wav pcm_s16le": lambda: written(tones(), "RF64", "PCM_16"),
    "flac flac": lambda: written(tones(), "FLAC", "PCM_24"),
    "ogg vorbis": lambda: written(tones(), "OGG", "VORBIS"),
    "ogg opus": lambda: audio.encode(pcm(tones()), AudioFormat.OPUS),
    "ogg flac": lambda: muxed(tones(), "flac", "ogg"),
    "mp3 mp3float": lambda: audio.encode(pcm(tones()), AudioFormat.MP3),
    "aac aac": lambda: audio.encode(pcm(tones()), AudioFormat.AAC),
    "m4a aac": lambda: muxed(tones(), "aac", "mp4"),
    "m4a alac": lambda: muxed(tones(), "alac", "mp4"),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_common_kind_of_file_is_read(kind: str, put: Put) -> None:
    path = put(FILES[kind]())
    info, samples = probe(path, LIMITS), read(path)

    assert (f"{info.container} {info.codec}", info.sample_rate, info.channels) == (kind, 48_000, 2)
    assert samples.dtype == np.float32
    assert loudest_hertz(samples) == [440, 660]
    assert 0 <= len(samples) / 48_000 - SECONDS < 0.05
    assert np.std(samples) / np.std(tones()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_as_long_as_what_is_in_it(kind: str, put: Put) -> None:
    path = put(FILES[kind]())
    assert examine(path, LIMITS) == replace(probe(path, LIMITS), seconds=len(read(path)) / 48_000)


def test_a_file_of_silence_is_no_source(put: Put) -> None:
    path = put(written(np.zeros((48_000, 2), np.float32), "WAV", "PCM_16"))
    with pytest.raises(InvalidAudio, match=r"1\.0 s of silence"):
        examine(path, LIMITS)


@pytest.mark.parametrize(
    ("content", "seen"), [(b"", "is empty"), (b"Hello, world", r"begins with b'Hello, w'"), (b"<html>", "b'<html>'")]
)
def test_what_is_no_audio_is_told_by_how_it_begins(content: bytes, seen: str, put: Put) -> None:
    with pytest.raises(InvalidAudio, match=f"the file {seen}.*allowed: wav" if seen == "is empty" else seen):
        examine(put(content), LIMITS)


def test_nothing_is_lost_of_a_file_that_needs_no_conversion(put: Put) -> None:
    assert np.array_equal(read(put(written(tones(), "WAV", "FLOAT"))), tones())


def test_another_sample_rate_becomes_48000_hz(put: Put) -> None:
    samples = read(put(written(tones(rate=22_050), "WAV", "FLOAT", 22_050)))

    assert len(samples) == pytest.approx(SECONDS * 48_000, abs=2)
    assert np.abs(samples - tones())[500:-500].max() < 1e-3


def test_one_channel_becomes_two_alike(put: Put) -> None:
    left = tones()[:, :1]
    assert np.array_equal(read(put(written(left, "WAV", "FLOAT"))), np.repeat(left, 2, axis=1))


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])  # the first does not name its channels
def test_surround_sound_is_mixed_without_clipping(kind: str, put: Put) -> None:
    """The order is left, right, centre, low frequency, and left and right again."""
    left, right = tones()[:, 0] * 2.4, tones()[:, 1] * 2.4
    nothing = np.zeros_like(left)
    subtype = "PCM_24"

    full = read(put(written(np.stack([left] * 6, axis=1), kind, subtype)))
    sides = read(put(written(np.stack([left, right, nothing, left, left, right], axis=1), kind, subtype)))

    assert np.abs(full - left[:, None]).max() < 1e-5
    assert loudest_hertz(sides) == [440, 660]


def test_samples_beyond_full_scale_are_cut_off_there(put: Put) -> None:
    samples = read(put(written(10 * tones(), "WAV", "FLOAT")))
    assert (samples.min(), samples.max()) == (-1, 1)


def test_pictures_beside_the_sound_do_not_matter(put: Put) -> None:
    assert loudest_hertz(read(put(muxed(tones(), "aac", "mp4", with_video=True)))) == [440, 660]


def test_an_mp3_with_a_tag_in_front_is_read(put: Put) -> None:
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x0aTXXX\xff\xfe\xfd\x00\x00\x00"
    samples = read(put(tag + audio.encode(pcm(tones()), AudioFormat.MP3)))
    assert len(samples) == SECONDS * 48_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"not audio at all" * 100,
        b"#EXTM3U\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\n",
        b"\x89PNG",
    ],
)
def test_what_is_no_audio_file_is_refused(content: bytes, put: Put) -> None:
    with pytest.raises(InvalidAudio, match="allowed: wav, flac, mp3"):
        probe(put(content), LIMITS)


@pytest.mark.parametrize(
    "head", [b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"\0\0\0\x20ftypM4A ", b"ID3", b"\xff\xfb", b"\xff\xf1"]
)
def test_a_file_that_only_begins_like_audio_is_refused(head: bytes, put: Put) -> None:
    assert container_of(head)
    with pytest.raises(InvalidAudio, match=r"cannot be read|a sample rate of 0"):
        read(put(head + bytes(range(256)) * 20))


def test_a_kind_of_sound_that_is_not_common_is_refused(put: Put) -> None:
    with pytest.raises(InvalidAudio, match="adpcm_ima_wav in a wav file"):
        probe(put(written(tones(), "WAV", "IMA_ADPCM")), LIMITS)


def test_a_kind_of_sound_that_nobody_knows_is_refused(put: Put) -> None:
    content = bytearray(written(tones(), "WAV", "PCM_16"))
    content[20:22] = b"\xab\xcd"  # the number of the codec
    with pytest.raises(InvalidAudio, match="nothing known in a wav file"):
        probe(put(bytes(content)), LIMITS)


def test_a_file_with_pictures_only_is_refused(put: Put) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        video = output.add_stream("mpeg4", rate=25, width=64, height=64, pix_fmt="yuv420p")
        output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        output.mux(video.encode(None))
    with pytest.raises(InvalidAudio, match="no sound"):
        probe(put(file.getvalue()), LIMITS)


def test_a_file_without_samples_is_refused(put: Put) -> None:
    with pytest.raises(InvalidAudio, match="no sound"):
        read(put(written(tones()[:0], "WAV", "PCM_16")))


def test_a_file_that_was_cut_off_is_refused(put: Put) -> None:
    content = written(tones(8), "FLAC", "PCM_16")
    with pytest.raises(InvalidAudio, match=r"of the 8\.0 s of this file are there"):
        read(put(content[: len(content) // 2]))


def test_a_file_with_a_number_that_is_none_is_refused(put: Put) -> None:
    samples = tones()
    samples[1000, 1] = np.nan
    with pytest.raises(InvalidAudio, match="NaN"):
        read(put(written(samples, "WAV", "FLOAT")))


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (replace(LIMITS, channels=1), "2 channels; allowed: 1 to 1"),
        (replace(LIMITS, file_bytes=1000), "bytes of audio; at most 1000"),
        (replace(LIMITS, seconds=1.5), "2.0 s long; at most 1.5 s"),
    ],
)
def test_a_file_beyond_a_limit_is_refused_by_its_headers(limits: AudioLimits, says: str, put: Put) -> None:
    with pytest.raises(RequestError, match=says):
        probe(put(written(tones(), "WAV", "PCM_16")), limits)


def test_a_sample_rate_beyond_the_limits_is_refused(put: Put) -> None:
    with pytest.raises(InvalidAudio, match="384000 Hz; allowed: 8000 to 192000"):
        probe(put(written(tones(), "WAV", "PCM_16", 384_000)), LIMITS)


def test_a_file_that_claims_hours_is_refused_before_it_is_decoded(put: Put) -> None:
    path = put(with_flac_length(written(tones(), "FLAC", "PCM_16"), 5 * 3600 * 48_000))
    with pytest.raises(TooLong, match=r"18000\.0 s long; at most 10 s"):
        probe(path, LIMITS)


def bomb() -> bytes:
    """A minute in 12 kB that does not say how long it is."""
    return with_flac_length(written(np.zeros((60 * 48_000, 2), np.float32), "FLAC", "PCM_16"), 0)


def test_a_small_file_that_decodes_to_much_is_left_at_the_limit(put: Put) -> None:
    path = put(bomb())
    assert path.stat().st_size < 20_000
    assert probe(path, LIMITS).seconds is None

    taken: list[int] = []
    with pytest.raises(TooLong, match="longer than 10 s"):
        taken.extend(len(block) for block in blocks(path, LIMITS))
    assert 9 * 48_000 < sum(taken) <= 10 * 48_000


def test_an_mp3_whose_length_is_only_guessed_is_left_at_the_limit(put: Put) -> None:
    path = put(audio.encode(pcm(tones(12)), AudioFormat.MP3, kbit_per_s=64))
    assert probe(path, LIMITS) == AudioInfo("mp3", "mp3float", 48_000, 2, None)
    with pytest.raises(TooLong, match="longer than 10 s"):
        read(path)


DAMAGED = {kind: make() for kind, make in FILES.items()}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data: st.DataObject, put: Put) -> None:
    kind = data.draw(st.sampled_from(sorted(DAMAGED)))
    content = bytearray(DAMAGED[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = put(bytes(content[: data.draw(st.integers(1, len(content)))]))

    try:
        samples = read(path)
    except (RequestError, MemoryError):  # a header may ask for more memory than FFmpeg ever takes
        return
    assert len(samples) <= LIMITS.seconds * 48_000
    assert np.isfinite(samples).all()


def test_another_process_reads_the_same(put: Put) -> None:
    path = put(FILES["m4a aac"]())
    assert np.array_equal(read_in_subprocess(path, LIMITS), read(path))
    assert examine_in_subprocess(path, LIMITS) == examine(path, LIMITS)


def test_a_refusal_comes_out_of_the_other_process_as_it_is(put: Put) -> None:
    with pytest.raises(TooLong, match="longer than 10 s"):
        read_in_subprocess(put(bomb()), LIMITS)
    with pytest.raises(InvalidAudio, match="cannot be read"):
        read_in_subprocess(put(b"fLaC" + bytes(1000)), LIMITS)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (replace(LIMITS, memory_bytes=10 * 1024**2), "more time or memory than it may"),
        (replace(LIMITS, wall_s=0.01), "more than 0.01 s to decode"),
    ],
)
def test_a_decoder_that_takes_too_much_is_ended(limits: AudioLimits, says: str, put: Put) -> None:
    with pytest.raises(InvalidAudio, match=says):
        read_in_subprocess(put(FILES["mp3 mp3float"]()), limits)
