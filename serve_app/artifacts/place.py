"""Which of the two places the settings name."""

from __future__ import annotations

from obstore.exceptions import BaseError

from models.errors import EngineError
from serve_app.artifacts.face import Artifacts
from serve_app.artifacts.local import LocalArtifacts
from serve_app.artifacts.objects import ObjectArtifacts, open_store
from serve_app.settings import AppSettings


class BadStorage(EngineError):
    """A place that cannot keep the audio of this server."""

    code = "bad_storage"


def artifacts_of(settings: AppSettings) -> Artifacts:
    """Touches neither the disk nor the network. Raises BadStorage where the environment lacks what the store needs."""
    if settings.artifacts is None:
        return LocalArtifacts(settings.data_folder)
    try:
        return ObjectArtifacts(open_store(settings.artifacts))
    except BaseError as error:
        seen = str(error).partition("\n")[0]
        raise BadStorage(
            f"the object store {settings.artifacts} cannot be used as the environment has it: {seen}"
        ) from error


def check_place(settings: AppSettings, hosts: int) -> None:
    """Raises BadStorage where there is none, or where a host would not see what another one stored."""
    artifacts_of(settings)
    if hosts > 1 and settings.artifacts is None and not settings.data_is_shared:
        raise BadStorage(
            f"audio would be kept in {settings.data_folder}, a folder of one host, and this cluster has {hosts} hosts; "
            "set `artifacts: s3://BUCKET/PREFIX` (or gs://, az://) in args, or, where that folder is on a disk that "
            "all hosts share, `data_is_shared: true`"
        )
