import os
from pathlib import Path

import pytest

from serve_app.artifacts import LocalArtifacts, StorageFailed


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "audio")


async def read(artifacts: LocalArtifacts, ref: str, first: int = 0, last: int | None = None) -> bytes:
    file = await artifacts.open(ref)
    assert file is not None
    return b"".join([chunk async for chunk in file.read(first, file.size - 1 if last is None else last)])


async def test_what_was_saved_is_read_back(artifacts: LocalArtifacts) -> None:
    content = os.urandom(700_000)
    ref = artifacts.save("mp3", content)
    assert await read(artifacts, ref) == content
    assert await read(artifacts, ref, 5, 9) == content[5:10]
    assert await read(artifacts, ref, 699_990, 10**9) == content[699_990:]


async def test_an_id_cannot_be_guessed_and_ends_in_the_files_extension(artifacts: LocalArtifacts) -> None:
    refs = {artifacts.save("flac", b"x") for _ in range(50)}
    assert len(refs) == 50
    assert all(ref.endswith(".flac") and len(ref) == 32 + 5 for ref in refs)


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "../jobs.db",
        "/etc/passwd",
        "..%2fjobs.db",
        "0" * 32,
        "0" * 32 + ".exe",
        "0" * 32 + ".mp3\x00",
        "0" * 32 + ".mp3\n",
        "A" * 32 + ".mp3",
        "0" * 5000 + ".mp3",
        "0" * 32 + ".mp3",
    ],
)
async def test_what_is_no_id_of_ours_opens_nothing(artifacts: LocalArtifacts, ref: str) -> None:
    artifacts.save("mp3", b"x")
    assert await artifacts.open(ref) is None


async def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    blocked = tmp_path / "audio"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(StorageFailed, match="could not store 1 bytes"):
        LocalArtifacts(blocked).save("mp3", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["audio"]


async def test_a_disk_that_fills_up_leaves_no_half_file(
    artifacts: LocalArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match="No space left"):
        artifacts.save("mp3", b"x")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
