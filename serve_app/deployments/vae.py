"""The VAE as a replica: latents in, the id of a stored file out. Samples never leave this process."""

from __future__ import annotations

from models.checkpoints import VAE, locate
from models.music import AudioFormat, Latents, Track
from serve_app.artifacts import LocalArtifacts
from serve_app.deployments.device import device_of
from serve_app.settings import AppSettings


class VaeReplica:
    def __init__(self, settings: AppSettings) -> None:
        from models.vae.engine import VaeEngine

        keep = LocalArtifacts(settings.audio_folder).save
        folder = locate(VAE, settings.checkpoints_folder)
        self._engine = VaeEngine(folder, keep, device_of(settings), settings.vae.encoders)
        self._engine.warm_up()

    async def decode(self, latents: Latents, audio_format: AudioFormat) -> Track:
        return await self._engine.decode(latents, audio_format)

    async def check_health(self) -> None:
        self._engine.check_health()
