"""The VAE as a replica: latents in, the id of a stored file out. Samples never leave this process."""

from __future__ import annotations

from models.checkpoints import VAE, locate
from models.editing import Splice, Window
from models.music import Encoding, Latents, Source, Track
from models.source_audio import AudioLimits, Waveform, read_in_subprocess
from serve_app.artifacts.place import artifacts_of
from serve_app.deployments.device import device_of
from serve_app.logs import log_with_serve
from serve_app.settings import AppSettings


class VaeReplica:
    def __init__(self, settings: AppSettings) -> None:
        log_with_serve()
        from models.vae.engine import VaeEngine

        artifacts = artifacts_of(settings)

        def read(ref: str) -> Waveform:
            with artifacts.fetched(ref) as path:
                return read_in_subprocess(path, AudioLimits())

        folder = locate(VAE, settings.checkpoints_folder)
        self._engine = VaeEngine(
            folder,
            artifacts.save,
            device_of(settings),
            settings.vae.encoders,
            read=read,
            tiles_at_once=settings.vae.tiles,
        )
        self._engine.warm_up()

    async def encode(self, audio: str, window: Window) -> Source:
        return await self._engine.encode(audio, window)

    async def encode_reference(self, audio: str) -> Latents:
        return await self._engine.encode_reference(audio)

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        return await self._engine.decode(latents, encoding, splice)

    async def check_health(self) -> None:
        self._engine.check_health()
