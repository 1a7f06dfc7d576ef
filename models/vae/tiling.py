"""Cuts a song into windows whose decoded or encoded middles, laid side by side, equal the song treated in one piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# A latent reaches 9 frames to either side (measured on the real kernel structure), so this is exact.
OVERLAP = 10
# What a latent is encoded from reaches 12,165 samples before its first and after its last: less than 7 frames.
ENCODE_OVERLAP = 7
WINDOW = 512


@dataclass(frozen=True, slots=True)
class Tile:
    """Frames `first` to `last` are worked on, and `keep_first` to `keep_last` of them kept; ends are not included."""

    first: int
    last: int
    keep_first: int
    keep_last: int


def tiles(frames: int, window: int = WINDOW, overlap: int = OVERLAP) -> Iterator[Tile]:
    """Windows over a song of `frames` latents. Its true edges are never padded: what lies beyond them is not zero."""
    if window <= 2 * overlap:
        raise ValueError(f"a window of {window} frames leaves nothing between overlaps of {overlap}")
    stride = window - 2 * overlap
    for keep_first in range(0, frames, stride):
        keep_last = min(keep_first + stride, frames)
        yield Tile(max(0, keep_first - overlap), min(frames, keep_last + overlap), keep_first, keep_last)
