"""The two servers that faults are done to: one machine as `make serve` starts it, and a cluster of several nodes."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import yaml

from tests.e2e.conftest import PROJECT, Server, title_of
from tests.postgres import Postgres

if TYPE_CHECKING:
    from ray._private.node import Node as RayNode

LEASE_S = 6.0
WORKERS = 2
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
        """As SQLAlchemy's asyncio drivers want it."""
        return f"sqlite+aiosqlite:///{self.folder / 'data' / 'jobs.db'}"

    @property
    def audio(self) -> Path:
        return self.folder / "data" / "audio"

    def takes_writes(self) -> bool:
        with closing(sqlite3.connect(self.folder / "data" / "jobs.db", timeout=1)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.rollback()
        return True

    def parts(self) -> Counter[str]:
        """How many processes there are of each replica, controller and proxy."""
        titles = (title_of(process).split()[:1] for process in self.family())
        names = (title[0].partition(".")[0] for title in titles if title)
        return Counter(name for name in names if name.startswith(PARTS))

    def start(self) -> None:
        super().start()
        self._whole = self.parts()

    def settle(self) -> None:
        """Waits until the server is as whole as it was when it started."""
        wait_until(lambda: self.parts() == self._whole and self.is_ready(), f"the server with {dict(self._whole)}")

    def die(self) -> None:
        """A power cut, as far as processes can tell."""
        assert self._process is not None
        kill_at_once([*self.family(), psutil.Process(self._process.pid)])
        self._process.wait()
        self._process = None


class Cluster(Lone):
    """A head without work and two workers, each a Ray node of its own on this machine. Jobs in PostgreSQL; Ray's own
    tables on disk, which is what lets its GCS come back."""

    def __init__(self, folder: Path, tiny: Path, postgres: Postgres) -> None:
        # Ray reads the environment as it is imported, which must not be before the tests have set it
        from ray.cluster_utils import Cluster as RayCluster  # noqa: PLC0415

        super().__init__(folder, tiny)
        self.postgres = postgres
        self._ray: Any = RayCluster()  # Ray has no types for it

    def amend(self, content: dict[str, Any]) -> None:
        super().amend(content)
        content["proxy_location"] = "HeadOnly"  # the nodes share a machine and its ports

    @property
    def database(self) -> str:
        return self.postgres.url.replace("postgresql://", "postgresql+asyncpg://")

    def command(self) -> list[str]:
        return [sys.executable, "-m", "ray.serve.scripts", "run", "--address", self._ray.address, str(self.scenario)]

    def start(self) -> None:
        stored = {"gcs_storage": "rocksdb", "gcs_storage_path": str(self.folder)}
        self._add_node(num_cpus=0, _system_config=stored)
        for _ in range(WORKERS):
            self._add_node(num_cpus=2)
        super().start()

    def stop(self) -> None:
        """Without a goodbye: who has seen its GCS die may wait for it for long."""
        if self._process is not None:
            self.die()
        self._ray.shutdown()

    def family(self) -> list[psutil.Process]:
        return [process for node in self._ray.list_all_nodes() for process in family_of(node)]

    def lose_node(self, title: str) -> None:
        """kill -9 of every process of the node where one calls itself so; another node takes its place."""
        node = next(
            node
            for node in self._ray.worker_nodes
            if any(title_of(process).startswith(title) for process in family_of(node))
        )
        kill_at_once(family_of(node))
        self._ray.remove_node(node, allow_graceful=False)
        self._add_node(num_cpus=2)

    @contextmanager
    def without_gcs(self) -> Iterator[None]:
        self._ray.head_node.kill_gcs_server()
        try:
            yield
        finally:
            self._ray.head_node.start_gcs_server()

    def _add_node(self, **options: Any) -> None:
        environment = {"ACESTEP_DATABASE_URL": self.postgres.url, "PYTHONPATH": str(PROJECT)}
        self._ray.add_node(env_vars=environment, **options)


def family_of(node: RayNode) -> list[psutil.Process]:
    """A node's processes, and those below them."""
    found: list[psutil.Process] = []
    for info in (info for infos in node.all_processes.values() for info in infos):
        with suppress(psutil.NoSuchProcess):
            own = psutil.Process(info.process.pid)
            found += [own, *own.children(recursive=True)]
    return found
