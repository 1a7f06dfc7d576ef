import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve_app.artifacts import LocalArtifacts, LocalUploads, StorageFailed


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


JOB = "0f8fad5b-d9cb-469f-a165-70867728950e"
SOURCE, REFERENCE = f"{JOB}.source", f"{JOB}.reference"


@pytest.fixture
def uploads(tmp_path: Path) -> LocalUploads:
    return LocalUploads(tmp_path / "uploads")


async def arriving(*chunks: bytes, error: BaseException | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_an_upload_is_kept_as_it_came(uploads: LocalUploads) -> None:
    path = await uploads.receive(SOURCE, arriving(b"one", b"two"))
    assert path.read_bytes() == b"onetwo"
    assert uploads.find(SOURCE) == path


@pytest.mark.parametrize("error", [ConnectionError("gone"), ValueError("short"), asyncio.CancelledError()])
async def test_an_upload_that_breaks_off_leaves_nothing(
    uploads: LocalUploads, tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises((StorageFailed, type(error))):
        await uploads.receive(SOURCE, arriving(b"one", error=error))
    assert files_in(tmp_path) == []


async def test_an_upload_the_disk_has_no_room_for_leaves_nothing(
    uploads: LocalUploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFailed, match="No space left"):
        await uploads.receive(SOURCE, arriving(b"one"))
    assert files_in(tmp_path) == []


async def test_a_track_that_is_worked_on_outlives_its_own_name(
    artifacts: LocalArtifacts, uploads: LocalUploads
) -> None:
    track = await artifacts.open(artifacts.save("mp3", b"song"))
    assert track is not None
    linked = uploads.link(SOURCE, track)
    assert linked.stat().st_ino == track.path.stat().st_ino
    track.path.unlink()
    assert uploads.find(SOURCE).read_bytes() == b"song"


async def test_a_track_is_copied_where_it_cannot_be_linked(
    artifacts: LocalArtifacts, uploads: LocalUploads, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    track = await artifacts.open(artifacts.save("mp3", b"song"))
    assert track is not None
    assert uploads.link(SOURCE, track).read_bytes() == b"song"


async def test_a_track_that_is_gone_leaves_nothing(
    artifacts: LocalArtifacts, uploads: LocalUploads, tmp_path: Path
) -> None:
    track = await artifacts.open(artifacts.save("mp3", b"song"))
    assert track is not None
    track.path.unlink()
    with pytest.raises(StorageFailed, match="could not keep track"):
        uploads.link(SOURCE, track)
    assert files_in(tmp_path) == []


async def test_old_uploads_are_found_by_their_jobs(uploads: LocalUploads) -> None:
    assert uploads.older_than(0) == {}
    for ref in (SOURCE, REFERENCE):
        await uploads.receive(ref, arriving(b"x"))
    assert uploads.older_than(60) == {}
    found = uploads.older_than(-60)
    assert {job: sorted(refs) for job, refs in found.items()} == {JOB: [REFERENCE, SOURCE]}


async def test_deleted_uploads_are_gone_and_deleting_again_does_nothing(uploads: LocalUploads) -> None:
    uploads.delete([SOURCE])
    await uploads.receive(SOURCE, arriving(b"x"))
    await uploads.receive(REFERENCE, arriving(b"x"))
    uploads.delete([SOURCE, SOURCE])
    uploads.find(REFERENCE)
    with pytest.raises(StorageFailed, match="is not in"):
        uploads.find(SOURCE)


@pytest.mark.parametrize("ref", ["", "../jobs.db", f"../{SOURCE}", f"{SOURCE}\n", f"{JOB}.mp3", "x.source"])
def test_what_is_no_uploads_id_names_no_file(uploads: LocalUploads, ref: str) -> None:
    with pytest.raises(ValueError, match="is no upload's id"):
        uploads.find(ref)


async def test_an_upload_is_no_track(artifacts: LocalArtifacts, tmp_path: Path) -> None:
    await LocalUploads(tmp_path / "audio").receive(SOURCE, arriving(b"x"))
    assert await artifacts.open(SOURCE) is None
