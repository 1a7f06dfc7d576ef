"""The faults, as a table: what each is called, when it strikes, and what it does to a server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from tests.chaos.servers import LEASE_S, Cluster, Lone, kill_at_once

CONDUCTOR = "ray::ServeReplica:acestep:conductor"


@dataclass(frozen=True, slots=True)
class Fault:
    """`at`: the stage that a job is to be at when it strikes."""

    name: str
    strike: Callable[[Any], None]
    at: str = ""
    is_in_ci: bool = False


def killing(title: str) -> Callable[[Lone], None]:
    """kill -9 of one process that calls itself so."""

    def strike(server: Lone) -> None:
        kill_at_once(server.processes(title)[:1])

    return strike


def stop_a_conductor(server: Lone) -> None:
    """For longer than a lease: what it made meanwhile another one makes, and it finds out when it goes on."""
    victim = server.processes(CONDUCTOR)[0]
    os.kill(victim.pid, signal.SIGSTOP)
    try:
        time.sleep(2 * LEASE_S)
    finally:
        os.kill(victim.pid, signal.SIGCONT)


def kill_everything(server: Lone) -> None:
    server.die()
    server.start()


def kill_a_node(server: Cluster) -> None:
    """With all that runs there; another one takes its place, as an orchestrator sees to."""
    node = server.node_of("ray::ServeReplica:acestep:dit-")
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    kill_at_once([*raylet.children(recursive=True), raylet])
    server.replace(node)


def kill_the_gcs(server: Cluster) -> None:
    """And, while it is away, a replica that only the GCS can replace."""
    server.gcs_away(lambda: (killing("ray::ServeReplica:acestep:vae")(server), time.sleep(10)))


def kill_postgresql(server: Cluster) -> None:
    """For longer than a lease."""
    server.postgres.kill()
    time.sleep(2 * LEASE_S)
    server.postgres.start()
