"""Where finished audio is kept: an opaque id that ends in the file's extension, and the bytes behind it."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from models.audio import MEDIA_TYPES
from models.errors import EngineError
from models.music import AudioFormat

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
        """`None` for an id that is none, or whose file is gone."""
        if REF.fullmatch(ref) is None:
            return None
        path = self._path(ref)
        try:
            told = await asyncio.to_thread(path.stat, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return StoredFile(ref, path, told.st_size, told.st_mtime)

    def _path(self, ref: str) -> Path:
        return self._root / ref[:2] / ref


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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
