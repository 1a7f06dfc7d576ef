"""Webhooks from a real store to a real server."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from models.errors import InvalidRequest
from models.music import Made, MusicRequest
from serve_app.jobs.job import Job, Terms
from serve_app.jobs.store import JobStore, QueueLimits
from serve_app.outbound import Outbound, Rules
from serve_app.settings import WebhookSettings
from serve_app.webhooks import BadSecret, Courier, Signer, WebhookGate, delivering
from tests.receiver import NAME, Receiver, receiving

pytestmark = pytest.mark.real

TURBO = "acestep-v15-turbo"
SECRET, OTHER = ("whsec_" + base64.b64encode(letter * 24).decode() for letter in (b"a", b"b"))
RULES = Rules(http_hosts=frozenset({NAME}), allows_private=True)
AT_ONCE = (0.0,) * 5


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[JobStore]:
    store = await opened(tmp_path)
    yield store
    await store.close()


async def opened(folder: Path) -> JobStore:
    return await JobStore.open(f"sqlite:///{folder / 'jobs.db'}", QueueLimits(jobs=50, attempts=2))


async def here(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


@asynccontextmanager
async def courier(store: JobStore, *secrets: str, **pace: Any) -> AsyncIterator[asyncio.Task[None]]:
    pace.setdefault("retry_after_s", AT_ONCE)
    outbound = Outbound(RULES, here)
    courier = Courier(store.deliveries, Signer(secrets or (SECRET,)), outbound, look_every_s=0.01, **pace)
    work = asyncio.create_task(courier.work())
    yield work
    courier.close()
    await asyncio.gather(work, return_exceptions=True)


async def until(is_so: Callable[[], object]) -> None:
    while not is_so():
        await asyncio.sleep(0.01)


async def end_one(store: JobStore, receiver: Receiver) -> Job:
    """A job that was to be told of and succeeded."""
    request = MusicRequest(model=TURBO, seeds=(1,))
    await store.submit(request, "anna", Terms(webhook=f"http://{NAME}:{receiver.port}/hook?token=swordfish"))
    job = await store.claim("w", 60, [TURBO])
    assert job is not None
    await store.succeed(job, Made(tracks=(), plans=(), dit_model=TURBO, lm_model=None, seconds_by_stage={}))
    return job


async def are_all_told(store: JobStore) -> bool:
    return await store.deliveries.claim(0, 10) == []


async def test_a_receiver_hears_of_the_end_and_can_check_who_says_so(store: JobStore, receiver: Receiver) -> None:
    job = await end_one(store, receiver)
    async with courier(store):
        await until(lambda: receiver.received)
    (seen,) = await store.get([job.id], "anna")
    assert seen is not None
    (received,) = receiver.received
    told = Webhook(SECRET).verify(received.body, received.headers)
    assert told["type"] == "job.succeeded"
    assert told["timestamp"] == told["data"]["finished_at"]
    assert {name: told["data"][name] for name in ("id", "status", "error")} == {
        "id": job.id,
        "status": "succeeded",
        "error": None,
    }
    assert received.path == "/hook?token=swordfish"
    assert received.headers["content-type"] == "application/json"
    assert await are_all_told(store)


async def test_a_changed_message_or_another_secret_is_found_out(store: JobStore, receiver: Receiver) -> None:
    await end_one(store, receiver)
    async with courier(store):
        await until(lambda: receiver.received)
    (received,) = receiver.received
    with pytest.raises(WebhookVerificationError):
        Webhook(OTHER).verify(received.body, received.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(received.body.replace(b"succeeded", b"failed"), received.headers)


async def test_while_secrets_change_both_are_good(store: JobStore, receiver: Receiver) -> None:
    await end_one(store, receiver)
    async with courier(store, SECRET, OTHER):
        await until(lambda: receiver.received)
    (received,) = receiver.received
    for secret in (SECRET, OTHER):
        Webhook(secret).verify(received.body, received.headers)


@pytest.mark.parametrize("status", [500, 503, 404, 302, 307])
async def test_a_receiver_that_fails_is_told_again_under_the_same_id(
    store: JobStore, receiver: Receiver, status: int
) -> None:
    receiver.statuses = [status]
    await end_one(store, receiver)
    async with courier(store):
        await until(lambda: len(receiver.received) == 2)
    first, second = receiver.received
    assert first.path == second.path
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    Webhook(SECRET).verify(second.body, second.headers)
    assert await are_all_told(store)


async def test_a_failure_waits_for_its_time(store: JobStore, receiver: Receiver) -> None:
    receiver.statuses = [500]
    await end_one(store, receiver)
    async with courier(store, retry_after_s=(3600.0,)):
        await until(lambda: receiver.received)
    assert await are_all_told(store)  # none is due
    async with courier(store):
        await asyncio.sleep(0.05)
    assert len(receiver.received) == 1


async def test_a_courier_killed_on_its_way_is_followed_by_another(
    store: JobStore, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.hangs.set()
    await end_one(store, receiver)
    async with courier(store, lease_s=0.5) as work:
        await until(lambda: receiver.received)
        for task in asyncio.all_tasks():
            if task.get_name().startswith("webhook of job"):
                task.cancel()
        work.cancel()
    receiver.hangs.clear()
    restarted = await opened(tmp_path)
    async with courier(restarted):
        await until(lambda: len(receiver.received) == 2)
    assert await are_all_told(restarted)
    await restarted.close()
    first, second = receiver.received
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])


async def test_after_the_last_attempt_it_is_given_up_and_the_log_says_so(
    store: JobStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.statuses = [500] * 9
    job = await end_one(store, receiver)
    with caplog.at_level(logging.INFO, "serve_app.webhooks"):
        async with courier(store, retry_after_s=(0.0, 0.0)):
            await until(lambda: "given up" in caplog.text)
    assert f"job {job.id}: its webhook is given up after attempt 3: HTTP 500" in caplog.text
    assert "swordfish" not in caplog.text
    assert len(receiver.received) == 3
    assert await are_all_told(store)


async def test_a_receiver_that_is_gone_is_left_alone(store: JobStore, receiver: Receiver) -> None:
    receiver.statuses = [410]
    await end_one(store, receiver)
    async with courier(store):
        await until(lambda: receiver.received)
    assert await are_all_told(store)


async def test_many_couriers_tell_each_receiver_once(store: JobStore, receiver: Receiver, tmp_path: Path) -> None:
    jobs = [await end_one(store, receiver) for _ in range(20)]
    other = await opened(tmp_path)
    async with courier(store), courier(other):
        await until(lambda: len(receiver.received) >= 20)
    await other.close()
    assert sorted(json.loads(received.body)["data"]["id"] for received in receiver.received) == sorted(
        job.id for job in jobs
    )


async def test_a_database_that_is_away_is_waited_for(
    store: JobStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await end_one(store, receiver)
    deliveries = store.deliveries
    claim, failures = deliveries.claim, [OSError("gone")]

    async def claim_later(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return await claim(*args)

    monkeypatch.setattr(deliveries, "claim", claim_later)
    monkeypatch.setattr(JobStore, "deliveries", deliveries)
    async with courier(store):
        await until(lambda: receiver.received)
    assert "could not look for webhooks to call" in caplog.text


async def test_without_a_secret_webhooks_are_off(store: JobStore, receiver: Receiver) -> None:
    await end_one(store, receiver)
    with pytest.raises(InvalidRequest, match="webhooks are off on this server, since ACESTEP_WEBHOOK_SECRET holds no"):
        WebhookGate(WebhookSettings()).check("https://example.com/hook")
    async with delivering(WebhookSettings(), store.deliveries):
        await asyncio.sleep(0.05)
    assert not await are_all_told(store)


async def test_with_a_secret_in_the_environment_they_are_delivered(
    store: JobStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACESTEP_WEBHOOK_SECRET", SECRET)
    settings = WebhookSettings(http_hosts=("127.0.0.1",), allow_private_networks=True)
    url = f"http://127.0.0.1:{receiver.port}/"
    WebhookGate(settings).check(url)
    job = await store.submit(MusicRequest(model=TURBO, seeds=(1,)), "anna", Terms(webhook=url))
    await store.cancel(job.id, "anna")
    async with delivering(settings, store.deliveries):
        await until(lambda: receiver.received)
    assert json.loads(receiver.received[0].body)["type"] == "job.cancelled"


def test_a_url_that_must_not_be_called_is_refused_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_WEBHOOK_SECRET", SECRET)
    gate = WebhookGate(WebhookSettings())
    gate.check("https://example.com/hook")
    with pytest.raises(InvalidRequest, match="allowed is https"):
        gate.check("http://example.com/hook")


@pytest.mark.parametrize("secret", ["whsec_", "swordfish", "whsec_c2hvcnQ=", "whsec_" + "A" * 100, "whsec_!!!!"])
def test_a_secret_that_signs_nothing_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(BadSecret, match="base64 of 24 to 64 bytes") as caught:
        Signer([secret])
    assert secret == "whsec_" or secret not in str(caught.value)


def test_a_webhook_does_not_go_with_a_job_that_is_used_again() -> None:
    with pytest.raises(InvalidRequest, match="does not go with reuse"):
        Terms(webhook="https://example.com/hook", reuse=True)
