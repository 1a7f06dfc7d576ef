"""Latents to finished files and sound to latents, on one device thread, with readers and encoders beside it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from models import audio
from models.editing import WHOLE, Splice, Window
from models.errors import BadAudio, EngineError, InvalidAudio
from models.music import (
    CHANNELS,
    LATENT_CHANNELS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    SILENCE,
    Encoding,
    Latents,
    Source,
    Track,
)
from models.vae.samples import checked, excerpts, lengthened, spliced
from models.vae.tiling import ENCODE_OVERLAP, WINDOW, Tile, tiles
from models.weights import load_strictly, read_vae

PEAK = 0.8913  # -1 dBFS, as the reference leaves every song
STUCK_AFTER_S = 300.0
POSTERIOR_SEED = 0  # the same audio is the same latents, for every song of every job
LEAST_STD = 1e-4  # of the posterior, as in diffusers' own

Keep = Callable[[str, bytes], str]  # (file extension, content) -> the ref it is kept under
Read = Callable[[str], NDArray[np.float32]]  # ref -> (sample, channel), stereo at 48 kHz; raises InvalidAudio


def read_nothing(ref: str) -> NDArray[np.float32]:
    raise InvalidAudio(f"no audio is called {ref!r}: this VAE was given nothing to read it with")


class VaeEngine:
    """Oobleck, after Stable Audio (arXiv 2407.14358). Weight norm is folded; fp32 on a CPU, bf16 on a GPU."""

    def __init__(
        self,
        folder: Path,
        keep: Keep,
        device: torch.device,
        encoders: int,
        *,
        read: Read = read_nothing,
        tile_frames: int = WINDOW,
    ) -> None:
        """`tile_frames` bounds the memory of the device: no more is decoded or encoded at once."""
        self._device = device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._vae: AutoencoderOobleck = nn.Module.to(_load(folder), device, self._dtype)
        self._keep = keep
        self._read = read
        self._tile_frames = tile_frames
        self._thread = ThreadPoolExecutor(1, "vae-device")
        self._encoders = ThreadPoolExecutor(encoders, "vae-encode")
        self._busy_since: float | None = None

    async def encode(self, audio: str, window: Window = WHOLE) -> Source:
        """The latents of a source, lengthened so that it holds the window. Raises InvalidAudio, TooLong."""
        loop = asyncio.get_running_loop()
        samples, own = await loop.run_in_executor(self._encoders, self._read_source, audio, window)
        return Source(await loop.run_in_executor(self._thread, self._encode, samples), own)

    async def encode_reference(self, audio: str) -> Latents:
        """The latents of thirty seconds of an audio, to sound like it. Raises InvalidAudio."""
        loop = asyncio.get_running_loop()
        samples = await loop.run_in_executor(self._encoders, self._read_reference, audio)
        return Latents(await loop.run_in_executor(self._thread, self._encode, samples))

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        """Raises BadAudio for what is not finite or is silent; keeps nothing then."""
        loop = asyncio.get_running_loop()
        samples = await loop.run_in_executor(self._thread, self._decode, latents.values)
        return await loop.run_in_executor(self._encoders, self._finish, samples, encoding, splice)

    def warm_up(self) -> None:
        """Decodes two tiles' worth of zeros, the shape that every longer song is cut into."""
        self._thread.submit(self._decode, np.zeros((600, LATENT_CHANNELS), np.float32)).result()

    def check_health(self) -> None:
        """Raises EngineError when the device thread has been on one tile for too long."""
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > STUCK_AFTER_S:
            raise EngineError(f"the VAE has been on one tile for more than {STUCK_AFTER_S:.0f} s")

    def close(self) -> None:
        self._thread.shutdown()
        self._encoders.shutdown()

    @torch.inference_mode()
    def decode_samples(self, latents: Tensor) -> Tensor:
        """(frame, channel) to (channel, sample) on the CPU in fp32, in tiles: device memory does not grow."""
        frames = len(latents)
        samples = torch.empty(CHANNELS, frames * SAMPLES_PER_FRAME)
        whole = latents.T[None].to(self._device, self._dtype)  # (1, channel, frame)
        for tile in self._counted(tiles(frames, self._tile_frames)):
            decoded = self._vae.decode(whole[..., tile.first : tile.last]).sample[0]
            start = (tile.keep_first - tile.first) * SAMPLES_PER_FRAME
            kept = (tile.keep_last - tile.keep_first) * SAMPLES_PER_FRAME
            at = tile.keep_first * SAMPLES_PER_FRAME
            samples[:, at : at + kept] = decoded[:, start : start + kept]
        return samples

    @torch.inference_mode()
    def encode_samples(self, samples: Tensor, seed: int) -> Tensor:
        """(channel, sample) to (frame, channel) on the CPU in fp32, in tiles: one draw from what the encoder finds.

        The noise is drawn for the whole length at once, so that tiles have no part in it. A last frame that is not
        whole is heard, but gives no latent.
        """
        frames = samples.shape[1] // SAMPLES_PER_FRAME
        found = torch.empty(2 * LATENT_CHANNELS, frames)
        for tile in self._counted(tiles(frames, self._tile_frames, ENCODE_OVERLAP)):
            end = None if tile.last == frames else tile.last * SAMPLES_PER_FRAME
            heard = samples[None, :, tile.first * SAMPLES_PER_FRAME : end].to(self._device, self._dtype)
            encoded = self._vae.encode(heard).latent_dist.parameters[0]  # (mean and scale, frame)
            kept = slice(tile.keep_first - tile.first, tile.keep_last - tile.first)
            found[:, tile.keep_first : tile.keep_last] = encoded[:, kept]
        mean, scale = found.T.chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=torch.Generator("cpu").manual_seed(seed))
        return mean + (functional.softplus(scale) + LEAST_STD) * noise

    def _read_source(self, ref: str, window: Window) -> tuple[Tensor, int]:
        samples = checked(self._read(ref))
        own = samples.shape[1]
        return lengthened(samples, window.on(own)), own

    def _read_reference(self, ref: str) -> Tensor:
        return excerpts(checked(self._read(ref)), torch.Generator("cpu").manual_seed(POSTERIOR_SEED))

    def _encode(self, samples: Tensor) -> NDArray[np.float32]:
        with self._busy():
            latents: NDArray[np.float32] = self.encode_samples(samples, POSTERIOR_SEED).numpy()
        return latents

    def _decode(self, latents: NDArray[np.float32]) -> Tensor:
        with self._busy():
            return self.decode_samples(torch.tensor(latents))

    def _counted(self, tiles: Iterable[Tile]) -> Iterator[Tile]:
        """A long song takes its time, even minutes on a CPU; what tells a stuck device is one tile."""
        for tile in tiles:
            if self._busy_since is not None:
                self._busy_since = time.monotonic()
            yield tile

    @contextmanager
    def _busy(self) -> Iterator[None]:
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def _finish(self, samples: Tensor, encoding: Encoding, splice: Splice | None) -> Track:
        check_sound(samples)
        if splice is not None:
            samples = self._spliced(samples, splice)
        content = audio.encode(to_pcm(samples), encoding)
        return Track(
            ref=self._keep(encoding.audio_format.value, content),
            audio_format=encoding.audio_format,
            seconds=samples.shape[1] / SAMPLE_RATE,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def _spliced(self, samples: Tensor, splice: Splice) -> Tensor:
        source = checked(self._read(splice.audio))
        span = splice.window.on(source.shape[1])
        return spliced(samples, lengthened(source, span), span, int(splice.crossfade_s * SAMPLE_RATE))


def check_sound(samples: Tensor) -> None:
    """Raises BadAudio for NaN, infinity and silence."""
    if not bool(torch.isfinite(samples).all()):
        raise BadAudio("NaN or infinity came out of the VAE")
    peak = float(samples.abs().max())
    if peak < SILENCE:
        raise BadAudio(f"silence came out of the VAE (peak {peak:.1e})")


def to_pcm(samples: Tensor) -> audio.Pcm:
    """(channel, sample), not silent, to 16 bit with its peak at -1 dBFS."""
    pcm: audio.Pcm = (samples.T * (PEAK * 32767 / float(samples.abs().max()))).round().to(torch.int16).numpy()
    return pcm


def _load(folder: Path) -> AutoencoderOobleck:
    weights = read_vae(folder)
    vae = AutoencoderOobleck.from_config(weights.config)
    rate, hop = vae.config.sampling_rate, vae.hop_length
    if (rate, hop) != (SAMPLE_RATE, SAMPLES_PER_FRAME):
        raise EngineError(
            f"VAE {folder} works at {rate} Hz and {hop} samples a frame, not {SAMPLE_RATE} and {SAMPLES_PER_FRAME}"
        )
    load_strictly(vae, {name: tensor.float() for name, tensor in weights.tensors.items()}, f"VAE {folder}")
    for module in vae.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    return vae.eval().requires_grad_(False)
