"""The conductor's replica without Ray: it works, keeps house, and goes when it is told to."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from models.errors import EngineError
from models.music import MusicRequest
from serve_app import retention
from serve_app.artifacts.place import artifacts_of
from serve_app.deployments import conductor
from serve_app.deployments.conductor import ConductorReplica
from serve_app.jobs.job import Status
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.settings import AppSettings
from tests.unit.serve_app.artifacts.test_artifacts import refs_in

TURBO = "acestep-v15-turbo"


class Handle:
    """Of a deployment that nobody calls in these tests."""

    def options(self, **_: object) -> Handle:
        return self


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AppSettings:
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(replica_tag="a replica"))
    monkeypatch.setattr(conductor, "log_with_serve", lambda: None)
    monkeypatch.setattr(retention, "FORGETS_EVERY_S", 0.05)
    return AppSettings.model_validate({"data": tmp_path, "retention": {"jobs_h": 0.000001}, "lm": None})


async def test_a_replica_forgets_what_has_ended_and_sweeps_up_until_it_goes(
    settings: AppSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "SETTLED_AFTER_S", -60.0)
    artifacts = artifacts_of(settings)
    artifacts.save("mp3", b"nobody's")
    as_handle: Any = Handle()
    leave = ConductorReplica.__del__
    monkeypatch.delattr(ConductorReplica, "__del__")  # Python would call it as well, and not await it
    replica = ConductorReplica(settings, {}, {TURBO: as_handle}, as_handle)
    store = await JobStore.open(settings.database_url, QueueLimits(jobs=5, attempts=2))
    job = await store.submit(MusicRequest.model_validate({"model": "another", "seeds": (1,)}), "")
    ended = await store.cancel(job.id, "")
    assert ended is not None
    assert ended.status is Status.CANCELLED
    while await store.get([job.id], "") != [None] or refs_in(artifacts):
        await asyncio.sleep(0.02)
    await replica.check_health()
    await leave(replica)
    with pytest.raises(EngineError, match="the conductor stopped"):
        await replica.check_health()
    await store.close()
