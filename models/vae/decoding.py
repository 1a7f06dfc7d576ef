"""Songs on their way from latents to samples, tile by tile; tiles of several songs share a forward."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import takewhile

import torch
from torch import Tensor

from models.audio import Pcm
from models.batching import run_in_halves
from models.errors import AceError, BadAudio, EngineError, OutOfMemory
from models.music import CHANNELS, SAMPLES_PER_FRAME, SILENCE
from models.vae.oobleck import Oobleck
from models.vae.tiling import Tile, tiles

PEAK = 0.8913  # -1 dBFS, as the reference leaves every song
BLOCK = 512 * SAMPLES_PER_FRAME  # samples that leave the device at once


class Decoding:
    """One song. `samples` (channel, sample) stay on the device until they are 16 bit: how loud all of it is to be is
    known only when its loudest sample is."""

    def __init__(self, latents: Tensor, window: int) -> None:
        """`latents` is (frame, channel)."""
        self.latents = latents
        self.waiting = deque(tiles(len(latents), window))
        self.error: AceError | None = None
        self.samples: Tensor | None = None
        self._left = len(self.waiting)
        self._peak: Tensor | None = None  # NaN where a sample is

    @property
    def is_over(self) -> bool:
        return self._left == 0 or self.error is not None

    def take(self, tile: Tile, decoded: Tensor) -> None:
        """`decoded` is (channel, sample), of all frames of the tile."""
        start = (tile.keep_first - tile.first) * SAMPLES_PER_FRAME
        kept = decoded[:, start : start + (tile.keep_last - tile.keep_first) * SAMPLES_PER_FRAME]
        peak = kept.abs().amax()
        if self.samples is None or self._peak is None:
            self.samples = decoded.new_empty(CHANNELS, len(self.latents) * SAMPLES_PER_FRAME)
            self._peak = peak
        self._peak = torch.maximum(self._peak, peak)
        at = tile.keep_first * SAMPLES_PER_FRAME
        self.samples[:, at : at + kept.shape[1]] = kept
        self._left -= 1

    def fail(self, error: AceError) -> None:
        """Gives its memory back as well."""
        self.error, self.samples = error, None
        self.waiting.clear()

    def sound(self) -> tuple[Tensor, float]:
        """The samples and their peak, once it is over. Raises what it failed with, or BadAudio."""
        if self.error is not None:
            raise self.error
        assert self.samples is not None, "not a tile has been decoded"
        assert self._peak is not None
        return self.samples, check_peak(float(self._peak))


def next_tiles(songs: Sequence[Decoding], most: int) -> list[tuple[Decoding, Tile]]:
    """The oldest song's next tile, and as many of the same length as are next in any song, taken out of them."""
    frames = next((song.waiting[0].frames for song in songs if song.waiting), 0)
    chosen: list[tuple[Decoding, Tile]] = []
    for song in songs:
        fitting = list(takewhile(lambda tile: tile.frames == frames, song.waiting))[: most - len(chosen)]
        chosen += [(song, tile) for tile in fitting]
        for _ in fitting:
            song.waiting.popleft()
    return chosen


def decode_next(songs: Sequence[Decoding], oobleck: Oobleck, most: int) -> None:
    """One forward over at most so many tiles, in halves where memory does not suffice; the oldest song first.

    What fails there fails the songs in it; it is raised as well where it is not for want of memory.
    """

    def decode(chosen: Sequence[tuple[Decoding, Tile]]) -> list[Tensor]:
        return list(oobleck.decode([song.latents[tile.first : tile.last] for song, tile in chosen]))

    chosen = next_tiles(songs, most)
    try:
        for (song, tile), decoded in zip(chosen, run_in_halves(decode, chosen, torch.OutOfMemoryError), strict=True):
            if decoded is None:
                song.fail(OutOfMemory(f"{tile.frames} latent frames do not fit on the VAE's device"))
            elif song.error is None:
                song.take(tile, decoded)
    except Exception as error:
        for song, _ in chosen:
            song.fail(EngineError(f"a song failed in the VAE: {error!r}"))
        raise


def check_peak(peak: float) -> float:
    """The peak, given back. Raises BadAudio for NaN, infinity and silence."""
    if not peak < float("inf"):
        raise BadAudio("NaN or infinity came out of the VAE")
    if peak < SILENCE:
        raise BadAudio(f"silence came out of the VAE (peak {peak:.1e})")
    return peak


def to_pcm(samples: Tensor, peak: float) -> Pcm:
    """(channel, sample) on any device to (sample, channel) in 16 bit, with a sample of that peak at -1 dBFS."""
    scaled = samples.T.float() * (PEAK * 32767 / peak)
    pcm: Pcm = scaled.round().to(torch.int16).cpu().numpy()
    return pcm


def blocks(samples: Tensor) -> Iterator[Tensor]:
    """In the order of time, each as long as leaves the device at once."""
    yield from torch.split(samples, BLOCK, dim=1)
