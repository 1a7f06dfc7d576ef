from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.errors import BadAudio, EngineError
from models.music import AudioFormat, Latents, frames_of
from models.source_audio import AudioLimits, blocks
from models.vae.engine import VaeEngine, to_pcm


class Kept(dict[str, bytes]):
    """Files in memory."""

    def save(self, extension: str, content: bytes) -> str:
        ref = f"{len(self)}.{extension}"
        self[ref] = content
        return ref


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def engine(tiny: Path, kept: Kept) -> Iterator[VaeEngine]:
    engine = VaeEngine(tiny / "vae", kept.save, torch.device("cpu"), encoders=1)
    yield engine
    engine.close()


def latents(seconds: float, seed: int = 0) -> Latents:
    rng = np.random.default_rng(seed)
    return Latents(rng.standard_normal((frames_of(seconds), 64), dtype=np.float32))


@pytest.mark.parametrize("audio_format", list(AudioFormat))
async def test_latents_become_a_kept_file_of_their_length(
    engine: VaeEngine, kept: Kept, audio_format: AudioFormat, tmp_path: Path
) -> None:
    track = await engine.decode(latents(10), audio_format)
    (tmp_path / track.ref).write_bytes(kept[track.ref])
    samples = np.concatenate(list(blocks(tmp_path / track.ref, AudioLimits())))
    assert track.seconds == 10.0
    assert abs(len(samples) / 48_000 - 10) < 0.1
    assert track.size == len(kept[track.ref])
    assert track.ref.endswith(f".{audio_format}")


async def test_the_same_latents_are_the_same_file(engine: VaeEngine, kept: Kept) -> None:
    tracks = [await engine.decode(latents(10), AudioFormat.WAV) for _ in range(2)]
    assert tracks[0].sha256 == tracks[1].sha256
    assert len(kept) == 2


async def test_what_is_not_finite_keeps_nothing(engine: VaeEngine, kept: Kept) -> None:
    broken = latents(10)
    broken.values[7, 3] = np.nan
    with pytest.raises(BadAudio, match="NaN"):
        await engine.decode(broken, AudioFormat.WAV)
    assert kept == {}
    await engine.decode(latents(10), AudioFormat.WAV)  # and the next song is made


def test_silence_is_refused() -> None:
    with pytest.raises(BadAudio, match="silence"):
        to_pcm(torch.full((2, 100), 1e-7))


@pytest.mark.parametrize("peak", [0.01, 0.5, 3.0])
def test_the_loudest_sample_is_at_minus_one_decibel(peak: float) -> None:
    pcm = to_pcm(torch.linspace(-peak, peak / 2, 1000).expand(2, -1))
    assert np.abs(pcm.astype(int)).max() == round(0.8913 * 32767)
    assert pcm.shape == (1000, 2)


def test_a_vae_of_another_rate_is_refused(tiny: Path, kept: Kept, tmp_path: Path) -> None:
    config = (tiny / "vae" / "config.json").read_text().replace("48000", "44100")
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(tiny / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(EngineError, match="44100 Hz"):
        VaeEngine(tmp_path, kept.save, torch.device("cpu"), encoders=1)


def test_warming_up_keeps_nothing_and_leaves_it_well(engine: VaeEngine, kept: Kept) -> None:
    engine.warm_up()
    engine.check_health()
    assert kept == {}
