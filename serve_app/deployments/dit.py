"""One DiT variant as a replica, with its own text and condition encoders."""

from __future__ import annotations

from collections.abc import AsyncIterator

from models.music import Latents, Song, Source
from serve_app.deployments.device import device_of
from serve_app.logs import log_with_serve
from serve_app.remote import Report, stream
from serve_app.settings import AppSettings, DitSettings


class DitReplica:
    def __init__(self, settings: AppSettings, dit: DitSettings) -> None:
        log_with_serve()
        from models.batching import BatchLimits
        from models.dit.engine import DitEngine

        limits = BatchLimits(songs=dit.songs, cost=dit.tokens)
        self._engine = DitEngine(
            settings.checkpoints_folder,
            dit.model,
            limits,
            device_of(settings),
            dit.packs_rows,
            compiles=dit.compiles,
            adapters=settings.adapters_folder,
        )
        self._engine.warm_up()

    async def denoise(self, song: Song) -> AsyncIterator[Report | Latents]:
        async for item in stream(lambda on_progress: self._engine.denoise(song, on_progress)):
            yield item

    async def codes(self, source: Source) -> tuple[int, ...]:
        return await self._engine.codes(source)

    async def check_health(self) -> None:
        self._engine.check_health()
