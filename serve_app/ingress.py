"""Where HTTP comes in: one replica, its desk over the shared store, and the dialects that are handed the desk."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from models.audio import check_encoding
from models.checkpoints import adapter_named, check_request, variant_named
from models.errors import InvalidRequest, Overloaded, RequestError, StoreAway, UnknownModel
from models.music import MusicRequest
from models.pipeline import needs_lm
from serve_app.artifacts import LocalArtifacts, LocalUploads
from serve_app.dialects.desk import NOTHING_ATTACHED, Attachments, Catalogue, ModelCard, TrackFile
from serve_app.edge import EdgeOptions, build_api
from serve_app.intake import Intake, with_audio
from serve_app.jobs.job import DEFAULT_TERMS, Job, JobEvent, Stats, Status, Terms
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.jobs.watching import Watch
from serve_app.settings import AppSettings, read_api_keys

STORE_ANSWERS_WITHIN_S = 2.0


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

    def __init__(self, settings: AppSettings, conductor: DeploymentHandle[Any]) -> None:
        self.catalogue = catalogue_of(settings)
        self._settings = settings
        self._conductor = conductor
        self._artifacts = LocalArtifacts(settings.audio_folder)
        self._intake = Intake(LocalUploads(settings.uploads_folder), self._artifacts)
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
        sweeping = asyncio.create_task(self._intake.keep_swept(self._store.known, is_closing))
        try:
            yield
        finally:
            is_closing.set()
            await self._watch.close()
            await sweeping
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
        await self._check(request)
        await self._intake.take(request, attached)
        try:
            job = await self.store.submit(request, owner, terms, id_)
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
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                async for _ in self.watch(id_, owner):
                    pass
        (job,) = await self.store.get([id_], owner)
        return job

    async def cancel(self, id_: str, owner: str) -> Job | None:
        return await self.store.cancel(id_, owner)

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

    async def open_track(self, ref: str) -> TrackFile | None:
        return await self._artifacts.open(ref)

    async def _check(self, request: MusicRequest) -> None:
        """Raises UnknownModel, UnknownAdapter or InvalidRequest for what this server, as it is set up, cannot make."""
        names = [card.name for card in self.catalogue.models]
        if request.model not in names:
            raise UnknownModel(f"this server does not run model {request.model!r}; it runs {', '.join(names)}")
        lms = self.catalogue.lm_models
        if request.lm_model is not None and request.lm_model not in lms:
            raise UnknownModel(f"this server does not run LM {request.lm_model!r}; it runs {', '.join(lms) or 'none'}")
        if needs_lm(request) and not lms:
            raise InvalidRequest("this server runs no LM, so thinking, sample mode and use_format are not available")
        check_request(request, variant_named(request.model))
        check_encoding(request.encoding)
        for lora in request.loras:
            await asyncio.to_thread(adapter_named, lora.name, self._settings.adapters_folder)


class Ingress:
    """The replica: a FastAPI application built where it runs, so that nothing of it has to be pickled."""

    def __init__(self, settings: AppSettings, conductor: DeploymentHandle[Any]) -> None:
        self._settings = settings
        self._desk = FrontDesk(settings, conductor)

    def __serve_build_asgi_app__(self) -> FastAPI:
        @asynccontextmanager
        async def open_desk(_: FastAPI) -> AsyncIterator[None]:
            async with self._desk.open():
                yield

        api = self._settings.api
        limits = (api.max_body_mib * 2**20, api.max_upload_mib * 2**20)
        options = EdgeOptions(read_api_keys(api), api.cors_origins, *limits)
        app = build_api(self._desk, options, open_desk)
        app.add_api_route("/livez", say_alive)
        app.add_api_route("/readyz", self._tell_readiness, response_model=None)
        return app

    async def _tell_readiness(self) -> JSONResponse:
        """200 once every deployment of this application is healthy and the job database answers, else 503; either way,
        part by part."""
        status, has_store = await asyncio.gather(asyncio.to_thread(serve.status), self._desk.has_store())
        application = status.applications[serve.get_replica_context().app_name]
        components = {name: str(deployment.status.value) for name, deployment in application.deployments.items()}
        components["database"] = "HEALTHY" if has_store else "AWAY"
        is_ready = all(state == "HEALTHY" for state in components.values())
        return JSONResponse({"ready": is_ready, "components": components}, 200 if is_ready else 503)


async def say_alive() -> dict[str, str]:
    return {"status": "alive"}
