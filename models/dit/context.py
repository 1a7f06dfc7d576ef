"""What a song is painted on: the source beside the noise, the mask that says where to paint, and what is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.dit.encoders import AudioCodes
from models.dit.stepping import Kept
from models.music import Task

# Three ages of the reference differ in what the mask says; see docs/decisions/0012.
MASK_EVERYWHERE = {"auto": 2.0, "auto_legacy": 1.0}

Frames = tuple[int, int]  # the first, and the one after the last


@dataclass(frozen=True, slots=True)
class Canvas:
    """`source` and `start` are (frame, channel) fp32. `start`: what a song may begin from instead of noise alone."""

    source: Tensor
    start: Tensor | None = None
    kept: Kept | None = None


def canvas_of(task: Task, source: Tensor, window: Frames, silence: Tensor, codes: AudioCodes) -> Canvas:
    """For a song made from the latents of a source, with silence of the same length."""
    first, last = window
    kept = None if window == (0, len(source)) else Kept(source, first, last)
    if task is Task.COVER:
        return Canvas(codes.heard_again(source, silence), start=source)
    if task is Task.REPAINT:
        return Canvas(torch.cat([source[:first], silence[first:last], source[last:]]), kept=kept)
    return Canvas(source, start=source, kept=kept)


def canvas_of_codes(hints: Tensor, silence: Tensor) -> Canvas:
    """For a song made from the latents of audio codes, ended or continued by silence at the song's length."""
    hints = hints[: len(silence)]
    hints = torch.cat([hints, silence[: len(silence) - len(hints)]])
    return Canvas(hints, start=hints)


def chunk_mask(frames: int, window: Frames, mode: str) -> Tensor:
    """(frame, 1): 1 where the song is to be made, 0 where it is kept, or one value everywhere."""
    everywhere = MASK_EVERYWHERE.get(mode)
    if everywhere is not None:
        return torch.full((frames, 1), everywhere)
    mask = torch.zeros(frames, 1)
    mask[window[0] : window[1]] = 1.0
    return mask


def context_of(source: Tensor, mask: Tensor) -> Tensor:
    """(frame, 2 x channel), as the DiT takes it."""
    return torch.cat([source, mask.to(source).expand_as(source)], dim=-1)
