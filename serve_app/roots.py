"""Audio on the server's own disks that callers may name by its path: only in folders that the operator listed."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from models.errors import InvalidRequest

CHUNK = 256 * 1024
NOT_ALLOWED = "absolute audio file paths are not allowed"  # the reference's words
NOT_THERE = "no audio file is there"


class AudioRoots:
    """Folders, and everything below them but links: each step of a path is opened without following one, so that a
    link that is put there meanwhile leads nowhere either."""

    def __init__(self, roots: Sequence[Path] = ()) -> None:
        """A root may itself be a link, and is then known under both names."""
        real = {PurePosixPath(root): PurePosixPath(os.path.realpath(root)) for root in roots}
        self._roots = {**{folder: folder for folder in real.values()}, **real}

    async def read(self, path: str) -> AsyncIterator[bytes]:
        """The content of a file, in chunks read beside the event loop. Raises InvalidRequest."""
        file = await asyncio.to_thread(self._open, path)
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
        finally:
            file.close()

    def _open(self, path: str) -> BinaryIO:
        asked = PurePosixPath(path)
        root = next((root for root in self._roots if asked.is_relative_to(root)), None)
        if root is None or ".." in asked.parts or "\0" in path:
            where = "outside the folders that this server reads" if self._roots else "by this server"
            raise InvalidRequest(f"{path!r}: {NOT_ALLOWED} {where}")
        try:
            return _open_below(self._roots[root], asked.relative_to(root).parts)
        except OSError:
            raise InvalidRequest(f"{path!r}: {NOT_THERE}") from None


def _open_below(root: PurePosixPath, parts: tuple[str, ...]) -> BinaryIO:
    """Raises OSError for whatever is not a plain file reached over plain folders."""
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts:
        try:
            # not blocking: a pipe would wait for somebody to write into it
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=here)
        finally:
            os.close(here)
        here = inner
    if not stat.S_ISREG(os.fstat(here).st_mode):
        os.close(here)
        raise OSError("not a file")
    return os.fdopen(here, "rb")
