"""What is done to sound on its way into the VAE and out of it. Pure: (channel, sample) fp32 on the CPU at 48 kHz."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.editing import Span, weights
from models.errors import InvalidAudio
from models.music import CHANNELS, SAMPLE_RATE, SILENCE

PIECE = 10 * SAMPLE_RATE
REFERENCE = 3 * PIECE


def checked(samples: NDArray[np.float32]) -> Tensor:
    """What was read, (sample, channel), as the VAE takes it. Raises InvalidAudio for what no song can be made from."""
    if samples.ndim != 2 or samples.shape[1] != CHANNELS:
        raise InvalidAudio(f"audio of shape {samples.shape}, not (samples, {CHANNELS})")
    sound = torch.from_numpy(np.ascontiguousarray(samples.T, dtype=np.float32))
    if not bool(torch.isfinite(sound).all()):
        raise InvalidAudio("the audio holds NaN or infinity")
    if sound.numel() == 0 or float(sound.abs().max()) <= SILENCE:
        raise InvalidAudio("the audio is silent")
    return sound.clamp(-1.0, 1.0)


def lengthened(samples: Tensor, span: Span) -> Tensor:
    """With silence at its ends, so that the window lies inside."""
    return functional.pad(samples, (span.before, span.after))


def excerpts(samples: Tensor, generator: torch.Generator) -> Tensor:
    """Thirty seconds to tell a sound by: ten from each third, chosen by chance; what is shorter is repeated first."""
    repeated = samples.repeat(1, -(-REFERENCE // samples.shape[1]))
    total = repeated.shape[1]
    third = total // 3
    bounds = ((0, third), (third, 2 * third), (2 * third, total))
    starts = [int(torch.randint(first, last - PIECE + 1, (1,), generator=generator)) for first, last in bounds]
    return torch.cat([repeated[:, start : start + PIECE] for start in starts], dim=1)


def spliced(made: Tensor, source: Tensor, span: Span, crossfade: int) -> Tensor:
    """`made` inside the window, `source` outside it, with ramps of `crossfade` samples just outside its edges.

    `source` is lengthened already and at least as long; `made`, where louder than full scale, is scaled down to it.
    """
    total = made.shape[1]
    ours = torch.from_numpy(weights(total, span.first, span.last, crossfade))
    return ours * (made / max(1.0, float(made.abs().max()))) + (1 - ours) * source[:, :total]
