"""One fault while a crowd uses the server: what it did, and whether the promise held."""

from __future__ import annotations

import time
from dataclasses import dataclass

from serve_app.jobs.job import Status
from tests.chaos.crowd import Crowd
from tests.chaos.faults import Fault
from tests.chaos.promise import check_ends, check_files, check_songs, kept_jobs
from tests.chaos.servers import Lone, wait_until

RETRY = "trying again in"  # what a conductor logs when a stage was lost


@dataclass(frozen=True, slots=True)
class Outcome:
    """`retried`: claims of a job and calls of a stage beyond the first. `seconds`: from the fault to the first song
    that was asked for after it."""

    fault: str
    in_flight: int
    retried: int
    failed: int
    lost: int
    seconds: float | None


def suffer(fault: Fault, server: Lone, reference: dict[int, str], outcomes: list[Outcome]) -> None:
    """Raises AssertionError where the promise is broken; the outcome is noted either way."""
    server.settle()
    before = max((job.number for job in kept_jobs(server.database)), default=0)
    logged = len(server.log())
    crowd = Crowd(server.address)
    crowd.come()
    in_flight, seconds = 0, None
    try:
        crowd.wait_for_work(fault.at)
        in_flight, struck_at = len(crowd.unfinished()), time.monotonic()
        fault.strike(server)
        seconds = round(crowd.wait_for_songs(struck_at) - struck_at, 1)
    finally:
        try:
            crowd.leave()
            wait_until(lambda: all(job.status.is_final for job in kept_jobs(server.database)), "every job ended")
        finally:
            kept = kept_jobs(server.database, before)
            ended = {job.id for job in kept if job.status.is_final}
            retried = sum(job.attempt - 1 for job in kept if job.attempt) + server.log()[logged:].count(RETRY)
            failed = sum(job.status is Status.FAILED for job in kept)
            lost = len(crowd.asked.keys() - ended)
            outcomes.append(Outcome(fault.name, in_flight, retried, failed, lost, seconds))
    server.settle()
    check_ends(crowd.asked, kept)
    check_songs(server.address, crowd.asked, reference)
    check_files(server.audio, kept_jobs(server.database), sum(one.retried for one in outcomes), reference)
