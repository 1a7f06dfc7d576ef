"""Callers' audio: on disk and found fit for use before its job is, gone when its job is gone or never was."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from models.editing import source_of, window_of
from models.errors import InvalidRequest, RequestError
from models.music import SAMPLE_RATE, MusicRequest
from models.source_audio import AudioLimits, examine_in_subprocess
from serve_app.artifacts import LocalArtifacts, LocalUploads
from serve_app.dialects.desk import Attached, Attachments, ServerPath
from serve_app.roots import AudioRoots

log = logging.getLogger(__name__)

EXAMINED_AT_ONCE = 2  # files; each takes up to a few CPU seconds
SETTLED_AFTER_S = 3600.0  # by then a job is stored, or it is none
SWEPT_EVERY_S = 3600.0

Known = Callable[[Sequence[str]], Awaitable[set[str]]]  # job ids -> those that there are


class Intake:
    def __init__(self, uploads: LocalUploads, tracks: LocalArtifacts, roots: AudioRoots | None = None) -> None:
        self._uploads = uploads
        self._tracks = tracks
        self._roots = roots or AudioRoots()
        self._limits = AudioLimits()
        self._examiners = ThreadPoolExecutor(EXAMINED_AT_ONCE, "examine")  # a caller who leaves frees no thread

    async def take(self, request: MusicRequest, attached: Attachments) -> None:
        """Keeps the audio of a request that `with_audio` made. Raises RequestError for what no song can be made from,
        and StorageFailed; keeps nothing then."""
        try:
            if request.src_audio is not None and attached.source is not None:
                with _told_of("source audio"):
                    samples = await self._keep(request.src_audio, attached.source)
                    if source_of(request) is not None:
                        window_of(request).on(samples)
            if request.reference_audio is not None and attached.reference is not None:
                with _told_of("reference audio"):
                    await self._keep(request.reference_audio, attached.reference)
        except BaseException:
            await self.drop(request)
            raise

    async def drop(self, request: MusicRequest) -> None:
        """Deletes the audio of a request that became no job."""
        refs = [ref for ref in (request.src_audio, request.reference_audio) if ref is not None]
        await asyncio.to_thread(self._uploads.delete, refs)

    async def sweep(self, known: Known) -> None:
        """Deletes audio whose job is gone or was never stored."""
        by_job = await asyncio.to_thread(self._uploads.older_than, SETTLED_AFTER_S)
        living = await known(list(by_job))
        refs = [ref for job, refs in by_job.items() if job not in living for ref in refs]
        await asyncio.to_thread(self._uploads.delete, refs)

    async def keep_swept(self, known: Known, is_closing: asyncio.Event) -> None:
        """Sweeps at once and every hour. To be ended by the event: a question to the database is not left hanging."""
        while not is_closing.is_set():
            try:
                await self.sweep(known)
            except Exception:  # whatever the database or the disk raises; the next time may be better
                log.exception("could not delete audio that has no job")
            with suppress(TimeoutError):
                await asyncio.wait_for(is_closing.wait(), SWEPT_EVERY_S)

    async def _keep(self, ref: str, attached: Attached) -> int:
        """How many samples there are, at our rate."""
        path = await self._stored(ref, attached)
        loop = asyncio.get_running_loop()
        info = await loop.run_in_executor(self._examiners, examine_in_subprocess, path, self._limits)
        return round((info.seconds or 0.0) * SAMPLE_RATE)

    async def _stored(self, ref: str, attached: Attached) -> Path:
        if isinstance(attached, ServerPath):
            return await self._uploads.receive(ref, self._roots.read(attached.path))
        if not isinstance(attached, str):
            return await self._uploads.receive(ref, attached)
        track = await self._tracks.open(attached)
        if track is None:
            raise InvalidRequest(f"no finished track of this server is called {attached!r}")
        return await asyncio.to_thread(self._uploads.link, ref, track)


@contextmanager
def _told_of(what: str) -> Iterator[None]:
    """A refusal says which audio it is about."""
    try:
        yield
    except RequestError as error:
        raise type(error)(f"{what}: {error.message}") from error


def with_audio(request: MusicRequest, attached: Attachments, job_id: str) -> MusicRequest:
    """The request with the ids under which its audio is to be kept."""
    source, reference = attached.source, attached.reference
    return request.model_copy(
        update={
            "src_audio": None if source is None else f"{job_id}.source",
            "reference_audio": None if reference is None else f"{job_id}.reference",
        }
    )
