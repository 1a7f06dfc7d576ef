"""Where audio is kept, finished tracks and what callers sent: an opaque id, and the bytes behind it."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from models.audio import MEDIA_TYPES
from models.errors import EngineError
from models.music import AudioFormat

UPLOAD = re.compile(r"(?P<job>[0-9a-f-]{36})\.(source|reference)")
REF = re.compile(r"[0-9a-f]{32}\.(?:" + "|".join(AudioFormat) + ")")
CHUNK = 256 * 1024


class StorageFailed(EngineError):
    """The disk refused: full, read-only or gone."""

    code = "storage_unavailable"
    is_public = False


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a local folder. It is never written again, so its id is as good an ETag as its content."""

    ref: str
    path: Path
    size: int
    modified_at: float

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[AudioFormat(self.path.suffix[1:])]

    @property
    def etag(self) -> str:
        return self.ref.partition(".")[0]

    async def read(self, first: int, last: int) -> AsyncIterator[bytes]:
        """Bytes `first` to `last`, both included, in chunks read beside the event loop."""
        file = await asyncio.to_thread(self.path.open, "rb")
        try:
            await asyncio.to_thread(file.seek, first)
            left = last - first + 1
            while left > 0 and (chunk := await asyncio.to_thread(file.read, min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
        finally:
            file.close()


class LocalArtifacts:
    """A folder with one file an artefact, in 256 sub-folders by the beginning of its id."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, extension: str, content: bytes) -> str:
        """The id under which the whole file is on disk. Blocks; raises StorageFailed and leaves nothing then."""
        ref = f"{secrets.token_hex(16)}.{AudioFormat(extension)}"
        path = self._path(ref)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_whole(path, content)
        except OSError as error:
            raise StorageFailed(f"could not store {len(content)} bytes in {self._root}: {error}") from error
        return ref

    async def open(self, ref: str) -> StoredFile | None:
        """`None` for an id that is none, or whose file is gone, or has become a link."""
        if REF.fullmatch(ref) is None:
            return None
        path = self._path(ref)
        try:
            told = await asyncio.to_thread(path.stat, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(told.st_mode):
            return None
        return StoredFile(ref, path, told.st_size, told.st_mtime)

    def _path(self, ref: str) -> Path:
        return self._root / ref[:2] / ref


class LocalUploads:
    """A folder with callers' audio, each file called after the job it is for: `JOB.source`, `JOB.reference`.

    A file is there before its job is, and goes after it: what has no job any more, or never got one, is found by age.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def receive(self, ref: str, content: AsyncIterable[bytes]) -> Path:
        """The whole file, on disk when this returns. Raises StorageFailed, and leaves nothing then."""
        path = self._path(ref)
        try:
            await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)
            with await asyncio.to_thread(path.open, "xb") as kept:
                async for chunk in content:
                    await asyncio.to_thread(kept.write, chunk)
                await asyncio.to_thread(_settle, kept)
        except OSError as error:
            await asyncio.to_thread(self.delete, [ref])
            raise StorageFailed(f"could not store an upload in {self._root}: {error}") from error
        except BaseException:  # the caller left, or sent less than it said
            await asyncio.to_thread(self.delete, [ref])
            raise
        return path

    def link(self, ref: str, file: StoredFile) -> Path:
        """A finished track under a second name, which stays when the first one goes. Blocks; raises StorageFailed."""
        path = self._path(ref)
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.path, path)
            except OSError:  # another disk, or one that knows no links
                shutil.copyfile(file.path, path)
            with path.open("rb") as kept:
                _settle(kept)
        except OSError as error:
            self.delete([ref])
            raise StorageFailed(f"could not keep track {file.ref} in {self._root}: {error}") from error
        return path

    def find(self, ref: str) -> Path:
        """Raises StorageFailed where it is not there."""
        path = self._path(ref)
        if not path.is_file():
            raise StorageFailed(f"upload {ref} is not in {self._root}")
        return path

    def delete(self, refs: Iterable[str]) -> None:
        """Those that are there. Blocks."""
        for ref in refs:
            with suppress(FileNotFoundError, NotADirectoryError):
                self._path(ref).unlink()

    def older_than(self, age_s: float) -> dict[str, list[str]]:
        """Those that came so long ago, by their jobs. Blocks."""
        latest = time.time() - age_s
        found: dict[str, list[str]] = {}
        for path in self._root.glob("*.*"):
            match = UPLOAD.fullmatch(path.name)
            with suppress(FileNotFoundError):  # another process deletes, too
                if match and path.stat().st_ctime < latest:
                    found.setdefault(match["job"], []).append(path.name)
        return found

    def _path(self, ref: str) -> Path:
        if UPLOAD.fullmatch(ref) is None:
            raise ValueError(f"{ref!r} is no upload's id")
        return self._root / ref


def _write_whole(path: Path, content: bytes) -> None:
    """Either the whole file is there under its name, safe from a power cut, or nothing is."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".draft-", delete=False) as draft:
        try:
            draft.write(content)
            draft.flush()
            os.fsync(draft.fileno())
            os.replace(draft.name, path)
        except BaseException:
            os.unlink(draft.name)
            raise
    _sync_folder(path.parent)


def _settle(file: BinaryIO) -> None:
    """An open file and its name are safe from a power cut."""
    file.flush()
    os.fsync(file.fileno())
    _sync_folder(Path(file.name).parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
