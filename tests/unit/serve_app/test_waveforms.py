"""What players draw: of real files, each decoded once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import audio
from models.errors import Overloaded
from models.music import SAMPLE_RATE, AudioFormat, Encoding
from models.source_audio import Outline
from serve_app import waveforms
from serve_app.artifacts.face import StorageFailed
from serve_app.artifacts.local import LocalArtifacts
from serve_app.waveforms import Waveforms

SECONDS = 2


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path)


def rising(artifacts: LocalArtifacts, audio_format: AudioFormat = AudioFormat.WAV) -> str:
    """A tone that becomes louder, in the left channel only."""
    time = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE
    pcm = np.zeros((len(time), 2), np.int16)
    pcm[:, 0] = 30_000 * time / SECONDS * np.sin(2 * np.pi * 440 * time)
    return artifacts.save(audio_format, audio.encode(pcm, Encoding(audio_format)))


@pytest.mark.parametrize("audio_format", AudioFormat)
async def test_a_waveform_is_as_loud_as_the_sound(artifacts: LocalArtifacts, audio_format: AudioFormat) -> None:
    drawn = await Waveforms(artifacts).peaks(rising(artifacts, audio_format), 4)
    assert drawn.seconds == pytest.approx(SECONDS, abs=0.1)
    expected = np.array([0.25, 0.5, 0.75, 1.0]) * 30_000 / 32_768
    assert drawn.highest == pytest.approx(expected, abs=0.06)
    assert drawn.lowest == pytest.approx(-expected, abs=0.06)


async def test_a_short_track_has_no_more_points_than_it_can_fill(artifacts: LocalArtifacts) -> None:
    drawn = await Waveforms(artifacts).peaks(rising(artifacts), 4000)
    assert len(drawn.lowest) == len(drawn.highest) == 200 * SECONDS
    assert all(low <= high for low, high in zip(drawn.lowest, drawn.highest, strict=True))


class Decoder:
    """Counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded: list[str] = []
        monkeypatch.setattr(waveforms, "outline_in_subprocess", self)

    def __call__(self, path: Path, _: Any) -> Outline:
        self.decoded.append(path.name)
        return np.zeros((10, 2), np.float32)


async def test_a_track_is_decoded_once_for_all_who_ask(
    artifacts: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, drawing, ref = Decoder(monkeypatch), Waveforms(artifacts), rising(artifacts)
    await asyncio.gather(*(drawing.peaks(ref, points) for points in (1, 5, 10)))
    await drawing.peaks(ref, 2)
    assert decoder.decoded == [ref]


async def test_who_leaves_takes_nothing_from_the_others(
    artifacts: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    Decoder(monkeypatch)
    drawing, ref = Waveforms(artifacts), rising(artifacts)
    leaver, other = (asyncio.create_task(drawing.peaks(ref, 5)) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    assert len((await other).lowest) == 5


async def test_the_least_used_outline_goes_first(artifacts: LocalArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waveforms, "KEPT_AT_MOST", 2)
    decoder, drawing = Decoder(monkeypatch), Waveforms(artifacts)
    one, two, three = (rising(artifacts) for _ in range(3))
    for ref in (one, two, one, three, one, two):
        await drawing.peaks(ref, 5)
    assert decoder.decoded == [one, two, three, two]


async def test_no_more_wait_than_may(artifacts: LocalArtifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waveforms, "WAITING_AT_MOST", 1)
    Decoder(monkeypatch)
    drawing, ref = Waveforms(artifacts), rising(artifacts)
    first = asyncio.create_task(drawing.peaks(ref, 5))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="1 waveforms are being drawn"):
        await drawing.peaks(rising(artifacts), 5)
    await first


async def test_a_track_that_is_not_there_is_asked_for_anew(
    artifacts: LocalArtifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    Decoder(monkeypatch)
    drawing, ref = Waveforms(artifacts), rising(artifacts)
    artifacts.delete([ref])
    for _ in range(2):
        with pytest.raises(StorageFailed):
            await drawing.peaks(ref, 5)
