"""Whose tiles are decoded when, over a network that gives back what it was given; then with real tiny weights."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import audio
from models.errors import BadAudio, Cancelled, EngineError, OutOfMemory
from models.music import SAMPLES_PER_FRAME, AudioFormat, Encoding, Latents
from models.vae import decoding
from models.vae import engine as vae_engine
from models.vae.decoding import Decoding, decode_next, next_tiles
from models.vae.engine import VaeEngine
from models.vae.oobleck import Oobleck

pytestmark = pytest.mark.real

WINDOW = 40  # of which 20 or 30 frames are kept
CPU = torch.device("cpu")
WAIT_S = 20.0
WAV = Encoding(AudioFormat.WAV)


class Echo(Oobleck):
    """A frame becomes 1,920 samples of its first channel. No more than `most` tiles fit at once."""

    def __init__(self, most: int = 100, fault: Exception | None = None) -> None:
        self.most = most
        self.fault = fault
        self.batches: list[list[int]] = []  # the first frame's value of each tile

    def decode(self, latents: Sequence[Tensor]) -> Tensor:
        if self.fault is not None:
            raise self.fault
        if len(latents) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append([int(own[0, 0]) for own in latents])
        return torch.stack([own[:, 0].repeat_interleave(SAMPLES_PER_FRAME).expand(2, -1) for own in latents])


def song(frames: int, number: int = 0) -> Decoding:
    """Its frames are numbered, from 1000 times its own number, and half more so that none is silent."""
    return Decoding((torch.arange(frames) + 1000 * number + 0.5)[:, None].expand(-1, 64), WINDOW)


def decode_all(songs: Sequence[Decoding], network: Any, most: int) -> None:
    while any(not own.is_over for own in songs):
        decode_next([own for own in songs if not own.is_over], network, most)


@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_every_song_is_whole_whoever_shared_its_forwards(most: int) -> None:
    songs, network = [song(frames, number) for number, frames in enumerate((130, 7, 40, 90))], Echo()

    decode_all(songs, network, most)

    assert max(map(len, network.batches)) <= most
    for own in songs:
        samples, peak = own.sound()
        assert torch.equal(samples[1, ::SAMPLES_PER_FRAME], own.latents[:, 0])
        assert peak == own.latents.max()


def test_room_beside_the_oldest_song_is_for_tiles_of_the_same_length_of_others() -> None:
    songs, network = [song(130, 0), song(33, 1), song(100, 2)], Echo()

    decode_all(songs, network, most=6)

    assert network.batches == [[0, 20, 40, 60, 80, 2000], [100], [1000], [2020, 2040, 2060]]


def test_no_more_tiles_are_taken_than_asked_for_and_each_once() -> None:
    songs = [song(130, number) for number in range(3)]
    seen = []
    while chosen := next_tiles(songs, 2):
        assert len(chosen) <= 2
        seen += [(songs.index(own), tile.keep_first) for own, tile in chosen]

    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 18


def test_where_memory_does_not_suffice_fewer_are_decoded_at_once() -> None:
    songs, network = [song(130, 0), song(130, 1)], Echo(most=2)

    decode_all(songs, network, most=8)

    assert max(map(len, network.batches)) == 2
    for own in songs:
        assert own.sound()[0].shape == (2, 130 * SAMPLES_PER_FRAME)


def test_a_tile_that_does_not_fit_alone_fails_its_song() -> None:
    own = song(130)

    decode_all([own], Echo(most=0), most=4)

    with pytest.raises(OutOfMemory, match="40 latent frames"):
        own.sound()
    assert own.samples is None


def test_a_forward_that_fails_fails_all_songs_in_it_and_no_other() -> None:
    shared, other = [song(130, 0), song(130, 1)], song(7, 2)

    with pytest.raises(RuntimeError, match="a bug"):
        decode_next([*shared, other], Echo(fault=RuntimeError("a bug")), 8)

    for own in shared:
        with pytest.raises(EngineError, match="a bug"):
            own.sound()
    decode_all([other], Echo(), 8)
    assert other.sound()[1] == 2006.5


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN"), (float("inf"), "NaN"), (0.0, "silence")])
def test_what_nobody_can_hear_is_refused_wherever_it_is(value: float, said: str) -> None:
    own = song(130)
    own.latents = own.latents.clone() if said == "NaN" else torch.zeros_like(own.latents)
    own.latents[31] = value

    decode_all([own], Echo(), 2)

    with pytest.raises(BadAudio, match=said):
        own.sound()


class Kept(dict[str, bytes]):
    def save(self, extension: str, content: bytes) -> str:
        ref = f"{len(self)}.{extension}"
        self[ref] = content
        return ref


class Gate:
    """Lets one forward of the real network through for each permit, and remembers how many tiles each had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.permits = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)
        self.tiles: list[int] = []
        self.outputs: weakref.WeakSet[Tensor] = weakref.WeakSet()
        real = Oobleck.decode

        def decode(network: Oobleck, latents: Sequence[Tensor]) -> Tensor:
            self.tiles.append(len(latents))
            self.arrived.release()
            assert self.permits.acquire(timeout=WAIT_S)
            return real(network, latents)

        monkeypatch.setattr(Oobleck, "decode", decode)

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.arrived.acquire, timeout=WAIT_S)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def engine(tiny: Path, kept: Kept) -> Iterator[VaeEngine]:
    engine = VaeEngine(tiny / "vae", kept.save, CPU, encoders=2, tile_frames=WINDOW, tiles_at_once=4)
    yield engine
    engine.close()


def noise(frames: int, seed: int = 0) -> Latents:
    return Latents(np.random.default_rng(seed).standard_normal((frames, 64), dtype=np.float32))


async def test_songs_that_wait_together_are_decoded_together_and_sound_as_alone(
    tiny: Path, engine: VaeEngine, kept: Kept, gate: Gate
) -> None:
    songs = [noise(frames, seed) for seed, frames in enumerate((70, 55, 90))]
    alone = VaeEngine(tiny / "vae", kept.save, CPU, encoders=1, tile_frames=WINDOW)  # a tile at once
    gate.permits.release(100)
    refs = [(await alone.decode(own, WAV)).ref for own in songs]
    alone.close()
    assert set(gate.tiles) == {1}
    while gate.permits.acquire(blocking=False):
        pass
    gate.tiles.clear()

    first = asyncio.create_task(engine.decode(songs[0], WAV))
    await gate.wait()
    others = [asyncio.create_task(engine.decode(own, WAV)) for own in songs[1:]]
    await asyncio.sleep(0)
    gate.permits.release(100)
    together = [(await task).ref for task in (first, *others)]

    assert sum(gate.tiles) == 3 + 2 + 4
    assert len(gate.tiles) < 9
    for one, other in zip(together, refs, strict=True):
        gap = samples(kept[one]).astype(int) - samples(kept[other])
        assert np.abs(gap).max() <= 1  # of 16 bit: 1e-5 of the peak may round to the next


def samples(wav: bytes) -> audio.Pcm:
    return np.frombuffer(wav[44:], np.int16)


async def test_a_song_cancelled_between_tiles_is_decoded_no_further_and_keeps_nothing(
    engine: VaeEngine, kept: Kept, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: weakref.WeakSet[Decoding] = weakref.WeakSet()

    class Watched(Decoding):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.add(self)

    monkeypatch.setattr(vae_engine, "Decoding", Watched)
    long = asyncio.create_task(engine.decode(noise(15_000), WAV))
    await gate.wait()

    long.cancel()
    await asyncio.gather(long, return_exceptions=True)
    gate.permits.release(1)
    gate.permits.release(100)
    track = await engine.decode(noise(30), WAV)

    assert sum(gate.tiles) == 4 + 1
    assert list(kept) == [track.ref]
    del long
    gc.collect()
    assert len(made) == 0


async def test_a_song_withdrawn_while_it_is_encoded_keeps_nothing(
    engine: VaeEngine, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on, ended = threading.Event(), threading.Event(), threading.Event()
    errors: list[Exception] = []

    def encode(parts: Iterator[audio.Pcm], encoding: Encoding) -> bytes:
        begun.set()
        assert goes_on.wait(WAIT_S)
        try:
            return b"".join(part.tobytes() for part in parts)
        except Exception as error:
            errors.append(error)
            raise
        finally:
            ended.set()

    monkeypatch.setattr(audio, "encode_parts", encode)
    withdrawn = asyncio.create_task(engine.decode(noise(30), WAV))
    assert await asyncio.to_thread(begun.wait, WAIT_S)

    withdrawn.cancel()
    await asyncio.gather(withdrawn, return_exceptions=True)
    goes_on.set()
    assert await asyncio.to_thread(ended.wait, WAIT_S)

    assert [type(error) for error in errors] == [Cancelled]
    assert kept == {}


async def test_encoding_begins_before_the_last_part_has_left_the_device(
    engine: VaeEngine, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts leave one by one: the device is held until the encoder has taken the first."""
    first_taken = threading.Event()
    real = decoding.to_pcm
    left: list[int] = []

    def to_pcm(part: Tensor, peak: float) -> audio.Pcm:
        if left:
            assert first_taken.wait(WAIT_S)
        left.append(part.shape[1])
        return real(part, peak)

    def encode(parts: Iterator[audio.Pcm], encoding: Encoding) -> bytes:
        sizes = [len(next(parts))]
        first_taken.set()
        return bytes(len([*sizes, *map(len, parts)]))

    monkeypatch.setattr(vae_engine, "to_pcm", to_pcm)
    monkeypatch.setattr(audio, "encode_parts", encode)

    track = await engine.decode(noise(1100), WAV)

    assert track.size == 3
    assert sum(left) == 1100 * SAMPLES_PER_FRAME


async def test_a_cancelled_source_is_encoded_no_further(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, begun, goes_on = [], threading.Event(), threading.Event()

    def hear(network: Oobleck, part: Tensor) -> Tensor:
        heard.append(part.shape[1])
        begun.set()
        assert goes_on.wait(WAIT_S)
        return torch.zeros(128, part.shape[1] // SAMPLES_PER_FRAME)

    monkeypatch.setattr(Oobleck, "encode", hear)
    read = np.random.default_rng(0).uniform(-1, 1, (48_000 * 60, 2)).astype(np.float32)
    engine = VaeEngine(tiny / "vae", Kept().save, CPU, encoders=1, read=lambda ref: read)
    work = asyncio.create_task(engine.encode("a minute"))
    assert await asyncio.to_thread(begun.wait, WAIT_S)

    work.cancel()
    goes_on.set()
    await asyncio.gather(work, return_exceptions=True)
    engine.close()

    assert len(heard) == 1


async def test_a_lost_device_is_told(engine: VaeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(network: Oobleck, latents: Sequence[Tensor]) -> Tensor:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    monkeypatch.setattr(Oobleck, "decode", decode)

    with pytest.raises(EngineError, match="illegal memory access"):
        await engine.decode(noise(30), WAV)
    with pytest.raises(EngineError, match="lost"):
        engine.check_health()
