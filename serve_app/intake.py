"""Callers' audio: stored and found fit for use before its job is."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from models.editing import source_of, window_of
from models.errors import InvalidRequest, RequestError
from models.music import SAMPLE_RATE, MusicRequest
from models.source_audio import AudioInfo, AudioLimits, examine_in_subprocess
from serve_app.artifacts.face import Artifacts, Kind, StorageFailed, upload_of
from serve_app.dialects.desk import Attached, Attachments, ServerPath, Upload
from serve_app.roots import AudioRoots

T = TypeVar("T")

EXAMINED_AT_ONCE = 2  # files; each takes up to a few CPU seconds
UPLOAD_ID = re.compile(r"[0-9a-f]{32}")


class Intake:
    def __init__(self, artifacts: Artifacts, roots: AudioRoots | None = None) -> None:
        self._artifacts = artifacts
        self._roots = roots or AudioRoots()
        self._limits = AudioLimits()
        self._examiners = ThreadPoolExecutor(EXAMINED_AT_ONCE, "examine")  # a caller who leaves frees no thread

    async def take(self, request: MusicRequest, attached: Attachments, owner: str) -> None:
        """Keeps the audio of a request that `with_audio` made. Raises RequestError for what no song can be made from,
        and StorageFailed; keeps nothing then."""
        try:
            if request.src_audio is not None and attached.source is not None:
                with _told_of("source audio"):
                    info = await self._keep(request.src_audio, attached.source, owner)
                    if source_of(request) is not None:
                        window_of(request).on(round((info.seconds or 0.0) * SAMPLE_RATE))
            if request.reference_audio is not None and attached.reference is not None:
                with _told_of("reference audio"):
                    await self._keep(request.reference_audio, attached.reference, owner)
        except BaseException:
            await self.drop(request)
            raise

    async def drop(self, request: MusicRequest) -> None:
        """Deletes the audio of a request that became no job."""
        refs = [ref for ref in (request.src_audio, request.reference_audio) if ref is not None]
        await asyncio.to_thread(self._artifacts.delete, refs)

    async def upload(self, content: AsyncIterable[bytes], owner: str) -> Upload:
        """Keeps audio that no job is made from yet. Raises RequestError and StorageFailed; keeps nothing then."""
        id_ = secrets.token_hex(16)
        info, size = await self._receive(upload_of(id_, owner), content)
        return Upload(id_, info.seconds or 0.0, info.sample_rate, info.channels, size)

    async def _keep(self, ref: str, attached: Attached, owner: str) -> AudioInfo:
        if isinstance(attached, ServerPath):
            attached = self._roots.read(attached.path)
        if not isinstance(attached, str):
            info, _ = await self._receive(ref, attached)
            return info
        kept_as = upload_of(attached, owner) if UPLOAD_ID.fullmatch(attached) else attached
        is_id = kept_as != attached or Kind.of(attached) is Kind.TRACK
        if not is_id or not await asyncio.to_thread(self._artifacts.copy, kept_as, ref):
            raise InvalidRequest(f"no finished track of this server is called {attached!r}, and no upload of this key")
        async with beside_the_loop(self._artifacts.fetched(ref)) as path:
            return await self._examine(path)

    async def _receive(self, ref: str, content: AsyncIterable[bytes]) -> tuple[AudioInfo, int]:
        """What is in it, and its bytes. Kept once it is found fit."""
        async with beside_the_loop(self._artifacts.draft()) as draft:
            size = await self._write(draft, content)
            info = await self._examine(draft)
            await asyncio.to_thread(self._artifacts.keep, draft, ref)
        return info, size

    async def _write(self, draft: Path, content: AsyncIterable[bytes]) -> int:
        """Bytes written, of no more than a file may have."""
        size = 0
        async with beside_the_loop(_written(draft)) as file:
            async for chunk in content:
                size += len(chunk)
                self._limits.check_size(size)
                await asyncio.to_thread(_append, file, chunk)
        return size

    async def _examine(self, path: Path) -> AudioInfo:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._examiners, examine_in_subprocess, path, self._limits)


@asynccontextmanager
async def beside_the_loop(manager: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Of a context whose beginning and end block. It is not told of errors, and must not hide any."""
    entered = await asyncio.to_thread(manager.__enter__)
    try:
        yield entered
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    with path.open("wb", buffering=0) as file:
        yield file


def _append(file: BinaryIO, chunk: bytes) -> None:
    """Raises StorageFailed: no room is no fault of the caller."""
    try:
        while chunk:
            chunk = chunk[file.write(chunk) :]
    except OSError as error:
        raise StorageFailed(f"could not store an upload in {file.name}: {error}") from error


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
