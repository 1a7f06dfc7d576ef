"""Audio on the server's own disks: nothing but plain files below the folders that are listed."""

import os
from pathlib import Path

import pytest

from models.errors import RequestError
from serve_app.roots import AudioRoots

SOUND = b"RIFF" + bytes(300_000)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "music"
    (root / "inner").mkdir(parents=True)
    (root / "inner" / "a.wav").write_bytes(SOUND)
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (tmp_path / "musical").mkdir()
    (tmp_path / "musical" / "a.wav").write_bytes(b"secret")
    return root


async def read(roots: AudioRoots, path: object) -> bytes:
    return b"".join([chunk async for chunk in roots.read(str(path))])


async def test_a_file_below_a_root_is_read_whole(root: Path) -> None:
    assert await read(AudioRoots([root]), root / "inner" / "a.wav") == SOUND


async def test_a_root_that_is_a_link_is_known_under_both_names(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    roots = AudioRoots([tmp_path / "link"])
    assert await read(roots, tmp_path / "link" / "inner" / "a.wav") == SOUND
    assert await read(roots, root / "inner" / "a.wav") == SOUND


@pytest.mark.parametrize(
    "path",
    ["{above}/secret.wav", "{root}/../secret.wav", "{above}/musical/a.wav", "/etc/passwd", "{root}/\0", "a.wav", ""],
)
async def test_nothing_outside_is_read(root: Path, tmp_path: Path, path: str) -> None:
    with pytest.raises(RequestError, match="absolute audio file paths are not allowed outside"):
        await read(AudioRoots([root]), path.format(above=tmp_path, root=root))


async def test_without_roots_nothing_is_read(root: Path) -> None:
    with pytest.raises(RequestError, match="absolute audio file paths are not allowed by this server"):
        await read(AudioRoots(), root / "inner" / "a.wav")


async def test_no_link_is_followed(root: Path, tmp_path: Path) -> None:
    (root / "link.wav").symlink_to(tmp_path / "secret.wav")
    (root / "here.wav").symlink_to(root / "inner" / "a.wav")
    (root / "folder").symlink_to(tmp_path)
    for path in ("link.wav", "here.wav", "folder/secret.wav"):
        with pytest.raises(RequestError, match="no audio file is there"):
            await read(AudioRoots([root]), root / path)


async def test_what_is_no_plain_file_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for path in ("pipe", "inner", "", "absent", "inner/a.wav/b", "x" * 300):
        with pytest.raises(RequestError, match="no audio file is there"):
            await read(AudioRoots([root]), root / path)
