"""A desk whose jobs end, and a real server in front of it, for clients that are not ours."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import uvicorn

from models.music import AudioFormat, Made, Metas, SongPlan, Track
from serve_app.dialects.desk import Desk
from serve_app.edge import EdgeOptions, build_api
from serve_app.jobs.job import Job, Status
from tests.contract.conftest import TURBO, FakeDesk


@dataclass
class Studio(FakeDesk):
    """Each job runs for `steps` looks, then ends as said; or never does, and `was_cancelled` tells of its end."""

    steps: int = 0
    never_ends: bool = False
    fails_with: tuple[str, str] | None = None  # code, message
    remarks: tuple[str, ...] = ()
    codes: tuple[int, ...] = ()
    was_cancelled: threading.Event = field(default_factory=threading.Event)

    async def wait(self, id_: str, owner: str, within_s: float) -> Job | None:
        (job,) = await self.look_up([id_], owner)
        if job is None:
            return None
        if self.never_ends:
            await asyncio.sleep(within_s)
        elif self.steps > 0:
            self.steps -= 1
        else:
            job = self._ended(job)
            self.jobs[job.number - 1] = job
            return job
        return replace(job, status=Status.RUNNING, stage="denoise", progress=0.5, queue_position=0)

    async def cancel(self, id_: str, owner: str) -> Job | None:
        self.was_cancelled.set()
        return await super().cancel(id_, owner)

    def _ended(self, job: Job) -> Job:
        if self.fails_with is not None:
            code, message = self.fails_with
            status = Status.CANCELLED if code == "cancelled" else Status.FAILED
            return replace(job, status=status, error_code=code, error_message=message)
        return replace(job, status=Status.SUCCEEDED, stage="succeeded", made=self._made(job))

    def _made(self, job: Job) -> Made:
        asked = job.request
        metas = Metas(bpm=120, key_scale="C major", time_signature="4", duration=asked.audio_duration or 30)
        plan = SongPlan(caption=asked.prompt, lyrics=asked.lyrics, language="en", metas=metas, codes=self.codes)
        track = Track(ref="abc.mp3", audio_format=AudioFormat.MP3, seconds=30.0, size=1024, sha256="")
        return Made(
            tracks=(track,) * asked.songs,
            plans=(plan,) * asked.songs,
            dit_model=TURBO,
            lm_model=None,
            seconds_by_stage={},
            remarks=self.remarks,
        )


@contextmanager
def serving(desk: Desk, options: EdgeOptions) -> Iterator[str]:
    """The address of an HTTP server of this desk, in a thread of its own."""
    config = uvicorn.Config(build_api(desk, options), lifespan="off", log_level="warning")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
