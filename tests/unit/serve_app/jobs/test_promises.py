"""Whatever is done to the store, in whatever order, wherever the process that does it dies: no promise is broken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import Row, event

from models.errors import Overloaded
from models.music import AudioFormat, Made, MusicRequest, Track
from serve_app.jobs.job import NEXT, Idempotency, Job, Priority, Status, Terms
from serve_app.jobs.store import IdempotencyConflict, JobStore, LeaseLost, QueueLimits
from tests.unit.serve_app.jobs.promises import broken_counts, pass_time, rows_of, wipe

T = TypeVar("T")

MODELS = ("acestep-v15-turbo", "acestep-v15-base")
LIMITS = QueueLimits(jobs=4, attempts=2, jobs_per_owner=3)
LONG = settings(max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
SHORT = settings(LONG, max_examples=5, stateful_step_count=25, derandomize=True, database=None)

WEIGHTS = {
    "submit": 6,
    "claim": 5,
    "work": 5,
    "cancel": 2,
    "reap": 1,
    "forget": 1,
    "lease_runs_out": 2,
    "deadline_passes": 1,
}
VERBS = ("renew", "report", "succeed", "fail", "mark_cancelled", "give_back")


def any_call(random: Random) -> tuple[Any, ...]:
    """A method of Promises and its arguments. Hypothesis left to itself dwells on a queue with nothing in it."""
    (name,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    # after how many more statements the process dies (a commit is one), if it does; most calls take 4 to 8
    dies = random.choice((None, None, random.randrange(9)))
    index = random.randrange(30)
    match name:
        case "submit":
            once = Idempotency(random.choice("12"), random.choice(("a body", "a body", "another")))
            terms = Terms(
                random.choice(list(Priority)),
                random.choice((*[None] * 4, 60.0, 60.0, -1.0)),
                random.choice((None, once)),
            )
            return name, random.choice(("anna", "bert")), random.choice(MODELS), terms, dies
        case "claim":
            return name, random.choice((60.0, 60.0, 60.0, -1.0)), random.choice((MODELS, MODELS, MODELS[:1])), dies
        case "work":
            return name, random.choice((0, 0, 1, 2, 3, 4)), random.choice(VERBS), random.random(), dies
        case "cancel":
            return name, index, dies
        case "lease_runs_out" | "deadline_passes":
            return name, index
    return name, dies


class Died(Exception):
    """The process that called the store is no more."""


class Fuse:
    """Lets a process die before its n-th statement from now, or in place of the commit."""

    def __init__(self) -> None:
        self._left: int | None = None
        self.is_blown = False

    def set(self, statements: int | None) -> None:
        self._left = statements
        self.is_blown = False

    def burn(self, *_: Any) -> None:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._left = None
                self.is_blown = True
                raise Died


class Promises(RuleBasedStateMachine):
    """A model as coarse as the promises: what may have become of each job since the last look."""

    url = ""
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._fuse = Fuse()
        self._run(wipe(self.url))
        self._store = self._run(self._open())
        self._seen: dict[str, Row[Any]] = {}
        self._promised: set[str] = set()  # ids whose callers were answered
        self._held: list[Job] = []  # claims that were answered, long lost ones too

    def teardown(self) -> None:
        self._run(self._store.close())
        self._runner.close()

    @rule(call=st.randoms(use_true_random=True).map(any_call))
    def call(self, call: tuple[Any, ...]) -> None:
        name, *arguments = call
        getattr(self, f"_{name}")(*arguments)

    def _submit(self, owner: str, model: str, terms: Terms, dies: int | None) -> None:
        once = terms.idempotency
        queued = [row for row in self._seen.values() if row.status == Status.QUEUED]
        of_owner = [row for row in queued if row.owner == owner]
        # more than the limits, where running ones were given back
        is_full = len(queued) >= LIMITS.jobs or len(of_owner) >= (LIMITS.jobs_per_owner or 0)
        known = next(
            (row for row in self._seen.values() if once and (row.owner, row.idempotency_key) == (owner, once.key)), None
        )
        request = MusicRequest(model=model, seeds=(1,))
        try:
            job = self._do(self._store.submit(request, owner, terms), dies)
        except Overloaded:
            assert is_full
            assert known is None
            self._look(nothing_changed=True)
        except IdempotencyConflict:
            assert known is not None
            assert once is not None
            assert known.body_sha256 != once.body_sha256
            self._look(nothing_changed=True)
        except Died:
            self._look(nothing_changed=True)
        else:
            self._promised.add(job.id)
            if known is None:
                assert not is_full
                assert job.id not in self._seen
                self._look(new=job.id)
                assert self._seen[job.id].status == Status.QUEUED
            else:
                assert (job.id, once and once.body_sha256) == (known.id, known.body_sha256)
                self._look(nothing_changed=True)

    def _claim(self, lease_s: float, models: tuple[str, ...], dies: int | None) -> None:
        before = dict(self._seen)
        try:
            job = self._do(self._store.claim("a worker", lease_s, models), dies)
        except Died:
            return self._look(nothing_changed=True)
        self._look()
        waiting = [row for row in self._seen.values() if row.status == Status.QUEUED and row.model in models]
        if job is None:
            assert waiting == []
            return None
        row = self._seen[job.id]
        assert (row.status, row.fence, row.fence) == (Status.RUNNING, job.fence, before[job.id].fence + 1)
        assert all((row.turn, row.number) < (other.turn, other.number) for other in waiting)
        self._held.append(job)
        return None

    def _work(self, index: int, verb: str, progress: float, dies: int | None) -> None:
        if not self._held:
            return None
        job = self._held[-1 - index % len(self._held)]
        before = self._seen.get(job.id)
        holds = before is not None and (before.status, before.fence) == (Status.RUNNING, job.fence)
        made = made_of(job)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "renew": lambda: self._store.renew(job, 60),
            "report": lambda: self._store.report(job, "denoise", progress),
            "succeed": lambda: self._store.succeed(job, made),
            "fail": lambda: self._store.fail(job, "bad_audio", "silence"),
            "mark_cancelled": lambda: self._store.mark_cancelled(job),
            "give_back": lambda: self._store.give_back(job),
        }
        try:
            self._do(calls[verb](), dies)
        except Died:
            return self._look(nothing_changed=True)
        except LeaseLost:
            assert not holds
            return self._look(nothing_changed=True)
        assert holds
        assert before is not None
        self._look()
        row = self._seen[job.id]
        withdrawn_or_queued = Status.CANCELLED if before.cancel_requested else Status.QUEUED
        expected = {
            "succeed": Status.SUCCEEDED,
            "fail": Status.FAILED,
            "mark_cancelled": Status.CANCELLED,
            "give_back": withdrawn_or_queued,
        }
        assert row.status == expected.get(verb, Status.RUNNING)
        assert verb != "succeed" or row.made == made.model_dump_json()
        assert row.progress >= before.progress
        return None

    def _cancel(self, index: int, dies: int | None) -> None:
        before = self._pick(index)
        if before is None:
            return None
        try:
            job = self._do(self._store.cancel(before.id, before.owner), dies)
        except Died:
            return self._look(nothing_changed=True)
        self._look()
        assert job is not None
        assert job.status == (Status.CANCELLED if before.status == Status.QUEUED else before.status)
        assert before.status != Status.RUNNING or self._seen[job.id].cancel_requested
        return None

    def _reap(self, dies: int | None) -> None:
        try:
            self._do(self._store.reap(), dies)
        except Died:
            return self._look(nothing_changed=True)
        self._look()
        assert all(row.lease_until > 0 for row in self._seen.values() if row.status == Status.RUNNING)
        return None

    def _forget(self, dies: int | None) -> None:
        ended = {id_: row for id_, row in self._seen.items() if Status(row.status).is_final}
        try:
            forgotten = self._do(self._store.forget(-1), dies)
        except Died:
            return self._look(nothing_changed=True)
        rows = {row.id: row for row in self._run(rows_of(self._store))}
        gone = self._seen.keys() - rows.keys()
        assert gone == ended.keys()
        assert forgotten.jobs == len(gone)
        assert sorted(forgotten.files) == sorted(
            track.ref for id_ in gone if ended[id_].made for track in Made.model_validate_json(ended[id_].made).tracks
        )
        self._promised -= gone
        for id_ in gone:
            del self._seen[id_]
        self._look(nothing_changed=True)
        return None

    def _lease_runs_out(self, index: int) -> None:
        self._pass_time(index, Status.RUNNING, lease_until=0.0)

    def _deadline_passes(self, index: int) -> None:
        self._pass_time(index, Status.QUEUED, deadline=0.0)

    def _pass_time(self, index: int, status: Status, **times: float) -> None:
        row = self._pick(index, status)
        if row is None:
            return
        (job,) = self._run(self._store.get([row.id], row.owner))
        assert job is not None
        self._run(pass_time(self._store, job, **times))
        self._look()

    def _pick(self, index: int, *statuses: Status) -> Row[Any] | None:
        rows = [row for row in self._seen.values() if not statuses or row.status in statuses]
        return rows[index % len(rows)] if rows else None

    def _look(self, nothing_changed: bool = False, new: str | None = None) -> None:
        """Checks every row against what it was at the last look."""
        type(self).steps += 1
        rows = {row.id: row for row in self._run(rows_of(self._store))}
        assert self._promised <= rows.keys()
        assert rows.keys() - self._seen.keys() == ({new} if new else set())
        assert self._seen.keys() <= rows.keys()
        for id_, before in self._seen.items():
            row = rows[id_]
            if nothing_changed or Status(before.status).is_final:
                assert row == before
            assert Status(row.status) in reachable(Status(before.status))
            assert row.fence >= before.fence
            if before.cancel_requested:
                assert row.status != Status.QUEUED
                assert row.error_code not in ("worker_lost", "deadline_exceeded")
        for row in rows.values():
            assert row.losses < LIMITS.attempts or Status(row.status).is_final
            assert (row.status == Status.SUCCEEDED) == (row.made is not None)
            assert (row.status in (Status.FAILED, Status.CANCELLED)) == (row.error_code is not None)
            assert (row.status == Status.RUNNING) == (row.lease_until is not None)
            assert Status(row.status).is_final == (row.finished_at is not None)
        self._seen = rows
        assert self._run(broken_counts(self._store)) == []

    def _do(self, call: Awaitable[T], dies: int | None) -> T:
        """Raises Died where it did before its commit; the next process opens the store anew."""
        self._fuse.set(dies)
        try:
            result = self._run(call)
        except Exception:
            if self._fuse.is_blown:
                self._reopen()
            raise
        finally:
            self._fuse.set(None)
        return result

    def _reopen(self) -> None:
        self._run(self._store.close())
        self._store = self._run(self._open())

    async def _open(self) -> JobStore:
        store = await JobStore.open(self.url, LIMITS)
        for moment in ("before_cursor_execute", "commit"):
            event.listen(store._engine.sync_engine, moment, self._fuse.burn)
        return store

    def _run(self, call: Awaitable[T]) -> T:
        async def wait() -> T:
            return await call

        return self._runner.run(wait())


def made_of(job: Job) -> Made:
    track = Track(
        ref=f"{job.id}-{job.fence}.mp3", audio_format=AudioFormat.MP3, seconds=10.0, size=1, sha256=str(job.fence)
    )
    return Made(tracks=(track,), plans=(), dit_model=job.request.model, lm_model=None, seconds_by_stage={})


def reachable(status: Status) -> set[Status]:
    """Within one call, which may take a job from its worker and give it to another."""
    return {status, *NEXT[status], *(later for next_ in NEXT[status] for later in NEXT[next_])}


def run_on(url: str, how: settings) -> int:
    """Steps done."""

    class Here(Promises):
        pass

    Here.url = url
    run_state_machine_as_test(Here, settings=how)
    return Here.steps


def test_no_promise_is_broken_wherever_a_process_dies(url: str) -> None:
    assert run_on(url, SHORT) > 50


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_no_promise_is_broken_in_thousands_of_steps(url: str) -> None:
    assert run_on(url, LONG) > 2000
