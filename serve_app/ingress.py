"""Where HTTP comes in: one replica, its desk over the shared store, and the dialects that are handed the desk."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from models.audio import check_encoding
from models.checkpoints import adapter_named, adapters_in, check_request, variant_named
from models.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestError, StoreAway, UnknownModel
from models.music import MusicRequest, SongPlan
from models.pipeline import needs_lm
from serve_app.artifacts.place import artifacts_of
from serve_app.dialects.desk import NOTHING_ATTACHED, Attachments, Catalogue, ModelCard, Peaks, TrackFile, Upload
from serve_app.edge import EdgeOptions, build_api, build_v1_api
from serve_app.intake import Intake, with_audio
from serve_app.jobs.job import DEFAULT_TERMS, Job, JobEvent, Stats, Status, Terms
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.jobs.watching import Watch
from serve_app.keys import Keyring
from serve_app.listening import is_loopback, listening_host, refuse_open
from serve_app.logs import log_with_serve
from serve_app.middleware import BodyLimits
from serve_app.remote import RemoteLms
from serve_app.roots import AudioRoots
from serve_app.settings import AppSettings, keyring_of, models_format_of
from serve_app.v1_port import listening
from serve_app.waveforms import Waveforms
from serve_app.webhooks import WebhookGate

STORE_ANSWERS_WITHIN_S = 2.0
ASKED_AT_ONCE = 8  # of the LM, without a job, by one replica


def catalogue_of(settings: AppSettings) -> Catalogue:
    """What this server runs; the first variant of the settings is the default."""
    cards = []
    for index, dit in enumerate(settings.dit):
        variant = variant_named(dit.model)
        cards.append(
            ModelCard(
                name=variant.name,
                is_default=index == 0,
                is_turbo=variant.is_turbo,
                tasks=variant.tasks,
                default_steps=variant.default_steps,
                max_steps=variant.max_steps,
            )
        )
    return Catalogue(tuple(cards), tuple(dict.fromkeys(lm.model for lm in settings.lm)))


class FrontDesk:
    """The desk of one ingress replica, over the shared store."""

    def __init__(
        self,
        settings: AppSettings,
        conductor: DeploymentHandle[Any],
        keyring: Keyring | None = None,
        lms: Mapping[str, DeploymentHandle[Any]] | None = None,
    ) -> None:
        self.catalogue = catalogue_of(settings)
        self._settings = settings
        self._keyring = keyring or Keyring()
        self._conductor = conductor
        self._lms = RemoteLms(settings, lms or {})
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)
        self._artifacts = artifacts_of(settings)
        self._intake = Intake(self._artifacts, AudioRoots(settings.audio_roots))
        self._waveforms = Waveforms(self._artifacts)
        self._webhooks = WebhookGate(settings.webhooks)
        self._store: JobStore | None = None
        self._watch: Watch | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        queue = self._settings.queue
        self._store = await JobStore.open_when_there(
            self._settings.database_url, QueueLimits(queue.max_jobs, queue.max_attempts, queue.max_jobs_per_key)
        )
        self._watch = Watch(self._store)
        is_closing = asyncio.Event()
        refreshing = asyncio.create_task(self._keyring.keep_fresh(is_closing))
        try:
            yield
        finally:
            is_closing.set()
            await self._watch.close()
            await refreshing
            await self._store.close()

    @property
    def store(self) -> JobStore:
        if self._store is None:
            raise RuntimeError("the desk is not open")
        return self._store

    async def submit(
        self,
        request: MusicRequest,
        owner: str,
        attached: Attachments = NOTHING_ATTACHED,
        terms: Terms = DEFAULT_TERMS,
    ) -> Job:
        id_ = str(uuid.uuid4())
        request = with_audio(request, attached, id_)
        if terms.webhook is not None:
            self._webhooks.check(terms.webhook)
        await self._check(request)
        await self._intake.take(request, attached, owner)
        try:
            job = await self.store.submit(request, owner, terms, id_, self._keyring.max_jobs_of(owner))
        except (RequestError, Overloaded):  # after any other error it may be stored, and the sweep will tell
            await self._intake.drop(request)
            raise
        if job.id != id_:
            await self._intake.drop(request)
            return job
        with suppress(RayServeException):  # the job is stored; a conductor that cannot be told finds it by looking
            self._conductor.nudge.remote()
        return job

    async def look_up(self, ids: Sequence[str], owner: str) -> list[Job | None]:
        return await self.store.get(ids, owner)

    async def list_jobs(
        self, owner: str, statuses: Collection[Status] = (), before: int | None = None, at_most: int = 50
    ) -> list[Job]:
        return await self.store.list_jobs(owner, statuses, before, at_most)

    async def watch(self, id_: str, owner: str, after: int = 0) -> AsyncIterator[JobEvent]:
        if self._watch is None:
            raise RuntimeError("the desk is not open")
        async for event in self._watch.events(id_, owner, after):
            yield event

    async def wait(self, id_: str, owner: str, within_s: float) -> Job | None:
        (job,) = await self.store.get([id_], owner)
        if job is None or job.status.is_final:
            return job
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                async for _ in self.watch(id_, owner, job.events):
                    pass
        (job,) = await self.store.get([id_], owner)
        return job

    async def cancel(self, id_: str, owner: str) -> Job | None:
        return await self.store.cancel(id_, owner)

    async def adapters(self) -> tuple[str, ...]:
        return await asyncio.to_thread(adapters_in, self._settings.adapters_folder)

    async def describe(self, request: MusicRequest) -> SongPlan:
        self._check_models(request)
        if self._asking.locked():
            raise Overloaded(f"Server busy: the LM is being asked {ASKED_AT_ONCE} things at once, as many as may")
        timeout_s = self._settings.api.lm_timeout_s
        async with self._asking:
            try:
                return await asyncio.wait_for(self._lms.describe(request), timeout_s)
            except TimeoutError:
                raise DeadlineExceeded(f"the LM gave no answer within {timeout_s:g} s") from None

    async def stats(self) -> Stats:
        return await self.store.stats()

    async def retry_after_s(self) -> int:
        return await self.store.retry_after_s()

    async def has_store(self) -> bool:
        """Whether the job database answers, and soon."""
        try:
            await asyncio.wait_for(self.store.ping(), STORE_ANSWERS_WITHIN_S)
        except (StoreAway, TimeoutError):
            return False
        return True

    async def keep_upload(self, content: AsyncIterable[bytes], owner: str) -> Upload:
        return await self._intake.upload(content, owner)

    async def open_track(self, ref: str) -> TrackFile | None:
        return await self._artifacts.open(ref)

    async def peaks(self, ref: str, points: int) -> Peaks:
        return await self._waveforms.peaks(ref, points)

    async def _check(self, request: MusicRequest) -> None:
        """Raises UnknownModel, UnknownAdapter or InvalidRequest for what this server, as it is set up, cannot make."""
        self._check_models(request)
        check_request(request, variant_named(request.model))
        check_encoding(request.encoding)
        for lora in request.loras:
            await asyncio.to_thread(adapter_named, lora.name, self._settings.adapters_folder)

    def _check_models(self, request: MusicRequest) -> None:
        """Raises UnknownModel or InvalidRequest where this server does not run what the request is for."""
        names = [card.name for card in self.catalogue.models]
        if request.model not in names:
            raise UnknownModel(f"this server does not run model {request.model!r}; it runs {', '.join(names)}")
        lms = self.catalogue.lm_models
        if request.lm_model is not None and request.lm_model not in lms:
            raise UnknownModel(f"this server does not run LM {request.lm_model!r}; it runs {', '.join(lms) or 'none'}")
        if needs_lm(request) and not lms:
            raise InvalidRequest("this server runs no LM, so thinking, sample mode and use_format are not available")


class Ingress:
    """The replica: a FastAPI application built where it runs, so that nothing of it has to be pickled."""

    def __init__(
        self, settings: AppSettings, conductor: DeploymentHandle[Any], lms: Mapping[str, DeploymentHandle[Any]]
    ) -> None:
        log_with_serve()
        self._settings = settings
        self._keyring = keyring_of(settings.api)
        self._host = listening_host()
        refuse_open(self._host, settings.api)
        self._desk = FrontDesk(settings, conductor, self._keyring, lms)

    def __serve_build_asgi_app__(self) -> FastAPI:
        @asynccontextmanager
        async def open_desk(_: FastAPI) -> AsyncIterator[None]:
            async with self._desk.open(), self._v1_port(options):
                yield

        api = self._settings.api
        body = BodyLimits(api.max_body_mib * 2**20, api.max_upload_mib * 2**20, api.max_bodies_mib * 2**20)
        options = EdgeOptions(
            keyring=self._keyring,
            cors_origins=api.cors_origins,
            models_format=models_format_of(api),
            is_local=is_loopback(self._host),
            body=body,
            tells_request_id=False,
            generation_timeout_s=api.generation_timeout_s,
        )
        app = build_api(self._desk, options, open_desk)
        app.add_api_route("/livez", say_alive)
        app.add_api_route("/readyz", self.tell_readiness, response_model=None)
        return app

    def _v1_port(self, options: EdgeOptions) -> AbstractAsyncContextManager[int | None]:
        api = self._settings.api
        if api.v1_port is None:
            return nullcontext()
        options = replace(options, is_local=is_loopback(api.v1_host), tells_request_id=True)  # no proxy is in front
        return listening(build_v1_api(self._desk, options, is_ready), api.v1_host, api.v1_port)

    async def tell_readiness(self) -> JSONResponse:
        """200 once every deployment of this application is healthy and the job database answers, else 503; either way,
        part by part. What still works and will not for long is a warning."""
        components, warnings, has_store = await asyncio.gather(
            _components(), asyncio.to_thread(warnings_of_disk, self._settings), self._desk.has_store()
        )
        components["database"] = "HEALTHY" if has_store else "AWAY"
        ready = _are_healthy(components)
        body = {"ready": ready, "components": components, "warnings": warnings}
        return JSONResponse(body, 200 if ready else 503)


async def say_alive() -> dict[str, str]:
    return {"status": "alive"}


async def is_ready() -> bool:
    return _are_healthy(await _components())


async def _components() -> dict[str, str]:
    """Deployments of this application, and how they are."""
    status = await asyncio.to_thread(serve.status)
    application = status.applications[serve.get_replica_context().app_name]
    return {name: str(deployment.status.value) for name, deployment in application.deployments.items()}


def _are_healthy(components: Mapping[str, str]) -> bool:
    return all(state == "HEALTHY" for state in components.values())


def warnings_of_disk(settings: AppSettings) -> list[str]:
    """Of the disk that holds the jobs, or the audio, or both. For anybody's eyes; blocks."""
    if settings.artifacts is not None and not settings.database_url.startswith("sqlite"):
        return []
    disk = shutil.disk_usage(settings.data_folder)
    share = disk.used / (disk.used + disk.free)  # as `df` has it: what is reserved for root is neither
    if share <= settings.disk_high_water:
        return []
    return [f"the disk of the data folder is {share:.0%} full; above {settings.disk_high_water:.0%} is a warning"]
