"""What a job is: a promise that ends exactly once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from models.music import Made, MusicRequest


class Status(StrEnum):
    QUEUED = "queued"  #: accepted; nothing runs at the moment
    RUNNING = "running"  #: a conductor has it; `stage` says where it is
    SUCCEEDED = "succeeded"  #: tracks are saved and can be fetched
    FAILED = "failed"  #: `error_code` says why
    CANCELLED = "cancelled"  #: the caller withdrew it

    @property
    def is_final(self) -> bool:
        return not NEXT[self]


NEXT: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELLED, Status.FAILED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.CANCELLED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Job:
    """One request's life, as last read from the store. Times are seconds since the epoch."""

    id: str
    owner: str  # the key it was submitted with, as a digest; "" where the server has no keys
    status: Status
    request: MusicRequest
    created_at: float
    started_at: float | None
    finished_at: float | None
    attempt: int  # how often it was claimed
    fence: int  # grows with every claim; a write under an older fence is refused
    stage: str  # a Stage's name, or the status where no stage runs
    progress: float  # 0 to 1, never falls
    queue_position: int  # 1 for the next to run, 0 once claimed
    error_code: str | None
    error_message: str | None  # fit for the caller's eyes
    made: Made | None


@dataclass(frozen=True, slots=True)
class Stats:
    """The queue in numbers. `avg_job_seconds` is the mean run time of the last finished jobs."""

    total: int
    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    queue_limit: int
    avg_job_seconds: float
