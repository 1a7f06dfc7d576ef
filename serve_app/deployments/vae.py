"""The VAE as a replica: latents in, a stored file's name out. Samples never leave this process."""

from __future__ import annotations

from models.music import Latents, Track, TrackOrder
from serve_app.artifacts import LocalArtifacts
from serve_app.settings import AppSettings
