"""One DiT variant as a replica, with its own text and condition encoders."""

from __future__ import annotations

from collections.abc import AsyncIterator

from models.music import Latents, Song
from serve_app.remote import Report, stream
from serve_app.settings import AppSettings, DitSettings


class DitReplica:
    def __init__(self, settings: AppSettings, dit: DitSettings) -> None:
        from models.dit.engine import DitEngine

        self._engine = DitEngine(settings.checkpoints_folder, dit.model)
        self._engine.warm_up()

    def denoise(self, song: Song) -> AsyncIterator[Report | Latents]:
        return stream(lambda on_progress: self._engine.denoise(song, on_progress))

    async def check_health(self) -> None:
        self._engine.check_health()
