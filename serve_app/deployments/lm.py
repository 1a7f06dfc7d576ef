"""The 5 Hz LM as a replica."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from models.checkpoints import locate
from models.errors import EngineDied
from models.music import MusicRequest, SongPlan
from serve_app.deployments.device import device_of
from serve_app.logs import log_with_serve
from serve_app.remote import Report, stream
from serve_app.settings import AppSettings, LmSettings

log = logging.getLogger(__name__)

GIB = 2**30
GENRES = "genres_vocab.txt"  # beside the weights


class LmReplica:
    async def __init__(self, settings: AppSettings, lm: LmSettings) -> None:  # type: ignore[misc]  # Serve awaits it
        log_with_serve()
        device = device_of(settings)
        os.environ.update(engine_environment(lm, device.type == "cuda"))  # vLLM reads these while it is imported
        from models.lm.engine import EngineOptions, LmEngine

        folder = locate(lm.model, settings.checkpoints_folder)
        genres = folder / GENRES
        options = EngineOptions(
            backend=lm.backend,
            device=device.type,
            dtype="bfloat16" if device.type == "cuda" else "float32",
            max_num_seqs=2 * lm.songs,  # a guided song is two of the engine's requests
            max_model_len=lm.max_tokens,
            kv_cache_memory_bytes=round(lm.kv_cache_gib * GIB) if device.type == "cuda" else None,
            enforce_eager=lm.enforce_eager,
            genres=genres if genres.is_file() else None,
        )
        self._engine = LmEngine(folder, options)
        await self._engine.warm_up()

    async def plan(self, request: MusicRequest) -> AsyncIterator[Report | tuple[SongPlan, ...]]:
        with _ends_with_its_engine():
            async for item in stream(lambda on_progress: self._engine.plan(request, on_progress)):
                yield item

    async def understand(self, codes: tuple[int, ...], request: MusicRequest) -> SongPlan:
        with _ends_with_its_engine():
            return await self._engine.understand(codes, request)

    async def describe(self, request: MusicRequest) -> SongPlan:
        with _ends_with_its_engine():
            return await self._engine.describe(request)

    async def check_health(self) -> None:
        with _ends_with_its_engine():
            await self._engine.check_health()


@contextmanager
def _ends_with_its_engine() -> Iterator[None]:
    """A replica whose engine is dead ends at once: callers then try another one, and Serve starts a new one. Waiting
    for failed health checks would take half a minute, in which every job sent here is lost."""
    try:
        yield
    except EngineDied:
        log.critical("the LM's engine is dead, so this replica ends", exc_info=True)
        os._exit(1)


def engine_environment(lm: LmSettings, on_gpu: bool) -> dict[str, str]:
    """No telemetry, no look-ups on a hub; for the CPU build its memory for attention in whole GiB, and no process more
    than its engine's own."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(lm.kv_cache_gib))),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if on_gpu else "0",
    }
