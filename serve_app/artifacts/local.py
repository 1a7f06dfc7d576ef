"""Audio in a folder of this host, or of a disk that all hosts share."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from serve_app.artifacts.face import CHUNK, Kept, Kind, StorageFailed, StoredTrack, new_track, place_of


@dataclass(frozen=True, slots=True)
class LocalTrack(StoredTrack):
    path: Path

    async def read(self, first: int, last: int) -> AsyncIterator[bytes]:
        file = await asyncio.to_thread(_open_plain, self.path)
        try:
            await asyncio.to_thread(file.seek, first)
            left = last - first + 1
            while left > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
        finally:
            file.close()


class LocalArtifacts:
    """Below `root`, on one disk: tracks in 256 folders by the beginnings of their ids, uploads in one, drafts in one.

    A file is written as a draft and then renamed, so it is whole under its id or not there. Links are never followed:
    an id opens what was kept under it and no other file of the host.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, extension: str, content: bytes) -> str:
        ref = new_track(extension)
        with self.draft() as draft:
            with self._refusals(f"could not store {len(content)} bytes"):
                draft.write_bytes(content)
            self.keep(draft, ref)
        return ref

    @contextmanager
    def draft(self) -> Iterator[Path]:
        with self._refusals("could not begin a file"):
            folder = self._root / Kind.DRAFT.folder
            _make_folder(folder)
            number, name = tempfile.mkstemp(prefix="draft-", dir=folder)
            os.close(number)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def keep(self, draft: Path, ref: str) -> None:
        path = self._path(ref)
        with self._refusals(f"could not keep {ref}"):
            _sync(draft)
            _make_folder(path.parent)
            draft.replace(path)
            _sync(path.parent)

    def copy(self, ref: str, new_ref: str) -> bool:
        path, new_path = self._path(ref), self._path(new_ref)
        with self._refusals(f"could not keep {ref} as {new_ref}"):
            if _plain(path) is None:
                return False
            _make_folder(new_path.parent)
            try:
                os.link(path, new_path, follow_symlinks=False)
                _sync(new_path.parent)
            except OSError:  # a disk that knows no links
                with self.draft() as draft:
                    shutil.copyfile(path, draft, follow_symlinks=False)
                    self.keep(draft, new_ref)
        return True

    @contextmanager
    def fetched(self, ref: str) -> Iterator[Path]:
        path = self._path(ref)
        with self._refusals(f"could not read {ref}"):
            told = _plain(path)
        if told is None:
            raise StorageFailed(f"{ref} is not in {self._root}")
        yield path

    def delete(self, refs: Iterable[str]) -> None:
        with self._refusals("could not delete a file"):
            for ref in refs:
                with suppress(FileNotFoundError, NotADirectoryError):
                    self._path(ref).unlink()

    def pages(self) -> Iterator[list[Kept]]:
        with self._refusals("could not list files"):
            for kind in {kind.folder: kind for kind in Kind}.values():
                folder = self._root / kind.folder
                yield from map(_kept_in, [folder] if kind is not Kind.TRACK else sorted(folder.glob("??")))

    async def open(self, ref: str) -> StoredTrack | None:
        if Kind.of(ref) is not Kind.TRACK:
            return None
        path = self._path(ref)
        told = await asyncio.to_thread(_plain, path)
        return None if told is None else LocalTrack(ref, told.st_size, told.st_mtime, path)

    def _path(self, ref: str) -> Path:
        folder = self._root / place_of(ref)
        return folder / ref[:2] / ref if Kind.of(ref) is Kind.TRACK else folder / ref

    @contextmanager
    def _refusals(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageFailed(f"{what} in {self._root}: {error}") from error


def _kept_in(folder: Path) -> list[Kept]:
    """By the time of the last change of the entry, since a second name of an old file is new."""
    kept = []
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process deletes, too
                if Kind.of(entry.name):
                    kept.append(Kept(entry.name, entry.stat(follow_symlinks=False).st_ctime))
    return kept


def _plain(path: Path) -> os.stat_result | None:
    """`None` where there is no file, or a link or something else that is none."""
    try:
        told = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return told if stat.S_ISREG(told.st_mode) else None


def _open_plain(path: Path) -> FileIO:
    """Looked at again, since it may have become another one."""
    return FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK))


def _make_folder(path: Path) -> None:
    """Safe from a power cut, as is the way to it."""
    if not path.is_dir():
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    """A file's content, or a folder's names, are safe from a power cut."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
