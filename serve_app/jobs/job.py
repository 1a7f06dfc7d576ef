"""What a job is: a promise that ends exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from models.errors import InvalidRequest
from models.music import Made, MusicRequest

MAX_IDEMPOTENCY_KEY = 255


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
FINAL = tuple(status for status in Status if status.is_final)


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"

    @property
    def handicap_s(self) -> float:
        """A job stands in the queue as if it had come so much later, and so waits that long at most for its betters."""
        return {Priority.HIGH: 0.0, Priority.NORMAL: 120.0, Priority.LOW: 1200.0}[self]


@dataclass(frozen=True, slots=True)
class Idempotency:
    """The caller's name for a request, under which it is done once however often it is sent.

    `body_sha256` is of what the caller sent, not of the request made of it: seeds that are drawn here differ each time.
    """

    key: str
    body_sha256: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.key) <= MAX_IDEMPOTENCY_KEY or not self.key.isprintable():
            raise InvalidRequest(
                f"an idempotency key has 1 to {MAX_IDEMPOTENCY_KEY} printable characters, seen {self.key[:300]!r}"
            )


@dataclass(frozen=True, slots=True)
class Terms:
    """How a job is to be treated, beside what it is to make. `deadline_s` from now it fails unless it has ended.

    `reuse`: a job of the same owner that made the very same request, seeds included, is as good as a new one.
    """

    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    idempotency: Idempotency | None = None
    reuse: bool = False
    webhook: str | None = None  # the address that is told of its end

    def __post_init__(self) -> None:
        if self.reuse and self.webhook is not None:
            raise InvalidRequest("a webhook is told of a new job's end, so it does not go with reuse")


DEFAULT_TERMS = Terms()


@dataclass(frozen=True, slots=True)
class Job:
    """One request's life, as last read from the store. Times are seconds since the epoch."""

    id: str
    owner: str  # the name of its key, the digest of one without a name; "" where the server has no keys
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
    priority: Priority = Priority.NORMAL
    deadline: float | None = None  # when it fails unless it has ended
    losses: int = 0  # how often whoever made it went silent
    number: int = 0  # grows from job to job
    done: int = 0  # units (tokens, steps, tracks) of its stage
    planned: int = 0
    events: int = 1  # so far; what one sees is the newest
    read_at: float = field(default=0.0, compare=False)

    @property
    def deadline_s(self) -> float | None:
        """From its claim to its deadline, both as the database's clock has it."""
        return None if self.deadline is None or self.started_at is None else self.deadline - self.started_at


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job: it changed its status, or a stage got on. A job's events are numbered from 1,
    and the progress of later ones is never less."""

    number: int
    at: float
    status: Status
    stage: str
    done: int
    planned: int
    progress: float


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
    failures: Mapping[str, int] = field(default_factory=dict)  # failed jobs by error code; `worker_lost` is one

    @property
    def seconds_between_ends(self) -> float:
        """What is running ends one after the other, evenly: a job's run time over how many run."""
        return self.avg_job_seconds / max(1, self.running)

    def eta_s(self, queue_position: int) -> float:
        """Until a job at this place in the queue is likely to be done."""
        return queue_position * self.seconds_between_ends + self.avg_job_seconds

    def eta_of(self, job: Job) -> float | None:
        """Seconds until this job is likely to be done; `None` once it has ended."""
        if job.status.is_final:
            return None
        if job.status is Status.QUEUED or job.started_at is None:
            return self.eta_s(job.queue_position)
        run_s = max(0.0, job.read_at - job.started_at)
        by_progress_s = run_s * (1 - job.progress) / job.progress if job.progress else 0.0
        return max(0.0, self.avg_job_seconds - run_s, by_progress_s)
