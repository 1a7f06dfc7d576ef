"""The edge as a process, without Ray: uvicorn, the real desk, store and intake.

`python -m tests.fuzz.server PORT FOLDER`
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from serve_app.edge import EdgeOptions, build_api
from serve_app.ingress import FrontDesk
from serve_app.middleware import BodyLimits
from serve_app.settings import AppSettings

PATIENCE_S = 8.0  # so that a test need not wait as long as a server does


class NoConductor:
    """`handle.nudge.remote()`; jobs wait here for ever."""

    @property
    def nudge(self) -> NoConductor:
        return self

    def remote(self) -> None:
        pass


def main(port: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    conductor: Any = NoConductor()
    settings = AppSettings.model_validate(
        {"data": str(folder), "dit": [{"model": "acestep-v15-turbo"}, {"model": "acestep-v15-base"}]}
    )
    desk = FrontDesk(settings, conductor)

    @asynccontextmanager
    async def open_desk(_: FastAPI) -> AsyncIterator[None]:
        async with desk.open():
            yield

    app = build_api(desk, EdgeOptions(body=BodyLimits(patience_s=PATIENCE_S)), open_desk)
    uvicorn.run(app, port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
