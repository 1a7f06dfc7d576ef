"""The edge as a process, without Ray: uvicorn, the real desk, store and intake; and a conductor without music.

`python -m tests.fuzz.server PORT FOLDER`
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from models.music import Made, Metas, MusicRequest, SongPlan, Track
from serve_app.artifacts.face import Artifacts
from serve_app.artifacts.place import artifacts_of
from serve_app.edge import EdgeOptions, build_api
from serve_app.ingress import FrontDesk
from serve_app.jobs.store import JobStore
from serve_app.middleware import BodyLimits
from serve_app.settings import AppSettings

MODELS = ("acestep-v15-turbo", "acestep-v15-base")
PATIENCE_S = 8.0  # so that a test need not wait as long as a server does


class Conductor:
    """Ends every job it is told of at once, with files that hold no music. `handle.nudge.remote()`"""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._is_told = asyncio.Event()

    @property
    def nudge(self) -> Conductor:
        return self

    def remote(self) -> None:
        self._is_told.set()

    async def conduct(self, store: JobStore) -> None:
        while await self._is_told.wait():
            self._is_told.clear()
            while job := await store.claim("a worker", 60.0, MODELS):
                await store.succeed(job, await asyncio.to_thread(self._made, job.request))

    def _made(self, request: MusicRequest) -> Made:
        kind = request.audio_format
        refs = [self._artifacts.save(kind, b"no music") for _ in request.seeds]
        plan = SongPlan(caption=request.prompt, lyrics=request.lyrics, language="en", metas=Metas())
        return Made(
            tracks=tuple(Track(ref=ref, audio_format=kind, seconds=1.0, size=8, sha256="00") for ref in refs),
            plans=(plan,) * len(refs),
            dit_model=request.model,
            lm_model=None,
            seconds_by_stage={},
        )


def main(port: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    settings = AppSettings.model_validate({"data": str(folder), "dit": [{"model": model} for model in MODELS]})
    conductor = Conductor(artifacts_of(settings))
    handle: Any = conductor
    desk = FrontDesk(settings, handle)

    @asynccontextmanager
    async def open_desk(_: FastAPI) -> AsyncIterator[None]:
        async with desk.open():
            conducting = asyncio.create_task(conductor.conduct(desk.store))
            yield
            conducting.cancel()

    app = build_api(desk, EdgeOptions(body=BodyLimits(patience_s=PATIENCE_S)), open_desk)
    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
