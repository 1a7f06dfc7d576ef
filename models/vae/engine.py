"""Latents to finished files and sound to latents, on one device thread, with encoders beside it."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

from models import audio
from models.errors import BadAudio, EngineError
from models.music import CHANNELS, LATENT_CHANNELS, SAMPLE_RATE, SAMPLES_PER_FRAME, AudioFormat, Latents, Track
from models.vae.tiling import tiles
from models.weights import load_strictly, read_vae

PEAK = 0.8913  # -1 dBFS, as the reference leaves every song
SILENCE = 1e-6
STUCK_AFTER_S = 300.0

Keep = Callable[[str, bytes], str]  # (file extension, content) -> the ref it is kept under


class VaeEngine:
    """Oobleck, after Stable Audio (arXiv 2407.14358). Weight norm is folded; fp32 on a CPU, bf16 on a GPU."""

    def __init__(self, folder: Path, keep: Keep, device: torch.device, encoders: int) -> None:
        self._device = device
        self._dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._vae: AutoencoderOobleck = nn.Module.to(_load(folder), device, self._dtype)
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "vae-device")
        self._encoders = ThreadPoolExecutor(encoders, "vae-encode")
        self._busy_since: float | None = None

    async def decode(self, latents: Latents, audio_format: AudioFormat) -> Track:
        """Raises BadAudio for what is not finite or is silent; keeps nothing then."""
        loop = asyncio.get_running_loop()
        samples = await loop.run_in_executor(self._thread, self._decode, latents.values)
        return await loop.run_in_executor(self._encoders, self._finish, samples, audio_format)

    def warm_up(self) -> None:
        """Decodes two tiles' worth of zeros, the shape that every longer song is cut into."""
        self._thread.submit(self._decode, np.zeros((600, LATENT_CHANNELS), np.float32)).result()

    def check_health(self) -> None:
        """Raises EngineError when the device thread has been on one song for too long."""
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > STUCK_AFTER_S:
            raise EngineError(f"the VAE has decoded one song for more than {STUCK_AFTER_S:.0f} s")

    def close(self) -> None:
        self._thread.shutdown()
        self._encoders.shutdown()

    @torch.inference_mode()
    def decode_samples(self, latents: Tensor) -> Tensor:
        """(frame, channel) to (channel, sample) on the CPU in fp32, in tiles: device memory does not grow."""
        frames = len(latents)
        samples = torch.empty(CHANNELS, frames * SAMPLES_PER_FRAME)
        whole = latents.T[None].to(self._device, self._dtype)  # (1, channel, frame)
        for tile in tiles(frames):
            decoded = self._vae.decode(whole[..., tile.first : tile.last]).sample[0]
            start = (tile.keep_first - tile.first) * SAMPLES_PER_FRAME
            kept = (tile.keep_last - tile.keep_first) * SAMPLES_PER_FRAME
            at = tile.keep_first * SAMPLES_PER_FRAME
            samples[:, at : at + kept] = decoded[:, start : start + kept]
        return samples

    def _decode(self, latents: np.ndarray[Any, np.dtype[np.float32]]) -> Tensor:
        self._busy_since = time.monotonic()
        try:
            return self.decode_samples(torch.tensor(latents))
        finally:
            self._busy_since = None

    def _finish(self, samples: Tensor, audio_format: AudioFormat) -> Track:
        content = audio.encode(to_pcm(samples), audio_format)
        return Track(
            ref=self._keep(audio_format.value, content),
            audio_format=audio_format,
            seconds=samples.shape[1] / SAMPLE_RATE,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )


def to_pcm(samples: Tensor) -> audio.Pcm:
    """(channel, sample) to 16 bit, its peak at -1 dBFS. Raises BadAudio for NaN, infinity and silence."""
    if not bool(torch.isfinite(samples).all()):
        raise BadAudio("NaN or infinity came out of the VAE")
    peak = float(samples.abs().max())
    if peak < SILENCE:
        raise BadAudio(f"silence came out of the VAE (peak {peak:.1e})")
    pcm: audio.Pcm = (samples.T * (PEAK * 32767 / peak)).round().to(torch.int16).numpy()
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
