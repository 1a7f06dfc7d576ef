"""A real server in processes of its own: Ray Serve, vLLM, SQLite and HTTP, on tiny random weights."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
# every field that the LM could change is given, so that only the DiT's seed decides
SETTLED: dict[str, Any] = {
    "lyrics": "[verse]\nHello world",
    "bpm": 120,
    "key_scale": "C major",
    "time_signature": "4",
    "use_cot_caption": False,
    "use_cot_language": False,
    "use_random_seed": False,
    "audio_format": "wav",
    "batch_size": 1,
}
SECOND_LM = "acestep-5Hz-lm-1.7B"
START_WITHIN_S = 240
STOP_WITHIN_S = 60


class Server:
    """`python -m serve_app.serve` over a scenario of its own: another port, another data folder."""

    def __init__(
        self, folder: Path, tiny: Path, models: tuple[str, ...] = ("acestep-v15-turbo",), has_second_lm: bool = False
    ) -> None:
        self.folder = folder
        self.scenario = folder / "scenario.yaml"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        content = yaml.safe_load((PROJECT / "configs" / "cpu-tiny.yaml").read_text())
        content["http_options"]["port"] = port
        application = content["applications"][0]
        application["args"].update(data=str(folder / "data"), checkpoints=str(tiny), adapters=str(folder / "adapters"))
        application["args"]["dit"] = [{"model": model} for model in models]
        application["deployments"] = [
            deployment for deployment in application["deployments"] if not deployment["name"].startswith("dit-")
        ]
        application["deployments"] += [
            {"name": f"dit-{model}", "max_ongoing_requests": 32, "ray_actor_options": {"num_cpus": 0.1}}
            for model in models
        ]
        if has_second_lm:
            application["args"]["lm"].append({"model": SECOND_LM, "backend": "torch"})
            application["deployments"].append(
                {"name": f"lm-{SECOND_LM}-pt".replace(".", "_"), "ray_actor_options": {"num_cpus": 0.1}}
            )
        self.scenario.write_text(yaml.safe_dump(content))
        self.address = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=PROJECT,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(PROJECT), "RAY_DEDUP_LOGS": "0"},
            )
        deadline = time.monotonic() + START_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.is_ready():
                return
            time.sleep(0.5)
        raise AssertionError(f"the server did not get ready:\n{self.tail()}")

    def command(self) -> list[str]:
        return [sys.executable, "-m", "serve_app.serve", str(self.scenario)]

    def stop(self) -> None:
        """As Ctrl-C does; a server that stays is ended by force, and the test with it."""
        if self._process is None:
            return
        process, self._process = self._process, None
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_WITHIN_S)
        finally:
            _, alive = psutil.wait_procs(family, timeout=10)
            for left in alive:
                left.kill()
        assert alive == [], f"left running: {alive}"

    def processes(self, title: str) -> list[psutil.Process]:
        """Those below this server that call themselves so."""
        return [process for process in self.family() if title_of(process).startswith(title)]

    def family(self) -> list[psutil.Process]:
        """Every process below this server."""
        assert self._process is not None
        return list(psutil.Process(self._process.pid).children(recursive=True))

    def log(self) -> str:
        return (self.folder / "server.log").read_text(errors="replace")

    def tail(self) -> str:
        return self.log()[-6000:]

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.address}/readyz", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False


def title_of(process: psutil.Process) -> str:
    """What a process calls itself; nothing once it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


class Client:
    """What a user's script does: ask, poll, fetch."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=30)

    def close(self) -> None:
        self.http.close()

    def ask(self, **fields: Any) -> str:
        reply = self.http.post("/release_task", json=fields)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["data"]["task_id"])

    def upload(self, files: Mapping[str, bytes], **fields: Any) -> str:
        """As a form with files."""
        reply = self.http.post("/release_task", data=fields, files={name: ("a", files[name]) for name in files})
        assert reply.status_code == 200, reply.text
        assert "warnings" not in reply.json()["data"], reply.text
        return str(reply.json()["data"]["task_id"])

    def look(self, task_id: str) -> dict[str, Any]:
        reply = self.http.post("/query_result", json={"task_id_list": [task_id]})
        assert reply.status_code == 200, reply.text
        (entry,) = reply.json()["data"]
        return dict(entry)

    def wait(self, task_id: str, within_s: float = 180) -> list[dict[str, Any]]:
        """The items of a job that succeeded."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            entry = self.look(task_id)
            if entry["status"] != 0:
                items: list[dict[str, Any]] = json.loads(entry["result"])
                assert entry["status"] == 1, entry
                return items
            time.sleep(0.2)
        raise AssertionError(f"not finished after {within_s} s: {self.look(task_id)}")

    def fetch(self, item: dict[str, Any]) -> bytes:
        reply = self.http.get(item["file"])
        assert reply.status_code == 200, reply.text
        return reply.content


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints") / "tiny"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Server]:
    models = ("acestep-v15-turbo", "acestep-v15-base", "acestep-v15-xl-turbo")
    server = Server(tmp_path_factory.mktemp("server"), tiny, models, has_second_lm=True)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with closing(Client(server.address)) as client:
        yield client
