import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import AutoencoderOobleck
from numpy.typing import NDArray
from safetensors.torch import load_file

from models.editing import WHOLE, Splice, Window
from models.errors import BadAudio, EngineError, InvalidAudio, InvalidRequest, TooLong
from models.music import SAMPLE_RATE, AudioFormat, Encoding, Latents, frames_of
from models.source_audio import AudioLimits, blocks
from models.tiny import VAE_CONFIG
from models.vae.decoding import check_peak, to_pcm
from models.vae.engine import POSTERIOR_SEED, VaeEngine
from models.vae.oobleck import Oobleck

Sound = NDArray[np.float32]
WAV = Encoding(AudioFormat.WAV)


class Kept(dict[str, bytes]):
    """Files in memory, and the sounds that can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.sounds: dict[str, Sound] = {}

    def save(self, extension: str, content: bytes) -> str:
        ref = f"{len(self)}.{extension}"
        self[ref] = content
        return ref

    def read(self, ref: str) -> Sound:
        return self.sounds[ref]

    def samples(self, ref: str) -> Sound:
        samples: Sound = soundfile.read(io.BytesIO(self[ref]), dtype="float32")[0]
        return samples


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def engine(tiny: Path, kept: Kept) -> Iterator[VaeEngine]:
    engine = VaeEngine(tiny / "vae", kept.save, torch.device("cpu"), encoders=1, read=kept.read)
    yield engine
    engine.close()


def latents(seconds: float, seed: int = 0) -> Latents:
    rng = np.random.default_rng(seed)
    return Latents(rng.standard_normal((frames_of(seconds), 64), dtype=np.float32))


def sound(seconds: float, seed: int = 0, peak: float = 0.5) -> Sound:
    rng = np.random.default_rng(seed)
    return (peak * rng.uniform(-1, 1, (round(seconds * SAMPLE_RATE), 2))).astype(np.float32)


@pytest.mark.parametrize("audio_format", list(AudioFormat))
async def test_latents_become_a_kept_file_of_their_length(
    engine: VaeEngine, kept: Kept, audio_format: AudioFormat, tmp_path: Path
) -> None:
    track = await engine.decode(latents(10), Encoding(audio_format))
    (tmp_path / track.ref).write_bytes(kept[track.ref])
    samples = np.concatenate(list(blocks(tmp_path / track.ref, AudioLimits())))
    assert track.seconds == 10.0
    assert abs(len(samples) / 48_000 - 10) < 0.1
    assert track.size == len(kept[track.ref])
    assert track.ref.endswith(f".{audio_format}")


async def test_a_song_is_written_at_the_rates_asked_for(engine: VaeEngine, kept: Kept) -> None:
    track = await engine.decode(latents(10), Encoding(AudioFormat.MP3, 44_100, 320))
    file = soundfile.info(io.BytesIO(kept[track.ref]))
    assert (file.samplerate, round(file.duration, 3), track.seconds) == (44_100, 10.0, 10.0)
    assert track.size == pytest.approx(10 * 320_000 / 8, rel=0.02)


async def test_the_same_latents_are_the_same_file(engine: VaeEngine, kept: Kept) -> None:
    tracks = [await engine.decode(latents(10), WAV) for _ in range(2)]
    assert tracks[0].sha256 == tracks[1].sha256
    assert len(kept) == 2


async def test_what_is_not_finite_keeps_nothing(engine: VaeEngine, kept: Kept) -> None:
    broken = latents(10)
    broken.values[7, 3] = np.nan
    with pytest.raises(BadAudio, match="NaN"):
        await engine.decode(broken, WAV)
    assert kept == {}
    await engine.decode(latents(10), WAV)  # and the next song is made


def test_silence_is_refused() -> None:
    with pytest.raises(BadAudio, match="silence"):
        check_peak(1e-7)


@pytest.mark.parametrize("peak", [0.01, 0.5, 3.0])
def test_the_loudest_sample_is_at_minus_one_decibel(peak: float) -> None:
    pcm = to_pcm(torch.linspace(-peak, peak / 2, 1000).expand(2, -1), peak)
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


async def test_encoding_in_tiles_is_diffusers_encoding_in_one_piece(tiny: Path, kept: Kept) -> None:
    vae = AutoencoderOobleck(**VAE_CONFIG)
    stored = load_file(tiny / "vae" / "diffusion_pytorch_model.safetensors")
    vae.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    engine = VaeEngine(tiny / "vae", kept.save, torch.device("cpu"), encoders=1, read=kept.read, tile_frames=24)
    kept.sounds["a"] = sound(0.81)  # 20 frames and a quarter: two tiles

    with torch.inference_mode():
        posterior = vae.encode(torch.from_numpy(kept.sounds["a"].T)[None]).latent_dist
    noise = torch.randn((20, 64), generator=torch.Generator().manual_seed(POSTERIOR_SEED))
    wanted = posterior.mean[0].T + posterior.std[0].T * noise
    seen = await engine.encode("a")
    engine.close()

    torch.testing.assert_close(torch.from_numpy(seen.values), wanted, rtol=0, atol=1e-5)


async def test_the_same_audio_is_the_same_latents(engine: VaeEngine, kept: Kept) -> None:
    kept.sounds["a"] = sound(0.2)
    first, again = await engine.encode("a"), await engine.encode("a")
    assert first.values.shape == (5, 64)
    assert first.values.dtype == np.float32
    assert first.samples == 9600
    assert np.array_equal(first.values, again.values)


async def test_a_source_is_lengthened_by_silence_where_the_window_sticks_out(engine: VaeEngine, kept: Kept) -> None:
    kept.sounds["a"] = sound(0.2)
    kept.sounds["b"] = np.pad(kept.sounds["a"], ((2400, 4800), (0, 0)))
    source = await engine.encode("a", Window(-0.05, 0.3))
    assert source.samples == 9600
    assert np.array_equal(source.values, (await engine.encode("b")).values)


async def test_a_reference_is_heard_for_thirty_seconds_however_long_it_is(
    tiny: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[torch.Tensor] = []  # in place of thirty seconds of encoding: forty on a CPU

    def hear(self: Oobleck, samples: torch.Tensor) -> torch.Tensor:
        heard.append(samples)
        return torch.zeros(128, samples.shape[1] // 1920)

    monkeypatch.setattr(Oobleck, "encode", hear)
    engine = VaeEngine(tiny / "vae", kept.save, torch.device("cpu"), encoders=1, read=kept.read, tile_frames=800)
    kept.sounds["long"] = sound(45.0)
    reference = await engine.encode_reference("long")
    await engine.encode_reference("long")
    engine.close()
    assert reference.values.shape == (750, 64)
    assert heard[0].shape == (2, 30 * SAMPLE_RATE)
    assert torch.equal(heard[0], heard[1])


@pytest.mark.parametrize(
    ("samples", "window", "error", "said"),
    [
        (np.zeros((48_000, 2), np.float32), WHOLE, InvalidAudio, "silent"),
        (np.full((48_000, 2), np.nan, np.float32), WHOLE, InvalidAudio, "NaN"),
        (np.ones((48_000, 1), np.float32), WHOLE, InvalidAudio, "shape"),
        (np.ones((1919, 2), np.float32), WHOLE, InvalidAudio, "1919 samples"),
        (np.ones((48_000, 2), np.float32), Window(0.5, 601.0), TooLong, "601 s"),
        (np.ones((48_000, 2), np.float32), Window(1.0), InvalidRequest, "ends at 1 s"),
    ],
)
async def test_a_source_no_song_can_be_made_from_is_refused(
    engine: VaeEngine, kept: Kept, samples: Sound, window: Window, error: type[Exception], said: str
) -> None:
    kept.sounds["a"] = samples
    with pytest.raises(error, match=said):
        await engine.encode("a", window)


async def test_a_vae_that_reads_nothing_says_so(tiny: Path, kept: Kept) -> None:
    engine = VaeEngine(tiny / "vae", kept.save, torch.device("cpu"), encoders=1)
    with pytest.raises(InvalidAudio, match="no audio is called 'a'"):
        await engine.encode("a")
    engine.close()


async def test_outside_the_window_a_song_is_its_source_to_the_sample(engine: VaeEngine, kept: Kept) -> None:
    kept.sounds["a"] = sound(10.0, peak=0.8913)
    kept.sounds["a"][100] = 0.8913  # so that the peak, and with it the volume, is the source's
    plain = await engine.decode(latents(10), WAV)
    song = await engine.decode(latents(10), WAV, Splice("a", Window(2.0, 4.0), crossfade_s=0.05))

    samples, source, made = kept.samples(song.ref), kept.sounds["a"], kept.samples(plain.ref)

    for kept_part in (slice(0, 96_000 - 2400), slice(192_000 + 2400, None)):
        np.testing.assert_allclose(samples[kept_part], source[kept_part], rtol=0, atol=1e-4)  # 16 bit
    inside = slice(96_000, 192_000)
    assert abs(np.corrcoef(samples[inside].ravel(), made[inside].ravel())[0, 1]) > 0.999
    ramp = samples[96_000 - 1200]  # half of each, give or take the volume the made part was scaled to
    assert np.all(np.abs(ramp - source[96_000 - 1200] / 2) < 0.5)


async def test_a_window_beyond_the_beginning_moves_the_source_back(engine: VaeEngine, kept: Kept) -> None:
    kept.sounds["a"] = sound(9.0, peak=0.8913)
    kept.sounds["a"][300_000] = 0.8913
    song = await engine.decode(latents(10), WAV, Splice("a", Window(-1.0, 2.0), crossfade_s=0.0))
    np.testing.assert_allclose(kept.samples(song.ref)[144_000:], kept.sounds["a"][96_000:], rtol=0, atol=1e-4)
