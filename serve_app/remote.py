"""Stages that live in other processes, with the faces `make_music` knows. Ray is only a transport here."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, TypeVar

from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, ObjectLostError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from models.editing import WHOLE, Splice, Window
from models.errors import EngineDied, EngineError, UnknownModel
from models.music import Encoding, Latents, MusicRequest, OnProgress, Song, SongPlan, Source, Track, ignore
from serve_app.settings import AppSettings, LmSettings

T = TypeVar("T")
log = logging.getLogger(__name__)

# the replica ended under the call, or what it made went with its node: the same call elsewhere makes the same song
DIED = (EngineDied, ActorDiedError, ObjectLostError, NodeDiedError)
# nobody took the call, or nobody can be asked about it now
AWAY = (ActorUnavailableError, DeploymentUnavailableError, BackPressureError)
DEATHS = 4  # under one call, before it is taken for the cause of them
AWAY_AT_MOST_S = 600.0  # a replica that loads large weights from a slow disk is back by then
PAUSES_S = (0.5, 2.0, 5.0)  # between tries of one stage; the last one from then on
SECONDS_BETWEEN_REPORTS = 0.3


class StageLost(EngineError):
    """A stage's replicas died under a call, or stayed away, for as long as one is tried."""

    code = "worker_lost"


@dataclass(frozen=True, slots=True)
class Report:
    """What a replica sends while it works."""

    done: int
    planned: int


async def stream(call: Callable[[OnProgress], Awaitable[T]]) -> AsyncGenerator[Report | T, None]:
    """Replica side: yields the newest progress a few times a second, then the result. Closing it cancels the call."""
    newest: list[Report] = []
    work = asyncio.ensure_future(call(lambda done, planned: newest.__setitem__(slice(None), [Report(done, planned)])))
    try:
        while not work.done():
            await asyncio.wait([work], timeout=SECONDS_BETWEEN_REPORTS)
            if newest:
                yield newest.pop()
        yield work.result()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def last_of(responses: Any, on_progress: OnProgress) -> Any:
    """Caller side of `stream`: passes reports on and returns the result."""
    try:
        async for item in responses:
            if not isinstance(item, Report):
                return item
            on_progress(item.done, item.planned)
    finally:
        responses.cancel()  # a no-op on a stream that has ended
    raise EngineDied("a stage ended its stream without a result")


async def retried(call: Callable[[], Awaitable[T]], what: str) -> T:
    """Runs a stage again when a replica died under it, a few times, or while there is none to run it, for some minutes.

    Raises StageLost after that, and the stage's own error as the stage raised it.
    """
    pauses_s = chain(PAUSES_S, repeat(PAUSES_S[-1]))
    deaths, away_since = 0, None
    while True:
        asked_at = time.monotonic()
        try:
            return await call()
        except (RayTaskError, *DIED, *AWAY) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, DIED):
                deaths, away_since = deaths + 1, None
                if deaths >= DEATHS:
                    raise StageLost(f"{what} died {deaths} times under one call, last of {cause!r}") from error
            elif isinstance(cause, AWAY):
                away_since = away_since or asked_at
                if time.monotonic() - away_since > AWAY_AT_MOST_S:
                    raise StageLost(f"{what} was away for {AWAY_AT_MOST_S:.0f} s: {cause!r}") from error
            else:
                raise cause from error
            pause_s = next(pauses_s)
            log.warning("%s was lost (%s); trying again in %s s", what, type(cause).__name__, pause_s)
            await asyncio.sleep(pause_s)


class RemoteLms:
    """The server's LMs behind one face; each request goes to the one it means."""

    def __init__(self, settings: AppSettings, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._settings = settings
        self._handles = handles
        self._streaming = {name: handle.options(stream=True) for name, handle in handles.items()}

    async def plan(self, request: MusicRequest, on_progress: OnProgress = ignore) -> tuple[SongPlan, ...]:
        lm = self._meant_by(request)
        handle = self._streaming[lm.deployment]
        plans: tuple[SongPlan, ...] = await retried(
            lambda: last_of(handle.plan.remote(request), on_progress), f"the LM {lm.model}"
        )
        return plans

    async def understand(self, codes: tuple[int, ...], request: MusicRequest) -> SongPlan:
        lm = self._meant_by(request)
        handle = self._handles[lm.deployment]
        song: SongPlan = await retried(lambda: _awaited(handle.understand.remote(codes, request)), f"the LM {lm.model}")
        return song

    async def describe(self, request: MusicRequest) -> SongPlan:
        lm = self._meant_by(request)
        handle = self._handles[lm.deployment]
        song: SongPlan = await retried(lambda: _awaited(handle.describe.remote(request)), f"the LM {lm.model}")
        return song

    def _meant_by(self, request: MusicRequest) -> LmSettings:
        lm = self._settings.lm_for(request.lm_model, request.lm_backend)
        if lm is None:  # the settings changed while the job waited
            raise UnknownModel(f"this server does not run LM {request.lm_model!r} any more")
        return lm


class RemoteDit:
    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def denoise(self, song: Song, on_progress: OnProgress = ignore) -> Latents:
        latents: Latents = await retried(
            lambda: last_of(self._streaming.denoise.remote(song), on_progress), f"the DiT {song.request.model}"
        )
        return latents

    async def codes(self, source: Source) -> tuple[int, ...]:
        codes: tuple[int, ...] = await retried(lambda: _awaited(self._handle.codes.remote(source)), "the DiT")
        return codes


class RemoteVae:
    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    async def encode(self, audio: str, window: Window = WHOLE) -> Source:
        source: Source = await retried(lambda: _awaited(self._handle.encode.remote(audio, window)), "the VAE")
        return source

    async def encode_reference(self, audio: str) -> Latents:
        latents: Latents = await retried(lambda: _awaited(self._handle.encode_reference.remote(audio)), "the VAE")
        return latents

    async def decode(self, latents: Latents, encoding: Encoding, splice: Splice | None = None) -> Track:
        track: Track = await retried(lambda: _awaited(self._handle.decode.remote(latents, encoding, splice)), "the VAE")
        return track


async def _awaited(response: Any) -> Any:
    """Awaits a response and, when the wait is cancelled, the work behind it as well."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
