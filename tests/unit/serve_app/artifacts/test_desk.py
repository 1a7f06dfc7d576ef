"""A desk whose audio is in an object store: nothing of it stays on this host."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import pytest

from models.errors import InvalidAudio
from serve_app.artifacts.face import StorageFailed
from serve_app.artifacts.objects import ObjectArtifacts
from serve_app.artifacts.place import artifacts_of
from serve_app.dialects.desk import Attachments
from serve_app.ingress import FrontDesk
from serve_app.settings import AppSettings
from tests.objects import BUCKET
from tests.unit.serve_app.test_intake import TURBO, DeafConductor, cover, sent, wav

pytestmark = pytest.mark.real


@pytest.fixture
def settings(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppSettings:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    artifacts = f"s3://{BUCKET}/{secrets.token_hex(4)}"
    return AppSettings.model_validate(
        {"data": tmp_path / "data", "artifacts": artifacts, "dit": [{"model": TURBO}], "lm": None}
    )


async def test_audio_passes_through_this_host_and_is_read_on_another(settings: AppSettings, tmp_path: Path) -> None:
    handle: Any = DeafConductor()
    settings.data_folder.mkdir()
    desk = FrontDesk(settings, handle)
    another_host = artifacts_of(settings)
    assert isinstance(another_host, ObjectArtifacts)
    async with desk.open():
        upload = await desk.keep_upload(sent(wav()), "anna")
        track = another_host.save("wav", wav(3.0))
        with pytest.raises(InvalidAudio):
            await desk.keep_upload(sent(b"this is a text"), "anna")
        job = await desk.submit(cover(), "anna", Attachments(upload.id, track))
        opened = await desk.open_track(track)
    assert opened is not None
    assert opened.size == len(wav(3.0))
    assert sorted(path.name for path in settings.data_folder.iterdir() if path.is_dir()) == []
    assert list((tmp_path / "tmp").iterdir()) == []
    for ref, content in ((f"{job.id}.source", wav()), (f"{job.id}.reference", wav(3.0))):
        with another_host.fetched(ref) as path:
            assert path.read_bytes() == content
    another_host.delete([f"{job.id}.source"])
    with pytest.raises(StorageFailed), another_host.fetched(f"{job.id}.source"):
        pass
