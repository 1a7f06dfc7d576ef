"""A server process that tests may ill-treat."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

PROJECT = Path(__file__).resolve().parents[2]
START_WITHIN_S = 60


class Server:
    """`memory`: what it holds, in bytes."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "server.log").open("wb")
        command = [sys.executable, "-m", "tests.fuzz.server", str(self.port), str(folder / "data")]
        self._process = subprocess.Popen(command, cwd=PROJECT, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + START_WITHIN_S
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                self.stop()
                raise AssertionError((folder / "server.log").read_text()[-3000:])
            time.sleep(0.1)

    @property
    def memory(self) -> int:
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.address}/health").status_code == 200
        except httpx.TransportError:
            return False


class Bystander:
    """Somebody else, who asks for `/health` and `/v1/stats` over and over; and looks at the server's memory."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.before = server.memory
        self.most = self.before
        self.statuses: list[int] = []

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        assert len(self.statuses) >= 2
        assert set(self.statuses) == {200}

    @property
    def grown(self) -> int:
        """Bytes that the server held more at its peak."""
        return self.most - self.before

    def _ask(self) -> None:
        with httpx.Client(base_url=self._server.address, timeout=30) as client:
            while True:
                self.statuses += [client.get(path).status_code for path in ("/health", "/v1/stats")]
                self.most = max(self.most, self._server.memory)
                if self._is_over.wait(0.02):
                    return


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()
