"""What holds wherever audio is kept: each test runs in a folder and in an object store."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from serve_app.artifacts.face import Artifacts, Kind, StorageFailed, upload_of

JOB = "0f8fad5b-d9cb-469f-a165-70867728950e"
SOURCE, REFERENCE = f"{JOB}.source", f"{JOB}.reference"
NO_IDS = (
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
    f"../{SOURCE}",
    f"{SOURCE}\n",
    f"{JOB}.mp3",
    "x.source",
)


async def read(artifacts: Artifacts, ref: str, first: int = 0, last: int | None = None) -> bytes:
    file = await artifacts.open(ref)
    assert file is not None
    return b"".join([chunk async for chunk in file.read(first, file.size - 1 if last is None else last)])


def keep(artifacts: Artifacts, ref: str, content: bytes) -> None:
    with artifacts.draft() as draft:
        draft.write_bytes(content)
        artifacts.keep(draft, ref)


def content_of(artifacts: Artifacts, ref: str) -> bytes:
    with artifacts.fetched(ref) as path:
        return path.read_bytes()


def refs_in(artifacts: Artifacts) -> list[str]:
    return sorted(kept.ref for page in artifacts.pages() for kept in page)


async def test_what_was_saved_is_read_back_whole_and_in_part(artifacts: Artifacts) -> None:
    content = os.urandom(700_000)
    ref = artifacts.save("mp3", content)
    assert await read(artifacts, ref) == content
    assert await read(artifacts, ref, 5, 9) == content[5:10]
    assert await read(artifacts, ref, 699_990, 10**9) == content[699_990:]


async def test_a_track_tells_its_size_its_age_and_what_it_is(artifacts: Artifacts) -> None:
    ref = artifacts.save("flac", b"song")
    with artifacts.draft() as draft:
        now = draft.stat().st_mtime
    file = await artifacts.open(ref)
    assert file is not None
    assert (file.size, file.media_type, file.etag) == (4, "audio/flac", ref.removesuffix(".flac"))
    assert abs(file.modified_at - now) < 60


def test_an_id_cannot_be_guessed_and_ends_in_the_files_extension(artifacts: Artifacts) -> None:
    refs = {artifacts.save("flac", b"x") for _ in range(20)}
    assert len(refs) == 20
    assert all(ref.endswith(".flac") and len(ref) == 32 + 5 for ref in refs)
    assert refs_in(artifacts) == sorted(refs)


@pytest.mark.parametrize("ref", [*NO_IDS, "0" * 32 + ".mp3", SOURCE], ids=repr)
async def test_what_is_no_track_of_ours_opens_nothing(artifacts: Artifacts, ref: str) -> None:
    artifacts.save("mp3", b"x")
    keep(artifacts, SOURCE, b"x")
    assert await artifacts.open(ref) is None


@pytest.mark.parametrize("ref", NO_IDS, ids=repr)
def test_what_is_no_id_names_no_file(artifacts: Artifacts, ref: str) -> None:
    with pytest.raises(ValueError, match="is no id of a file"), artifacts.fetched(ref):
        pass
    with artifacts.draft() as draft, pytest.raises(ValueError, match="is no id of a file"):
        artifacts.keep(draft, ref)
    with pytest.raises(ValueError, match="is no id of a file"):
        artifacts.delete([ref])


def test_a_draft_is_kept_as_it_was_written_and_is_gone_then(artifacts: Artifacts) -> None:
    with artifacts.draft() as draft:
        draft.write_bytes(b"one")
        artifacts.keep(draft, SOURCE)
    assert content_of(artifacts, SOURCE) == b"one"
    assert not draft.exists()


def test_a_draft_that_is_not_kept_leaves_nothing(artifacts: Artifacts) -> None:
    with suppress(ConnectionError), artifacts.draft() as draft:
        draft.write_bytes(b"half of it")
        raise ConnectionError("the caller left")
    assert not draft.exists()
    assert refs_in(artifacts) == []


def test_a_draft_that_cannot_be_kept_leaves_nothing(artifacts: Artifacts) -> None:
    with artifacts.draft() as draft:
        draft.unlink()
        with pytest.raises(StorageFailed, match="could not keep"):
            artifacts.keep(draft, SOURCE)
    assert refs_in(artifacts) == []


async def test_many_who_write_at_once_leave_whole_files(artifacts: Artifacts) -> None:
    contents = [bytes([number]) * 300_000 for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        refs = list(pool.map(lambda content: artifacts.save("mp3", content), contents))
        list(pool.map(lambda content: keep(artifacts, SOURCE, content), contents))
    assert [await read(artifacts, ref) for ref in refs] == contents
    assert content_of(artifacts, SOURCE) in contents
    assert refs_in(artifacts) == sorted([*refs, SOURCE])


def test_a_track_that_is_worked_on_outlives_its_own_name(artifacts: Artifacts) -> None:
    track = artifacts.save("mp3", b"song")
    assert artifacts.copy(track, SOURCE)
    artifacts.delete([track])
    assert content_of(artifacts, SOURCE) == b"song"
    assert refs_in(artifacts) == [SOURCE]


def test_what_is_gone_cannot_be_copied_or_read(artifacts: Artifacts) -> None:
    track = artifacts.save("mp3", b"song")
    artifacts.delete([track])
    assert not artifacts.copy(track, SOURCE)
    with pytest.raises(StorageFailed, match=track), artifacts.fetched(track):
        pass
    assert refs_in(artifacts) == []


def test_deleting_again_does_nothing(artifacts: Artifacts) -> None:
    artifacts.delete([])
    artifacts.delete([SOURCE])
    keep(artifacts, SOURCE, b"x")
    keep(artifacts, REFERENCE, b"x")
    artifacts.delete([SOURCE, SOURCE])
    assert refs_in(artifacts) == [REFERENCE]


def test_everything_that_is_kept_is_listed_once_with_its_age(artifacts: Artifacts) -> None:
    assert refs_in(artifacts) == []
    upload = upload_of("0" * 32, "anna")
    tracks = [artifacts.save("mp3", b"x") for _ in range(3)]
    for ref in (SOURCE, upload):
        keep(artifacts, ref, b"x")
    listed = [kept for page in artifacts.pages() for kept in page]
    assert sorted(kept.ref for kept in listed) == sorted([*tracks, SOURCE, upload])
    with artifacts.draft() as draft:
        now = draft.stat().st_mtime
    assert all(abs(kept.changed_at - now) < 60 for kept in listed)


def test_a_second_name_of_an_old_file_is_new(artifacts: Artifacts, tmp_path: Path) -> None:
    track = artifacts.save("mp3", b"x")
    for path in tmp_path.rglob(track):
        os.utime(path, (0, 0))
    artifacts.copy(track, SOURCE)
    (copy,) = [kept for page in artifacts.pages() for kept in page if kept.ref == SOURCE]
    assert copy.changed_at > 1_000_000_000


def test_an_upload_is_found_by_its_owner_only() -> None:
    names = {upload_of("0" * 32, owner) for owner in ("", "anna", "bert")}
    assert len(names) == 3
    assert {Kind.of(name) for name in names} == {Kind.UPLOAD}
