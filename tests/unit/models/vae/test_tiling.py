import pytest
import torch
from diffusers import AutoencoderOobleck
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.music import SAMPLES_PER_FRAME
from models.vae.tiling import ENCODE_OVERLAP, OVERLAP, tiles

REACH = 9  # latent frames to either side that a sample depends on


@given(st.integers(1, 20_000), st.integers(2 * OVERLAP + 1, 1024))
def test_every_frame_is_kept_once_with_all_it_depends_on_decoded_beside_it(frames: int, window: int) -> None:
    kept = 0
    for tile in tiles(frames, window):
        assert tile.keep_first == kept
        kept = tile.keep_last
        assert tile.first <= max(0, tile.keep_first - REACH)
        assert tile.last >= min(frames, tile.keep_last + REACH)
        assert tile.last - tile.first <= window
    assert kept == frames


def test_little_is_decoded_twice() -> None:
    frames = 240 * 25
    decoded = sum(tile.last - tile.first for tile in tiles(frames))
    assert decoded / frames <= 1.05


def test_a_window_without_a_middle_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        list(tiles(100, 2 * OVERLAP))


@pytest.fixture(scope="module")
def encoder() -> torch.nn.Module:
    """The real encoder's kernels, strides and dilations at a narrow width, in fp64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4, 4, 6, 10],
            channel_multiples=[1, 1, 1, 1, 1],
            decoder_channels=2,
            decoder_input_channels=4,
        )
    encoder: torch.nn.Module = vae.encoder.double().eval().requires_grad_(False)
    return encoder


def in_tiles(encoder: torch.nn.Module, samples: Tensor, overlap: int) -> Tensor:
    frames = samples.shape[-1] // SAMPLES_PER_FRAME
    kept = []
    for tile in tiles(frames, window=22, overlap=overlap):
        end = None if tile.last == frames else tile.last * SAMPLES_PER_FRAME
        encoded = encoder(samples[..., tile.first * SAMPLES_PER_FRAME : end])
        kept.append(encoded[..., tile.keep_first - tile.first : tile.keep_last - tile.first])
    return torch.cat(kept, dim=-1)


def test_the_overlap_of_encoding_is_the_least_that_is_exact(encoder: torch.nn.Module) -> None:
    length = 17 * SAMPLES_PER_FRAME - 1  # 16 whole frames, and samples that the last of them hears as well
    samples = torch.rand(1, 2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    whole = encoder(samples)
    assert whole.shape[-1] == 16
    assert float((in_tiles(encoder, samples, ENCODE_OVERLAP) - whole).abs().max()) < 1e-13
    assert float((in_tiles(encoder, samples, ENCODE_OVERLAP - 1) - whole).abs().max()) > 1e-7
