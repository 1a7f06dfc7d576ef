"""What a dialect is handed: the few things it can ask the house for."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.music import MusicRequest, SongPlan
from serve_app.jobs.job import DEFAULT_TERMS, Job, JobEvent, Stats, Status, Terms


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A DiT variant this server runs, and what its dial stands at."""

    name: str
    is_default: bool
    is_turbo: bool
    tasks: tuple[str, ...]
    default_steps: int
    max_steps: int


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Everything a caller may name. The first model is the default; `lm_models` is empty on a server without an LM."""

    models: tuple[ModelCard, ...]
    lm_models: tuple[str, ...]

    @property
    def default_model(self) -> ModelCard:
        return self.models[0]


class TrackFile(Protocol):
    """A stored file, never rewritten, that can be read in part. `modified_at` in seconds since the epoch."""

    @property
    def media_type(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def etag(self) -> str: ...

    @property
    def modified_at(self) -> float: ...

    def read(self, first: int, last: int) -> AsyncIterator[bytes]:
        """Bytes `first` to `last`, both included, in chunks."""
        ...


@dataclass(frozen=True, slots=True)
class ServerPath:
    """Audio that lies on the server's own disks, named by an absolute path."""

    path: str


@dataclass(frozen=True, slots=True)
class Peaks:
    """A track's outline, within -1 and 1: of each span the lowest and the highest sample of any channel."""

    seconds: float
    lowest: tuple[float, ...]
    highest: tuple[float, ...]


Attached = AsyncIterable[bytes] | str | ServerPath  # a file as it comes, or the id of a finished track or of an upload


@dataclass(frozen=True, slots=True)
class Upload:
    """Audio that was sent ahead of a request, and found fit for use. Only its owner can name it."""

    id: str
    seconds: float
    sample_rate: int  # Hz
    channels: int
    size: int  # bytes


@dataclass(frozen=True, slots=True)
class Attachments:
    """Audio that comes with a request: what the songs are made from, and what they are to sound like."""

    source: Attached | None = None
    reference: Attached | None = None


NOTHING_ATTACHED = Attachments()


class Desk(Protocol):
    @property
    def catalogue(self) -> Catalogue: ...

    async def submit(
        self,
        request: MusicRequest,
        owner: str,
        attached: Attachments = NOTHING_ATTACHED,
        terms: Terms = DEFAULT_TERMS,
    ) -> Job:
        """Commits the job, and before it what is attached, before it returns; the ids of the latter are put into the
        request here. An older job where the terms say it is as good. Raises RequestError or Overloaded, and then leaves
        nothing behind."""
        ...

    async def look_up(self, ids: Sequence[str], owner: str) -> list[Job | None]:
        """In the order asked; `None` for an id that is unknown or somebody else's."""
        ...

    async def list_jobs(
        self, owner: str, statuses: Collection[Status] = (), before: int | None = None, at_most: int = 50
    ) -> list[Job]:
        """Those numbered below `before`, the newest first; of all statuses where none is named."""
        ...

    def watch(self, id_: str, owner: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """What happens to a job behind event `after`, until it has ended; nothing for one that is unknown or somebody
        else's. Events of long ago are left out."""
        ...

    async def wait(self, id_: str, owner: str, within_s: float) -> Job | None:
        """The job once it has ended, or as it is when the time is over; `None` as for `look_up`."""
        ...

    async def cancel(self, id_: str, owner: str) -> Job | None:
        """The job as it is now; `None` for one that is unknown or somebody else's."""
        ...

    async def adapters(self) -> tuple[str, ...]:
        """The names of all there are."""
        ...

    async def describe(self, request: MusicRequest) -> SongPlan:
        """Asks the LM at once, without a job: a song of the request's own words and metadata, completed as its
        `sample_query` and `use_format` ask. Raises RequestError, Overloaded, DeadlineExceeded or EngineError."""
        ...

    async def stats(self) -> Stats: ...

    async def retry_after_s(self) -> int:
        """When to ask again after Overloaded."""
        ...

    async def keep_upload(self, content: AsyncIterable[bytes], owner: str) -> Upload:
        """Kept for a day or so after it was used last; a job that is made from it keeps it for itself. Raises
        InvalidAudio and TooLong, and then keeps nothing."""
        ...

    async def open_track(self, ref: str) -> TrackFile | None: ...

    async def peaks(self, ref: str, points: int) -> Peaks:
        """Of a track that is there, in so many spans of equal length or fewer. Raises Overloaded."""
        ...
