"""The API over a desk that keeps jobs in a list: everything but Serve, the store and the engines."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import httpx
import pytest
from fastapi import FastAPI

from models.checkpoints import check_request, variant_named
from models.errors import AceError, InvalidAudio, Overloaded, UnknownModel
from models.music import Metas, MusicRequest, SongPlan
from serve_app.artifacts.face import StorageFailed
from serve_app.dialects.desk import NOTHING_ATTACHED, Attachments, Catalogue, Desk, ModelCard, Peaks, ServerPath, Upload
from serve_app.edge import EdgeOptions, build_api
from serve_app.intake import with_audio
from serve_app.jobs.job import DEFAULT_TERMS, Job, JobEvent, Stats, Status, Terms
from serve_app.jobs.store import IdempotencyConflict
from serve_app.keys import Keyring
from serve_app.middleware import BodyLimits
from serve_app.roots import AudioRoots

TURBO, BASE = "acestep-v15-turbo", "acestep-v15-base"
CATALOGUE = Catalogue(
    (
        ModelCard(TURBO, True, True, variant_named(TURBO).tasks, 8, 20),
        ModelCard(BASE, False, False, variant_named(BASE).tasks, 50, 200),
    ),
    ("acestep-5Hz-lm-0.6B",),
)
SONG = SongPlan(
    caption="Warm jazz trio.",
    lyrics="[Verse]\nLate night",
    language="en",
    metas=Metas(bpm=88, key_scale="D minor", time_signature="4", duration=125.0),
    lm_model="acestep-5Hz-lm-0.6B",
)
CONTENT = bytes(range(256)) * 4


@dataclass(frozen=True)
class FakeFile:
    media_type: str = "audio/mpeg"
    size: int = len(CONTENT)
    etag: str = "abc"
    modified_at: float = 1_700_000_000.0

    async def read(self, first: int, last: int) -> AsyncIterator[bytes]:
        yield CONTENT[first : last + 1]


@dataclass
class FakeDesk:
    catalogue: Catalogue = CATALOGUE
    jobs: list[Job] = field(default_factory=list)
    audio: dict[str, bytes | str] = field(default_factory=dict)  # by its id: a file, or whose id it is
    uploads: dict[tuple[str, str], bytes] = field(default_factory=dict)  # by owner and id
    keys: dict[tuple[str, str], tuple[Job, str]] = field(default_factory=dict)
    roots: AudioRoots = field(default_factory=AudioRoots)
    terms: list[Terms] = field(default_factory=list)
    events: dict[str, list[JobEvent]] = field(default_factory=dict)  # by job
    becomes: Callable[[Job], Job] | None = None  # what a job is that was waited for
    is_full: bool = False
    is_broken: bool = False
    storage_is_full: bool = False
    asked: list[MusicRequest] = field(default_factory=list)  # of the LM, without a job
    described: SongPlan | AceError = SONG  # what it answers

    async def submit(
        self,
        request: MusicRequest,
        owner: str,
        attached: Attachments = NOTHING_ATTACHED,
        terms: Terms = DEFAULT_TERMS,
    ) -> Job:
        self.terms.append(terms)
        if terms.idempotency is not None:
            known, body_sha256 = self.keys.get((owner, terms.idempotency.key), (None, ""))
            if known is not None and body_sha256 != terms.idempotency.body_sha256:
                raise IdempotencyConflict(
                    f"idempotency key {terms.idempotency.key!r} was sent with another body before"
                )
            if known is not None:
                return known
        request = with_audio(request, attached, f"job-{len(self.jobs)}")
        if self.is_broken:
            raise RuntimeError("the password is swordfish")
        if self.storage_is_full:
            raise StorageFailed("could not store 9 bytes in /srv/data: No space left on device")
        if self.is_full:
            raise Overloaded("Server busy: queue is full")
        if request.model not in [card.name for card in self.catalogue.models]:
            raise UnknownModel(f"this server does not run model {request.model!r}; it runs {TURBO}, {BASE}")
        if request.lm_model not in (None, *self.catalogue.lm_models):
            raise UnknownModel(f"this server does not run LM {request.lm_model!r}; it runs acestep-5Hz-lm-0.6B")
        check_request(request, variant_named(request.model))
        for ref, sent in ((request.src_audio, attached.source), (request.reference_audio, attached.reference)):
            if ref is not None and sent is not None:
                content = self.roots.read(sent.path) if isinstance(sent, ServerPath) else sent
                self.audio[ref] = content if isinstance(content, str) else b"".join([chunk async for chunk in content])
        job = Job(
            id=f"job-{len(self.jobs)}",
            owner=owner,
            status=Status.QUEUED,
            request=request,
            created_at=1_700_000_000.5,
            started_at=None,
            finished_at=None,
            attempt=0,
            fence=0,
            stage="queued",
            progress=0.0,
            queue_position=len(self.jobs) + 1,
            error_code=None,
            error_message=None,
            made=None,
            priority=terms.priority,
            number=len(self.jobs) + 1,
        )
        self.jobs.append(job)
        if terms.idempotency is not None:
            self.keys[owner, terms.idempotency.key] = (job, terms.idempotency.body_sha256)
        return job

    async def list_jobs(
        self, owner: str, statuses: Collection[Status] = (), before: int | None = None, at_most: int = 50
    ) -> list[Job]:
        theirs = [job for job in reversed(self.jobs) if job.owner == owner and (before is None or job.number < before)]
        return [job for job in theirs if not statuses or job.status in statuses][:at_most]

    async def watch(self, id_: str, owner: str, after: int = 0) -> AsyncIterator[JobEvent]:
        """Those that a test put there."""
        (job,) = await self.look_up([id_], owner)
        for event in self.events.get(id_, []) if job else []:
            if event.number > after:
                yield event

    async def wait(self, id_: str, owner: str, within_s: float) -> Job | None:
        """As a test says it becomes."""
        (job,) = await self.look_up([id_], owner)
        if job is not None and self.becomes is not None:
            job = self.becomes(job)
            self.jobs[job.number - 1] = job
        return job

    async def look_up(self, ids: Sequence[str], owner: str) -> list[Job | None]:
        known = {job.id: job for job in self.jobs if job.owner == owner}
        return [known.get(id_) for id_ in ids]

    async def cancel(self, id_: str, owner: str) -> Job | None:
        (job,) = await self.look_up([id_], owner)
        return None if job is None else replace(job, status=Status.CANCELLED)

    async def adapters(self) -> tuple[str, ...]:
        return ("lo-fi",)

    async def describe(self, request: MusicRequest) -> SongPlan:
        self.asked.append(request)
        if isinstance(self.described, AceError):
            raise self.described
        return self.described

    async def keep_upload(self, content: AsyncIterable[bytes], owner: str) -> Upload:
        """Two seconds, whatever is in it; a text is no audio."""
        received = b"".join([chunk async for chunk in content])
        if received.startswith(b"this is a text"):
            raise InvalidAudio(f"the file begins with {received[:8]!r}, so it is no audio that can be read")
        upload = Upload(f"{len(self.uploads):032x}", 2.0, 48_000, 2, len(received))
        self.uploads[owner, upload.id] = received
        return upload

    async def peaks(self, ref: str, points: int) -> Peaks:
        return Peaks(10.0, (-0.5,) * points, (0.25,) * points)

    async def stats(self) -> Stats:
        return Stats(10, 1, 2, 3, 4, 0, 200, 12.3456)

    async def retry_after_s(self) -> int:
        return 7

    async def open_track(self, ref: str) -> FakeFile | None:
        return FakeFile() if ref == "abc.mp3" else None


Connect = Callable[..., httpx.AsyncClient]


@pytest.fixture(scope="session")
def everybodys_desk() -> FakeDesk:
    return FakeDesk()


@pytest.fixture(scope="session")
def everybodys_api(everybodys_desk: FakeDesk) -> FastAPI:
    """One without options for all tests: it takes longer to make than most of them to run."""
    as_desk: Desk = everybodys_desk
    return build_api(as_desk, EdgeOptions())


@pytest.fixture
def desk(everybodys_desk: FakeDesk) -> FakeDesk:
    """As new."""
    vars(everybodys_desk).update(vars(FakeDesk()))
    return everybodys_desk


@pytest.fixture
def connect(desk: FakeDesk) -> Connect:
    """A client of an API with these options."""
    as_desk: Desk = desk

    def connect(keys: Sequence[str] = (), **options: object) -> httpx.AsyncClient:
        options.setdefault("keyring", Keyring(keys))
        sizes = {name: options.pop(name) for name in ("max_bytes", "max_upload_bytes") if name in options}
        options.setdefault("body", BodyLimits(**sizes))  # type: ignore[arg-type]  # likewise
        return _client_of(build_api(as_desk, EdgeOptions(**options)))  # type: ignore[arg-type]  # a test's shorthand

    return connect


@pytest.fixture
async def client(
    desk: FakeDesk, everybodys_desk: FakeDesk, everybodys_api: FastAPI, connect: Connect
) -> AsyncIterator[httpx.AsyncClient]:
    """A module may have a desk of its own."""
    async with _client_of(everybodys_api) if desk is everybodys_desk else connect() as client:
        yield client


def _client_of(api: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(api, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://server")
