"""What is true of a folder only: its links, and its disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.artifacts.face import Kind, StorageFailed
from serve_app.artifacts.local import LocalArtifacts

PROJECT = Path(__file__).resolve().parents[4]
REF, SOURCE = "ab" * 16 + ".mp3", "0f8fad5b-d9cb-469f-a165-70867728950e.source"


@pytest.fixture
def artifacts(tmp_path: Path) -> LocalArtifacts:
    return LocalArtifacts(tmp_path / "data")


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


async def test_a_link_that_was_planted_under_an_id_is_not_followed(artifacts: LocalArtifacts, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    for path in (tmp_path / "data" / "audio" / "ab" / REF, tmp_path / "data" / "uploads" / SOURCE):
        path.parent.mkdir(parents=True)
        path.symlink_to(secret)
    assert await artifacts.open(REF) is None
    assert not artifacts.copy(REF, SOURCE)
    with pytest.raises(StorageFailed, match="is not in"), artifacts.fetched(SOURCE):
        pass
    artifacts.delete([REF, SOURCE])
    assert files_in(tmp_path) == ["secret"]


async def test_a_track_that_became_a_link_is_not_read(artifacts: LocalArtifacts, tmp_path: Path) -> None:
    ref = artifacts.save("mp3", b"song")
    track = await artifacts.open(ref)
    assert track is not None
    (path,) = tmp_path.rglob(ref)
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        await anext(track.read(0, 3))


async def test_a_file_takes_room_once_though_it_has_two_names(artifacts: LocalArtifacts, tmp_path: Path) -> None:
    ref = artifacts.save("mp3", b"song")
    artifacts.copy(ref, SOURCE)
    assert len({path.stat().st_ino for name in (ref, SOURCE) for path in tmp_path.rglob(name)}) == 1


def test_a_file_is_copied_where_it_cannot_be_linked(
    artifacts: LocalArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    ref = artifacts.save("mp3", b"song")
    assert artifacts.copy(ref, SOURCE)
    with artifacts.fetched(SOURCE) as path:
        assert path.read_bytes() == b"song"
    assert files_in(tmp_path) == sorted([ref, SOURCE])


def test_what_is_safe_from_a_power_cut_when_a_track_is_saved(
    artifacts: LocalArtifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def watched(number: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        sync(number)

    monkeypatch.setattr(os, "fsync", watched)
    ref = artifacts.save("mp3", b"song")
    folder = tmp_path / "data" / "audio" / ref[:2]
    draft, *names = [path for path in synced if path not in (str(tmp_path), str(tmp_path / "data"))]
    assert Kind.of(Path(draft).name) is Kind.DRAFT
    assert names == [str(folder.parent), str(folder)]
    assert synced.count(str(tmp_path)) == 1  # which got `data`
    assert synced.count(str(tmp_path / "data")) == 2  # which got `drafts` and `audio`


def test_what_a_process_left_behind_that_died_while_it_wrote_is_listed(artifacts: LocalArtifacts) -> None:
    draft = artifacts.draft()
    name = draft.__enter__().name  # and never left
    assert [kept.ref for page in artifacts.pages() for kept in page] == [name]
    artifacts.delete([name])
    assert [kept.ref for page in artifacts.pages() for kept in page] == []


def test_what_somebody_else_put_there_is_not_listed(artifacts: LocalArtifacts, tmp_path: Path) -> None:
    artifacts.save("mp3", b"x")
    for name in ("audio/ab", "audio/readme", "uploads"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "note.txt").touch()
    (tmp_path / "data" / "audio" / "xx").touch()
    assert sum(len(page) for page in artifacts.pages()) == 1


def test_a_place_that_is_no_folder_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "data"
    blocked.write_text("a file where the folder should be")
    with pytest.raises(StorageFailed, match=r"data: .*File exists") as caught:
        LocalArtifacts(blocked).save("mp3", b"x")
    assert "(storage_unavailable)" in caught.value.public_message
    assert str(tmp_path) not in caught.value.public_message
    assert files_in(tmp_path) == ["data"]


FILL = """
import asyncio, json, sys
from pathlib import Path
from serve_app.artifacts.face import StorageFailed
from serve_app.artifacts.local import LocalArtifacts
from serve_app.intake import Intake

root = Path(sys.argv[1])
artifacts = LocalArtifacts(root)
kept = artifacts.save("mp3", bytes(100_000))
seen = []

async def sent():
    for _ in range(40):
        yield bytes(100_000)

def save():
    artifacts.save("mp3", bytes(4_000_000))

def upload():
    asyncio.run(Intake(artifacts).upload(sent(), ""))

for fill in (save, upload):
    try:
        fill()
    except StorageFailed as error:
        seen.append(str(error))
kept = [kept, artifacts.save("mp3", bytes(100_000))]
files = [path.name for path in root.rglob("*") if path.is_file()]
print(json.dumps({"errors": seen, "kept": kept, "files": files}))
"""
SMALL_DISK = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$2" -c "$3" "$1"'
SMALL_FILES = 'ulimit -f 1000 && exec "$2" -c "$3" "$1"'
HAS_NAMESPACES = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("shell", "script", "reason"),
    [
        pytest.param(
            ["unshare", "-Urm", "bash", "-c"],
            SMALL_DISK,
            "No space left",
            marks=pytest.mark.skipif(not HAS_NAMESPACES, reason="no user namespaces here, so no disk can be mounted"),
        ),
        (["bash", "-c"], SMALL_FILES, "File too large"),
    ],
    ids=["small disk", "small files"],
)
def test_a_disk_that_fills_up_is_told_and_leaves_no_half_file(
    tmp_path: Path, shell: list[str], script: str, reason: str
) -> None:
    """A real one: whatever the kernel refuses while a track is saved and while an upload comes in."""
    command = [*shell, script, "-", str(tmp_path), sys.executable, FILL]
    run = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert len(told["errors"]) == 2
    assert all(reason in error for error in told["errors"])
    assert sorted(told["files"]) == sorted(told["kept"])
