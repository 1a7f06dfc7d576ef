"""The conductor as a replica: opens the store, works and clears up beside whatever else the replica is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from models.errors import EngineError
from models.pipeline import Stages
from serve_app.artifacts.place import artifacts_of
from serve_app.conductor import Conductor, Pace
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.logs import log_with_serve
from serve_app.remote import RemoteDit, RemoteLms, RemoteVae
from serve_app.retention import Keeper
from serve_app.settings import AppSettings
from serve_app.webhooks import delivering


class ConductorReplica:
    """`lms` maps a deployment's name to it, `dits` a variant's."""

    def __init__(
        self,
        settings: AppSettings,
        lms: Mapping[str, DeploymentHandle[Any]],
        dits: Mapping[str, DeploymentHandle[Any]],
        vae: DeploymentHandle[Any],
    ) -> None:
        log_with_serve()
        planner = RemoteLms(settings, lms) if lms else None
        decoder = RemoteVae(vae)
        self._settings = settings
        self._stages = {name: Stages(planner, RemoteDit(dit), decoder) for name, dit in dits.items()}
        self._conductor: Conductor | None = None
        self._work = asyncio.get_running_loop().create_task(
            self._run()
        )  # Serve constructs replicas on their event loop

    async def nudge(self) -> None:
        if self._conductor is not None:
            self._conductor.nudge()

    async def check_health(self) -> None:
        if self._work.done():
            raise EngineError(f"the conductor stopped: {self._work.exception()!r}")

    async def __del__(self) -> None:
        """Serve awaits this before the replica goes: running jobs go back to the queue."""
        if self._conductor is None:
            self._work.cancel()
        else:
            await self._conductor.drain()
        await asyncio.gather(self._work, return_exceptions=True)

    async def _run(self) -> None:
        queue = self._settings.queue
        store = await JobStore.open_when_there(
            self._settings.database_url, QueueLimits(queue.max_jobs, queue.max_attempts, queue.max_jobs_per_key)
        )
        worker = serve.get_replica_context().replica_tag
        self._conductor = Conductor(worker, store, self._stages, Pace(self._settings.conductor.jobs, queue.lease_s))
        keeper = Keeper(store, artifacts_of(self._settings), self._settings.retention)
        keeping = asyncio.create_task(keeper.work())
        try:
            async with delivering(self._settings.webhooks, store.deliveries):
                await self._conductor.work()
        finally:
            keeper.close()
            await keeping
            await store.close()
