"""Random company: whatever songs share a batch, join it and leave it in mid-run, each is the song it is alone.

`MIXES=200` in the environment makes as many mixes, of songs up to a minute long; fewer and shorter ones by default.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from models.batching import BatchLimits
from models.dit.engine import DitEngine
from models.dit.transformer import Row, Transformer
from models.errors import BadLatents
from models.music import Latents, Lora, Song, Source
from models.weights import read_dit
from tests.unit.models.dit.loras import peft
from tests.unit.models.dit.songs import distance, edited, noise, song, values

MIXES = int(os.environ.get("MIXES", "30"))
LONGEST_S = 12.0 if MIXES <= 30 else 60.0
NAMES = ("acestep-v15-turbo", "acestep-v15-base", "acestep-v15-xl-turbo")
CPU = torch.device("cpu")


@dataclass
class Solo:
    """An engine, and what each of a pool of songs is when it is alone in it."""

    engine: DitEngine
    songs: list[Song]
    alone: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    async def of(self, number: int) -> NDArray[np.float32]:
        if number not in self.alone:
            self.alone[number] = await values(self.engine, self.songs[number])
        return self.alone[number]


@pytest.fixture(scope="module")
def solos(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Solo]]:
    rng = np.random.default_rng(2025)
    adapters = tmp_path_factory.mktemp("adapters")
    for number in range(2):
        peft(adapters, f"lora{number}", seed=number)
    made = {}
    for name in NAMES:
        engine = DitEngine(tiny, name, BatchLimits(songs=6), CPU, packs_rows=True, adapters=adapters)
        made[name] = Solo(engine, [some_song(rng, name) for _ in range(max(8, MIXES // 3))])
    yield made
    for solo in made.values():
        solo.engine.close()


def some_song(rng: Generator, variant: str) -> Song:
    is_base = variant.endswith("base")
    tasks = ["text2music", "codes", "cover", "repaint"] + (["lego", "extract", "complete"] if is_base else [])
    task = str(rng.choice(tasks))
    fields = some_sampling(rng, is_base) | {"seed": int(rng.integers(2**32))}
    if "xl" not in variant and rng.random() < 0.3:
        fields |= {"loras": (Lora(name=f"lora{rng.integers(2)}", scale=float(rng.choice([0.5, 1.0]))),)}
    seconds = float(rng.uniform(10.0, LONGEST_S))
    if task == "text2music":
        asked = song(seconds, **fields)
    elif task == "codes":
        codes = tuple(rng.integers(0, 64_000, int(rng.integers(1, 60))).tolist())
        asked = song(seconds, plan={"codes": codes}, **fields, **some_strengths(rng))
    else:
        frames = int(rng.integers(1, int(25 * LONGEST_S / 4)))
        asked = edited(task, frames, source_seed=int(rng.integers(100)), **fields, **some_editing(rng, task, frames))
    reference = Latents(noise(750, int(rng.integers(100)))) if rng.random() < 0.2 else None
    return Song(asked.request, 0, asked.plan, asked.source, reference)


def some_sampling(rng: Generator, is_base: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "inference_steps": int(rng.integers(1, 7)),
        "infer_method": str(rng.choice(["ode", "sde", "heun"])),
        "shift": float(rng.choice([1.0, 2.0, 3.0])),
        "instruction": str(rng.choice(["", "Play it on a piano"])),
    }
    if rng.random() < 0.2:
        fields |= {"timesteps": tuple(np.sort(rng.random(3))[::-1].tolist())}
    if rng.random() < 0.2:
        fields |= {"velocity_norm_threshold": 0.9, "velocity_ema_factor": 0.2, "dcw_enabled": True}
    if rng.random() < 0.2:
        fields |= {"retake_seeds": (int(rng.integers(2**32)),), "retake_variance": 0.3}
    if is_base:
        low, high = np.sort(rng.random(2)).tolist()
        fields |= {"guidance_scale": float(rng.choice([1.0, 3.0, 7.0])), "use_adg": bool(rng.random() < 0.3)}
        fields |= {"cfg_interval_start": low, "cfg_interval_end": high} if rng.random() < 0.3 else {}
    return fields


def some_strengths(rng: Generator) -> dict[str, Any]:
    return {
        "audio_cover_strength": float(rng.choice([1.0, rng.random()])),
        "cover_noise_strength": float(rng.choice([0.0, rng.random()])),
    }


def some_editing(rng: Generator, task: str, frames: int) -> dict[str, Any]:
    fields = some_strengths(rng) | {"chunk_mask_mode": str(rng.choice(["explicit", "auto", "auto_legacy"]))}
    if task in ("repaint", "lego") and rng.random() < 0.8:
        start, end = np.sort(rng.uniform(-1.0, frames / 25 + 1.0, size=2)).tolist()
        modes = ["balanced", "conservative", "aggressive"]
        fields |= {"repainting_start": start, "repainting_end": end, "repaint_mode": str(rng.choice(modes))}
    return fields


@dataclass
class Mix:
    """A song after another joins, some are withdrawn on the way, and one may be poisoned."""

    solo: Solo
    rng: Generator
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        numbers = self.rng.choice(len(self.solo.songs), size=int(self.rng.integers(2, 6)), replace=False).tolist()
        alone = {number: await self.solo.of(number) for number in numbers}
        doomed = {number for number in numbers[1:] if self.rng.random() < 0.25}
        tasks = {}
        poisoned = None
        for number in numbers:
            tasks[number] = asyncio.create_task(self._make(self.solo.songs[number], number in doomed))
            if poisoned is None and self.rng.random() < 0.25:
                poisoned = asyncio.create_task(values(self.solo.engine, poison()))
            for _ in range(int(self.rng.integers(0, 3))):
                await self._next_step(list(tasks.values()))
        for number, task in tasks.items():
            if (made := await task) is not None:
                error = distance(made, alone[number])
                assert error <= 1e-5, f"{error:.1e} away from itself: {self.solo.songs[number].request}"
        if poisoned is not None:
            with pytest.raises(BadLatents):
                await poisoned

    async def _make(self, asked: Song, is_doomed: bool) -> NDArray[np.float32] | None:
        work = asyncio.create_task(values(self.solo.engine, asked, self._tell(is_doomed)))
        if is_doomed:
            await self._next_step([work])
            work.cancel()
        try:
            return await work
        except asyncio.CancelledError:
            assert is_doomed
            return None

    def _tell(self, is_doomed: bool) -> Any:
        return lambda done, planned: self.told.set()

    async def _next_step(self, running: list[asyncio.Task[Any]]) -> None:
        """Until anybody has come a step further, or nobody is left to."""
        self.told.clear()
        step = asyncio.create_task(self.told.wait())
        everybody = asyncio.ensure_future(asyncio.wait(running))
        await asyncio.wait([step, everybody], return_when="FIRST_COMPLETED")
        step.cancel()
        everybody.cancel()


def poison() -> Song:
    nothing = Source(np.full((20, 64), np.nan, np.float32), 20 * 1920)
    return song(source=nothing, task_type="repaint", repainting_start=0.4)


@pytest.mark.parametrize("number", range(MIXES))
async def test_in_any_company_a_song_is_the_song_alone(solos: dict[str, Solo], number: int) -> None:
    rng = np.random.default_rng(number)
    solo = solos[NAMES[number % len(NAMES)]]

    await Mix(solo, rng).run()

    solo.engine.check_health()


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_the_order_of_rows_does_not_matter(tiny: Path, name: str) -> None:
    weights = read_dit(tiny / name, torch.float32)
    transformer = Transformer(weights, CPU, torch.float32)
    width = weights.null_condition.shape[-1]
    torch.manual_seed(0)
    rows = [
        Row(torch.randn(frames, 64), t, torch.randn(frames, 128), torch.randn(tokens, width))
        for frames, t, tokens in ((33, 1.0, 5), (1, 0.3, 40), (60, 0.7, 1), (18, 0.7, 9), (64, 0.05, 3))
    ]
    alone = [transformer.velocities([row])[0] for row in rows]

    for seed in range(5):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
        mixed = transformer.velocities([rows[place] for place in order])
        for place, velocity in zip(order, mixed, strict=True):
            assert float((velocity - alone[place]).norm() / alone[place].norm()) <= 1e-5
