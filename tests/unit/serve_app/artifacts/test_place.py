from pathlib import Path

import pytest
from pydantic import ValidationError

from serve_app.artifacts.local import LocalArtifacts
from serve_app.artifacts.objects import ObjectArtifacts
from serve_app.artifacts.place import BadStorage, artifacts_of, check_place
from serve_app.settings import AppSettings


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/songs/new", "gs://bucket/songs", "az://container/songs"])
def test_audio_is_in_an_object_store_where_the_settings_name_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "anna")
    assert isinstance(artifacts_of(AppSettings(artifacts=url)), ObjectArtifacts)


def test_audio_is_in_the_data_folder_unless_said_otherwise(tmp_path: Path) -> None:
    artifacts = artifacts_of(AppSettings(data=tmp_path))
    assert isinstance(artifacts, LocalArtifacts)
    ref = artifacts.save("mp3", b"x")
    assert (tmp_path / "audio" / ref[:2] / ref).is_file()


@pytest.mark.parametrize(
    "url", ["", "data", "file:///data", "s3:bucket", "s3:///songs", "http://host/bucket", "s3://b?x=1"]
)
def test_what_is_no_object_store_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValidationError, match=r"is no object store; write s3://BUCKET/PREFIX"):
        AppSettings(artifacts=url)


def test_an_object_store_that_the_environment_does_not_tell_enough_of_is_refused_at_once() -> None:
    with pytest.raises(BadStorage, match=r"az://container/songs cannot be used .*Account must be specified$"):
        check_place(AppSettings(artifacts="az://container/songs"), 1)


def test_a_folder_of_one_host_is_refused_where_there_are_several() -> None:
    with pytest.raises(BadStorage, match=r"has 3 hosts; set `artifacts: s3://.*`data_is_shared: true`"):
        check_place(AppSettings(), 3)
    check_place(AppSettings(), 1)
    check_place(AppSettings(data_is_shared=True), 3)
    check_place(AppSettings(artifacts="s3://bucket/songs"), 3)
