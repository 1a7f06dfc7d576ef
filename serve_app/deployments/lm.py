"""The 5 Hz LM as a replica."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from models.music import MusicRequest, SongPlan
from serve_app.remote import Report, stream
from serve_app.settings import AppSettings, LmSettings


class LmReplica:
    def __init__(self, settings: AppSettings, lm: LmSettings) -> None:
        os.environ.update(engine_environment(lm))  # vLLM reads these while it is imported
        from models.lm.engine import LmEngine

        self._engine = LmEngine(settings.checkpoints_folder / lm.model)
        self._engine.warm_up()

    def plan(self, request: MusicRequest) -> AsyncIterator[Report | tuple[SongPlan, ...]]:
        return stream(lambda on_progress: self._engine.plan(request, on_progress))

    async def check_health(self) -> None:
        self._engine.check_health()


def engine_environment(lm: LmSettings) -> dict[str, str]:
    """No telemetry, no look-ups on a hub, and the CPU build's memory for attention, in whole GiB."""
    return {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, round(lm.kv_cache_gib))),
    }
