"""Which of the two places the settings name."""

from __future__ import annotations

from models.errors import EngineError
from serve_app.artifacts.face import Artifacts
from serve_app.artifacts.local import LocalArtifacts
from serve_app.settings import AppSettings


class ScatteredAudio(EngineError):
    """Each host would have files of its own."""

    code = "scattered_audio"


def artifacts_of(settings: AppSettings) -> Artifacts:
    """Touches neither the disk nor the network."""
    if settings.artifacts is None:
        return LocalArtifacts(settings.data_folder)
    from serve_app.artifacts.objects import ObjectArtifacts, open_store  # noqa: PLC0415 only where there is one

    return ObjectArtifacts(open_store(settings.artifacts))


def refuse_scattered(settings: AppSettings, hosts: int) -> None:
    """Raises ScatteredAudio where a host would not see what another one stored."""
    if hosts > 1 and settings.artifacts is None and not settings.data_is_shared:
        raise ScatteredAudio(
            f"audio would be kept in {settings.data_folder}, a folder of one host, and this cluster has {hosts} hosts; "
            "set `artifacts: s3://BUCKET/PREFIX` (or gs://, az://) in args, or, where that folder is on a disk that "
            "all hosts share, `data_is_shared: true`"
        )
