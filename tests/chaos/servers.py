"""The two servers that faults are done to: one machine as `make serve` starts it, and a cluster of several nodes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from tests.e2e.conftest import PROJECT, Server, title_of
from tests.postgres import Postgres

LEASE_S = 6.0
WITHIN_S = 300.0  # for whatever comes back by itself; a replica needs a minute on a busy machine
PARTS = ("ray::ServeReplica:", "ray::ServeController", "ray::ProxyActor")


def wait_until(is_so: Callable[[], bool], what: str, within_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.1)


def kill_at_once(processes: Iterable[psutil.Process]) -> None:
    """By SIGKILL, and waits until they are gone."""
    victims = list(processes)
    for victim in victims:
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    _, alive = psutil.wait_procs(victims, timeout=60)
    assert alive == [], f"survived SIGKILL: {alive}"


class Lone(Server):
    """Jobs in SQLite. Two conductors, so that one can take over from the other; one replica of everything else."""

    def __init__(self, folder: Path, tiny: Path) -> None:
        super().__init__(folder, tiny)
        content = yaml.safe_load(self.scenario.read_text())
        self.amend(content)
        self.scenario.write_text(yaml.safe_dump(content))

    def amend(self, content: dict[str, Any]) -> None:
        (application,) = content["applications"]
        application["args"]["queue"] = {"lease_s": LEASE_S}
        for deployment in application["deployments"]:
            if deployment["name"] == "conductor":
                deployment["num_replicas"] = 2

    @property
    def database(self) -> str:
        return f"sqlite:///{self.folder / 'data' / 'jobs.db'}"

    @property
    def audio(self) -> Path:
        return self.folder / "data" / "audio"

    def parts(self) -> Counter[str]:
        """How many processes there are of each replica, controller and proxy."""
        titles = (title_of(process).split()[:1] for process in self.family())
        names = (title[0].partition(".")[0] for title in titles if title)
        return Counter(name for name in names if name.startswith(PARTS))

    def settle(self, parts: Counter[str]) -> None:
        """Waits until the server is whole again."""
        wait_until(lambda: self.parts() == parts and self.is_ready(), f"{parts}, seen {self.parts()}")

    def die(self) -> None:
        """A power cut, as far as processes can tell."""
        assert self._process is not None
        kill_at_once([*self.family(), psutil.Process(self._process.pid)])
        self._process.wait()


class Cluster(Lone):
    """A head without work and two workers, each a Ray node of its own on this machine; jobs in PostgreSQL, and Ray's own
    tables on disk (fault tolerance of its GCS)."""

    def __init__(self, folder: Path, tiny: Path, postgres: Postgres) -> None:
        self.postgres = postgres
        super().__init__(folder, tiny)

    def amend(self, content: dict[str, Any]) -> None:
        super().amend(content)
        content["proxy_location"] = "HeadOnly"  # the nodes share a machine and its ports

    @property
    def database(self) -> str:
        return self.postgres.url

    def command(self) -> list[str]:
        run = [sys.executable, "-m", "ray.serve.scripts", "run", "--address", self._ray.address, str(self.scenario)]
        return run

    def start(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        self._environment = {"ACESTEP_DATABASE_URL": self.database, "PYTHONPATH": str(PROJECT)}
        tables = self.folder / "gcs"
        tables.mkdir()
        stored = {"gcs_storage": "rocksdb", "gcs_storage_path": str(tables)}
        self._ray = RayCluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "_system_config": stored, "env_vars": self._environment},
        )
        for _ in range(2):
            self.add_node()
        super().start()

    def add_node(self) -> None:
        self._ray.add_node(num_cpus=2, env_vars=self._environment)

    def stop(self) -> None:
        super().stop()
        self._ray.shutdown()
