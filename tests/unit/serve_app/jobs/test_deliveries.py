"""What is owed to webhooks, on both databases."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from serve_app.jobs.deliveries import Delivery
from serve_app.jobs.job import Job, Terms
from serve_app.jobs.store import JobStore, LeaseLost
from tests.unit.serve_app.jobs.promises import pass_time
from tests.unit.serve_app.jobs.test_store import MADE, TURBO, claim, request

URL = "https://example.com/hook"


async def begin(store: JobStore, webhook: str | None = URL, deadline_s: float | None = None) -> Job:
    await store.submit(request(), "anna", Terms(webhook=webhook, deadline_s=deadline_s))
    return await claim(store)


async def owed(store: JobStore, lease_s: float = 60) -> list[Delivery]:
    return await store.deliveries.claim(lease_s, 10)


async def lose_twice(store: JobStore, job: Job) -> None:
    for _ in range(2):
        await pass_time(store, job, lease_until=0.0)
        await store.claim("another", 60, [TURBO])


async def cancel_running(store: JobStore, job: Job) -> None:
    await store.cancel(job.id, "anna")
    await store.give_back(job)


async def miss_the_deadline(store: JobStore, job: Job) -> None:
    await pass_time(store, job, deadline=0.0)
    await store.reap()


@pytest.mark.parametrize(
    ("end", "told", "code"),
    [
        (lambda store, job: store.succeed(job, MADE), "succeeded", None),
        (lambda store, job: store.fail(job, "bad_audio", "silent"), "failed", "bad_audio"),
        (lambda store, job: store.mark_cancelled(job), "cancelled", "cancelled"),
        (cancel_running, "cancelled", "cancelled"),
        (lose_twice, "failed", "worker_lost"),
        (miss_the_deadline, "failed", "deadline_exceeded"),
    ],
)
async def test_every_end_is_owed_once(
    store: JobStore, end: Callable[[JobStore, Job], Awaitable[None]], told: str, code: str | None
) -> None:
    job = await begin(store, deadline_s=1000)
    assert await owed(store) == []
    await end(store, job)
    (delivery,) = await owed(store)
    body = json.loads(delivery.body)
    assert (delivery.job, delivery.url, delivery.attempt, body["type"]) == (job.id, URL, 1, f"job.{told}")
    assert (body["data"]["id"], body["data"]["status"]) == (job.id, told)
    assert (body["data"]["error"] or {}).get("code") == code
    assert await owed(store) == []


async def test_a_queued_job_that_is_cancelled_is_owed_too(store: JobStore) -> None:
    job = await store.submit(request(), "anna", Terms(webhook=URL))
    await store.cancel(job.id, "anna")
    assert len(await owed(store)) == 1


async def test_a_job_without_a_webhook_owes_nothing(store: JobStore) -> None:
    await store.succeed(await begin(store, webhook=None), MADE)
    assert await owed(store) == []


async def test_an_end_that_is_refused_owes_nothing(store: JobStore) -> None:
    job = await begin(store)
    await pass_time(store, job, lease_until=0.0)
    await claim(store)
    with pytest.raises(LeaseLost):
        await store.succeed(job, MADE)
    assert await owed(store) == []


async def test_what_is_owed_outlives_its_job(store: JobStore) -> None:
    await store.succeed(await begin(store), MADE)
    await store.forget(age_s=0)
    assert len(await owed(store)) == 1


async def test_it_is_one_claimants_until_its_lease_ends(store: JobStore) -> None:
    for _ in range(4):
        await store.succeed(await begin(store), MADE)
    claims = await asyncio.gather(*(store.deliveries.claim(60, 2) for _ in range(3)))
    assert len({delivery.id for claimed in claims for delivery in claimed}) == sum(map(len, claims)) >= 2


async def test_it_is_anybodys_once_the_lease_ends(store: JobStore) -> None:
    await store.succeed(await begin(store), MADE)
    first = await owed(store, lease_s=0)
    second = await owed(store)
    assert [delivery.id for delivery in first] == [delivery.id for delivery in second]


async def test_what_was_told_is_owed_no_more(store: JobStore) -> None:
    await store.succeed(await begin(store), MADE)
    (delivery,) = await owed(store, lease_s=0)
    await store.deliveries.settle(delivery)
    assert await owed(store) == []


async def test_only_the_newest_attempt_says_when_to_try_again(store: JobStore) -> None:
    await store.succeed(await begin(store), MADE)
    (first,) = await owed(store, lease_s=0)
    (second,) = await owed(store, lease_s=60)
    assert (second.id, second.attempt) == (first.id, 2)
    await store.deliveries.postpone(first, 0)
    assert await owed(store) == []
    await store.deliveries.postpone(second, 0)
    assert [delivery.attempt for delivery in await owed(store)] == [3]
