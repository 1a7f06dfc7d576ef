"""Songs for tests of the DiT, and how far apart two of them are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.dit.engine import DitEngine
from models.editing import window_of
from models.music import Latents, Metas, MusicRequest, OnProgress, Song, SongPlan, Source, ignore


def song(
    seconds: float = 10.0,
    seed: int = 1,
    plan: dict[str, Any] | None = None,
    source: Source | None = None,
    reference: Latents | None = None,
    **fields: Any,
) -> Song:
    words: dict[str, Any] = {"caption": "calm piano", "lyrics": "[Verse]\nla la", "language": "en"}
    words |= {"metas": Metas(duration=seconds), **(plan or {})}
    if source is not None:
        fields |= {"src_audio": "a source"}
    request = MusicRequest(model="any", seeds=(seed,), **fields)
    return Song(request, 0, SongPlan(**words), source, reference)


def edited(task_type: str, frames: int = 60, seed: int = 1, source_seed: int = 0, **fields: Any) -> Song:
    """A song made from a source of noise, of so many frames before it is lengthened."""
    window = window_of(
        MusicRequest(model="any", seeds=(0,), task_type=task_type, src_audio="a source", **_times(fields))
    )
    span = window.on(frames * 1920)
    total = (span.before + frames * 1920 + span.after) // 1920
    return song(seed=seed, source=Source(noise(total, source_seed), frames * 1920), task_type=task_type, **fields)


def _times(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name.startswith("repainting_")}


def noise(frames: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((frames, 64), dtype=np.float32)


async def values(engine: DitEngine, asked: Song, on_progress: OnProgress = ignore) -> NDArray[np.float32]:
    return (await engine.denoise(asked, on_progress)).values


def distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))
