"""Latents to finished files and sound to latents, on one device thread, with readers and encoders beside it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models import audio
from models.editing import WHOLE, Splice, Window
from models.errors import Cancelled, EngineError, InvalidAudio, OutOfMemory
from models.music import (
    LATENT_CHANNELS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    AudioFormat,
    Latents,
    Source,
    Track,
)
from models.vae.decoding import Decoding, blocks, decode_next, to_pcm
from models.vae.oobleck import Oobleck
from models.vae.samples import checked, excerpts, lengthened, spliced
from models.vae.tiling import ENCODE_OVERLAP, WINDOW, Tile, tiles
from models.weights import read_vae

log = logging.getLogger(__name__)

STUCK_AFTER_S = 300.0
TILES_ON_A_GPU = 4
POSTERIOR_SEED = 0  # the same audio is the same latents, for every song of every job
LEAST_STD = 1e-4  # of the posterior, as in diffusers' own

P = ParamSpec("P")
T = TypeVar("T")
Keep = Callable[[str, bytes], str]  # (file extension, content) -> the ref it is kept under
Read = Callable[[str], NDArray[np.float32]]  # ref -> (sample, channel), stereo at 48 kHz; raises InvalidAudio


def read_nothing(ref: str) -> NDArray[np.float32]:
    raise InvalidAudio(f"no audio is called {ref!r}: this VAE was given nothing to read it with")


class VaeEngine:
    """All calls take turns on the device, a forward each, so that a cancelled one ends before its next. A turn is for
    the oldest song, with tiles of others where there is room. fp32 on a CPU, bf16 on a GPU."""

    def __init__(
        self,
        folder: Path,
        keep: Keep,
        device: torch.device,
        encoders: int,
        *,
        read: Read = read_nothing,
        tile_frames: int = WINDOW,
        tiles_at_once: int | None = None,
    ) -> None:
        """`tile_frames` times `tiles_at_once` bounds the memory of the device. Unless said, a CPU decodes one tile at
        once, which makes a song the same to the bit in any company, and a GPU four."""
        self._oobleck = Oobleck(read_vae(folder), device)
        self._keep = keep
        self._read = read
        self._tile_frames = tile_frames
        self._tiles_at_once = tiles_at_once or (TILES_ON_A_GPU if device.type == "cuda" else 1)
        self._songs: list[Decoding] = []  # the oldest first
        self._changing = threading.Lock()  # guards the list
        self._thread = ThreadPoolExecutor(1, "vae-device")
        self._encoders = ThreadPoolExecutor(encoders, "vae-encode")
        self._busy_since: float | None = None
        self._lost: str | None = None  # the device, and how

    async def encode(self, audio: str, window: Window = WHOLE) -> Source:
        """The latents of a source, lengthened so that it holds the window. Raises InvalidAudio, TooLong."""
        samples, own = await self._beside(self._read_source, audio, window)
        return Source(await self._encoded(samples), own)

    async def encode_reference(self, audio: str) -> Latents:
        """The latents of thirty seconds of an audio, to sound like it. Raises InvalidAudio."""
        return Latents(await self._encoded(await self._beside(self._read_reference, audio)))

    async def decode(self, latents: Latents, audio_format: AudioFormat, splice: Splice | None = None) -> Track:
        """Raises BadAudio for what is not finite or is silent; keeps nothing then, nor once it is cancelled."""
        is_wanted = threading.Event()
        is_wanted.set()
        parts = await self._decoded(latents, splice)
        try:
            return await self._beside(self._finish, parts, audio_format, latents.seconds, is_wanted)
        finally:
            is_wanted.clear()

    def decode_samples(self, latents: Tensor) -> Tensor:
        """(frame, channel) to (channel, sample) on the CPU in fp32. Blocks."""
        song = Decoding(latents, self._tile_frames)
        while not song.is_over:
            self._on_device(decode_next, [song], self._oobleck, self._tiles_at_once).result()
        return self._on_device(_whole, song.sound()[0]).result()

    def warm_up(self) -> None:
        """Decodes a full batch of tiles and the beginning of another, of noise. Blocks."""
        self.decode_samples(torch.randn(self._tiles_at_once * self._tile_frames + 88, LATENT_CHANNELS))

    def check_health(self) -> None:
        """Raises EngineError when the device is lost or has been on one forward for too long."""
        if self._lost is not None:
            raise EngineError(f"the VAE's device is lost: {self._lost}")
        busy_since = self._busy_since
        if busy_since is not None and time.monotonic() - busy_since > STUCK_AFTER_S:
            raise EngineError(f"the VAE has been on one forward for more than {STUCK_AFTER_S:.0f} s")

    def close(self) -> None:
        self._thread.shutdown()
        self._encoders.shutdown()

    async def _decoded(self, latents: Latents, splice: Splice | None) -> Iterator[audio.Pcm]:
        """A song in parts, which leave the device while those before them are being encoded. Its last tile has to be
        decoded before its first part can leave, since the loudest of all samples says how loud each is to be."""
        song = Decoding(torch.tensor(latents.values), self._tile_frames)
        with self._in_line(song):
            while not song.is_over:
                await asyncio.wrap_future(self._on_device(self._turn))
            samples, peak = await asyncio.wrap_future(self._on_device(song.sound))
        if splice is not None:
            return self._spliced(self._on_device(_whole, samples), splice)
        return _results(self._on_device(to_pcm, part, peak) for part in blocks(samples))

    @contextmanager
    def _in_line(self, song: Decoding) -> Iterator[None]:
        with self._changing:
            self._songs.append(song)
        try:
            yield
        finally:
            with self._changing:
                self._songs.remove(song)

    def _turn(self) -> None:
        """What fails is told to the songs it was for, not to the one whose turn it was."""
        with self._changing:
            songs = tuple(self._songs)
        try:
            decode_next(songs, self._oobleck, self._tiles_at_once)
        except Exception as error:
            log.exception("a forward failed in the VAE")
            self._note_loss(error)

    async def _encoded(self, samples: Tensor) -> NDArray[np.float32]:
        """(channel, sample) to (frame, channel): one draw from what the encoder finds.

        The noise is drawn for the whole length at once, so that tiles have no part in it. A last frame that is not
        whole is heard, but gives no latent.
        """
        frames = samples.shape[1] // SAMPLES_PER_FRAME
        found = torch.empty(2 * LATENT_CHANNELS, frames)
        for tile in tiles(frames, self._tile_frames, ENCODE_OVERLAP):
            await asyncio.wrap_future(self._on_device(self._encode, samples, tile, found))
        return await self._beside(_drawn, found)

    def _encode(self, samples: Tensor, tile: Tile, found: Tensor) -> None:
        """One tile, into its place of `found` (mean and scale, frame)."""
        end = None if tile.last == found.shape[1] else tile.last * SAMPLES_PER_FRAME
        try:
            encoded = self._oobleck.encode(samples[:, tile.first * SAMPLES_PER_FRAME : end])
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{tile.frames} latent frames do not fit on the VAE's device") from error
        except Exception as error:
            self._note_loss(error)
            raise
        found[:, tile.keep_first : tile.keep_last] = encoded[:, tile.keep_first - tile.first :][
            :, : tile.keep_last - tile.keep_first
        ]

    def _note_loss(self, error: Exception) -> None:
        """After an error of the device itself nothing in this process can use it again."""
        if isinstance(error, torch.AcceleratorError):
            self._lost = repr(error)

    async def _beside(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In a thread that reads and encodes, not on the device's."""
        return await asyncio.wrap_future(self._encoders.submit(call, *args, **kwargs))

    def _on_device(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        def run() -> T:
            self._busy_since = time.monotonic()
            try:
                return call(*args, **kwargs)
            finally:
                self._busy_since = None

        return self._thread.submit(run)

    def _read_source(self, ref: str, window: Window) -> tuple[Tensor, int]:
        samples = checked(self._read(ref))
        own = samples.shape[1]
        return lengthened(samples, window.on(own)), own

    def _read_reference(self, ref: str) -> Tensor:
        return excerpts(checked(self._read(ref)), torch.Generator("cpu").manual_seed(POSTERIOR_SEED))

    def _finish(
        self, parts: Iterator[audio.Pcm], audio_format: AudioFormat, seconds: float, is_wanted: threading.Event
    ) -> Track:
        content = audio.encode_parts(_while_wanted(parts, is_wanted), audio_format)
        return Track(
            ref=self._keep(audio_format.value, content),
            audio_format=audio_format,
            seconds=seconds,
            size=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def _spliced(self, made: Future[Tensor], splice: Splice) -> Iterator[audio.Pcm]:
        source = checked(self._read(splice.audio))
        span = splice.window.on(source.shape[1])
        song = spliced(made.result(), lengthened(source, span), span, int(splice.crossfade_s * SAMPLE_RATE))
        yield to_pcm(song, float(song.abs().max()))


def _whole(samples: Tensor) -> Tensor:
    return samples.float().cpu()


def _results(futures: Iterator[Future[T]]) -> Iterator[T]:
    """Each asked for now, waited for when its turn comes, and forgotten then."""
    left = deque(futures)
    return (left.popleft().result() for _ in range(len(left)))


def _while_wanted(parts: Iterator[T], is_wanted: threading.Event) -> Iterator[T]:
    for part in parts:
        yield part
        if not is_wanted.is_set():
            raise Cancelled("the song was withdrawn while it was being encoded")


def _drawn(found: Tensor) -> NDArray[np.float32]:
    """(mean and scale, frame) to (frame, channel), by POSTERIOR_SEED."""
    mean, scale = found.T.chunk(2, dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator("cpu").manual_seed(POSTERIOR_SEED))
    drawn: NDArray[np.float32] = (mean + (functional.softplus(scale) + LEAST_STD) * noise).numpy()
    return drawn
