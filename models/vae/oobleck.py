"""The VAE's network on its device: Oobleck, after Stable Audio (arXiv 2407.14358), with weight norm folded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

from models.errors import EngineError
from models.music import SAMPLE_RATE, SAMPLES_PER_FRAME
from models.weights import VaeWeights, load_strictly


class Oobleck:
    """fp32 on a CPU, bf16 on a GPU. Not for two threads at once."""

    def __init__(self, weights: VaeWeights, device: torch.device) -> None:
        """Raises CheckpointError, and EngineError for a VAE of another sample rate or hop."""
        self.device = device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self._model: AutoencoderOobleck = nn.Module.to(_build(weights), device, self.dtype)

    @property
    def model(self) -> AutoencoderOobleck:
        return self._model

    @torch.inference_mode()
    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        """Of one length, each (frame, channel), to (tile, channel, sample) on the device."""
        batch = torch.stack([own.T for own in latents]).to(self.device, self.dtype)
        samples: Tensor = self._model.decode(batch).sample
        return samples

    @torch.inference_mode()
    def encode(self, samples: Tensor) -> Tensor:
        """(channel, sample) to (mean and scale, frame) on the device."""
        found: Tensor = self._model.encode(samples[None].to(self.device, self.dtype)).latent_dist.parameters[0]
        return found


def _build(weights: VaeWeights) -> AutoencoderOobleck:
    vae = AutoencoderOobleck.from_config(weights.config)
    rate, hop = vae.config.sampling_rate, vae.hop_length
    if (rate, hop) != (SAMPLE_RATE, SAMPLES_PER_FRAME):
        raise EngineError(
            f"this VAE works at {rate} Hz and {hop} samples a frame, not {SAMPLE_RATE} and {SAMPLES_PER_FRAME}"
        )
    load_strictly(vae, {name: tensor.float() for name, tensor in weights.tensors.items()}, "VAE")
    for module in vae.modules():
        if hasattr(module, "weight_g"):
            torch.nn.utils.remove_weight_norm(module)
    return vae.eval().requires_grad_(False)
