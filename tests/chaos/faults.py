"""The faults, as a table: what each is called, when it strikes, and what it does to a server."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from serve_app.jobs.job import Status
from tests.chaos.promise import Kept, kept_jobs
from tests.chaos.servers import LEASE_S, Cluster, Lone, kill_at_once, wait_until

CONDUCTOR = "ray::ServeReplica:acestep:conductor"
AWAY_S = 2 * LEASE_S


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
        victims = server.processes(title)[:1]
        assert victims, f"no process calls itself {title}"
        kill_at_once(victims)

    return strike


def kill_a_conductor(server: Lone) -> None:
    victim, _ = stopped_at_work(server)
    kill_at_once([victim])


def halt_a_conductor(server: Lone) -> None:
    """Until another one has its job. It then goes on with that job, and must lose by its fence."""
    victim, job = stopped_at_work(server)
    wait_until(lambda: job_of(server, job.id).attempt > job.attempt, f"another conductor claims {job}")
    os.kill(victim.pid, signal.SIGCONT)


def stopped_at_work(server: Lone) -> tuple[psutil.Process, Kept]:
    """A conductor halted while it holds a job, and the job. It does not hold SQLite's lock: whoever is halted with that
    halts everybody, until Serve misses its answers and ends it."""
    found: list[tuple[psutil.Process, Kept]] = []

    def halt_one() -> bool:
        for conductor in server.processes(CONDUCTOR):
            os.kill(conductor.pid, signal.SIGSTOP)
            logs = [file.path for file in conductor.open_files()]  # called after the replica
            running = [job for job in kept_jobs(server.database) if job.status is Status.RUNNING]
            found.extend((conductor, job) for job in running if any(f"_{job.worker}.log" in log for log in logs))
            if found and server.takes_writes():
                return True
            found.clear()
            os.kill(conductor.pid, signal.SIGCONT)
        return False

    wait_until(halt_one, "a conductor at work")
    return found[0]


def job_of(server: Lone, id_: str) -> Kept:
    return next(job for job in kept_jobs(server.database) if job.id == id_)


def kill_everything(server: Lone) -> None:
    server.die()
    server.start()


def kill_a_node(server: Cluster) -> None:
    server.lose_node("ray::ServeReplica:acestep:dit-")


def kill_the_gcs(server: Cluster) -> None:
    with server.without_gcs():
        time.sleep(AWAY_S)


def kill_a_replica_without_gcs(server: Cluster) -> None:
    """Nobody replaces it until the GCS is back."""
    with server.without_gcs():
        killing("ray::ServeReplica:acestep:vae")(server)
        time.sleep(AWAY_S)


def kill_postgresql(server: Cluster) -> None:
    """For longer than a lease."""
    server.postgres.kill()
    time.sleep(AWAY_S)
    server.postgres.start()


ON_ONE_MACHINE = (
    Fault("conductor killed", kill_a_conductor, is_in_ci=True),
    Fault("conductor halted past its lease", halt_a_conductor, is_in_ci=True),
    Fault("ingress killed", killing("ray::ServeReplica:acestep:ingress")),
    Fault("proxy killed", killing("ray::ProxyActor")),
    Fault("controller killed", killing("ray::ServeController")),
    Fault("LM killed", killing("ray::ServeReplica:acestep:lm-"), at="plan"),
    Fault("LM's engine killed", killing("VLLM::EngineCore"), at="plan"),
    Fault("DiT killed", killing("ray::ServeReplica:acestep:dit-"), at="denoise"),
    Fault("VAE killed", killing("ray::ServeReplica:acestep:vae"), at="decode"),
    Fault("everything killed, started again", kill_everything, is_in_ci=True),
)
ON_A_CLUSTER = (
    Fault("worker node killed", kill_a_node),
    Fault("GCS killed, started again", kill_the_gcs),
    Fault("GCS killed, VAE killed without it", kill_a_replica_without_gcs),
    Fault("PostgreSQL killed, started again", kill_postgresql),
)
