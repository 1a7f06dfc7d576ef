"""Where audio is kept, finished tracks and what callers sent: whole files under ids of ours, never written again."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from models.audio import MEDIA_TYPES
from models.errors import EngineError
from models.music import AudioFormat

CHUNK = 256 * 1024


class StorageFailed(EngineError):
    """The disk or the object store refused: full, read-only, away, or a file is not there."""

    code = "storage_unavailable"

    @property
    def public_message(self) -> str:
        return "the server has no room for audio, or cannot reach where it is kept (storage_unavailable)"


class Kind(Enum):
    """What is kept, by the shape of its id; and the folder it is kept in."""

    TRACK = ("audio", rf"[0-9a-f]{{32}}\.(?:{'|'.join(AudioFormat)})")
    OF_JOB = ("uploads", r"[0-9a-f-]{36}\.(?:source|reference)")  # what the job of that id is made from
    UPLOAD = ("uploads", r"[0-9a-f]{32}\.[0-9a-f]{16}")  # sent without a job: an id, and whose it is
    DRAFT = ("drafts", r"draft-[a-z0-9_]+")  # of a process that died while it wrote

    def __init__(self, folder: str, pattern: str) -> None:
        self.folder = folder
        self.pattern = re.compile(pattern)

    @staticmethod
    def of(ref: str) -> Kind | None:
        return next((kind for kind in Kind if kind.pattern.fullmatch(ref)), None)


def place_of(ref: str) -> str:
    """The folder of an id. Raises ValueError for what is none."""
    kind = Kind.of(ref)
    if kind is None:
        raise ValueError(f"{ref!r} is no id of a file that is kept here")
    return kind.folder


def new_track(extension: str) -> str:
    return f"{secrets.token_hex(16)}.{AudioFormat(extension)}"


def upload_of(id_: str, owner: str) -> str:
    """Under which an upload is kept: whoever knows the id of somebody else's does not find it."""
    return f"{id_}.{hashlib.sha256(owner.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Kept:
    """`changed_at`, in seconds since the epoch: when it came under this name, or later."""

    ref: str
    changed_at: float


@dataclass(frozen=True, slots=True)
class StoredTrack:
    """A track is never written again, so its id is as good an ETag as its content."""

    ref: str
    size: int
    modified_at: float

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[AudioFormat(self.ref.partition(".")[2])]

    @property
    def etag(self) -> str:
        return self.ref.partition(".")[0]

    def read(self, first: int, last: int) -> AsyncIterator[bytes]:
        """Bytes `first` to `last`, both included, in chunks."""
        raise NotImplementedError


class Artifacts(Protocol):
    """All but `open` block, so they are for threads. Each raises StorageFailed and then leaves nothing under the id,
    and ValueError for what is no id."""

    def save(self, extension: str, content: bytes) -> str:
        """The id of a new track, safe from a power cut when this returns."""
        ...

    def draft(self) -> AbstractContextManager[Path]:
        """An empty file on a disk of this host, to be written and then kept; gone at the end of the block."""
        ...

    def keep(self, draft: Path, ref: str) -> None:
        """The draft under an id, safe from a power cut when this returns."""
        ...

    def copy(self, ref: str, new_ref: str) -> bool:
        """The same content under a second id, which stays when the first goes. False where there is no `ref`."""
        ...

    def fetched(self, ref: str) -> AbstractContextManager[Path]:
        """A file of this host with the content, to be read within the block."""
        ...

    def delete(self, refs: Iterable[str]) -> None:
        """Those that are there."""
        ...

    def pages(self) -> Iterator[list[Kept]]:
        """Everything that is kept, some hundred at a time; what comes or goes meanwhile may be missed."""
        ...

    async def open(self, ref: str) -> StoredTrack | None:
        """`None` for an id that is no track's, or whose file is gone."""
        ...
