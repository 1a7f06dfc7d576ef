"""Tells callers' servers that a job has ended: signed as Standard Webhooks has it, until they hear or it is no use.

A message may arrive twice, under the same `webhook-id`; in which order messages arrive is not said.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from standardwebhooks import Webhook

from models.errors import EngineError, InvalidRequest
from serve_app.jobs.deliveries import Deliveries, Delivery
from serve_app.outbound import WITHIN_S, Outbound, Rules
from serve_app.settings import WebhookSettings

log = logging.getLogger(__name__)

MINUTE, HOUR = 60.0, 3600.0
RETRY_AFTER_S = (5.0, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 10 * HOUR)  # each a tenth more or less
LEASE_S = 3 * WITHIN_S
LOOK_EVERY_S = 1.0
AT_ONCE = 32
GONE = 410  # the receiver wants no more of it
SECRET_BYTES = range(24, 65)  # as the standard has it


class BadSecret(EngineError):
    """A secret that nothing can be signed with."""

    code = "bad_webhook_secret"


class Signer:
    """Signs with every secret, so that receivers may change from one to the next when they like."""

    def __init__(self, secrets: Sequence[str]) -> None:
        """Raises BadSecret."""
        self._keys = [Webhook(_bytes_of(secret)) for secret in secrets]

    def headers(self, delivery: Delivery) -> dict[str, str]:
        sent_at = datetime.now(UTC)
        signatures = [key.sign(delivery.id, sent_at, delivery.body) for key in self._keys]
        return {
            "content-type": "application/json",
            "user-agent": "acestep-serve",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


class Courier:
    """Delivers what is due until it is closed; any number of them share the work."""

    def __init__(
        self,
        deliveries: Deliveries,
        signer: Signer,
        outbound: Outbound,
        *,
        retry_after_s: Sequence[float] = RETRY_AFTER_S,
        look_every_s: float = LOOK_EVERY_S,
        lease_s: float = LEASE_S,
    ) -> None:
        self._deliveries = deliveries
        self._signer = signer
        self._outbound = outbound
        self._retry_after_s = retry_after_s
        self._look_every_s = look_every_s
        self._lease_s = lease_s
        self._trips: set[asyncio.Task[None]] = set()
        self._is_closing = asyncio.Event()

    async def work(self) -> None:
        while not self._is_closing.is_set():
            try:
                await self._set_out()
            except Exception:  # whatever the database raises
                log.exception("could not look for webhooks to call; trying again")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_closing.wait(), self._look_every_s)
        await asyncio.gather(*self._trips)

    def close(self) -> None:
        """`work` ends once those on their way are back, which takes seconds."""
        self._is_closing.set()

    async def _set_out(self) -> None:
        if len(self._trips) < AT_ONCE:
            for delivery in await self._deliveries.claim(self._lease_s, AT_ONCE - len(self._trips)):
                trip = asyncio.create_task(self._make(delivery), name=f"webhook of job {delivery.job}")
                self._trips.add(trip)
                trip.add_done_callback(self._trips.discard)

    async def _make(self, delivery: Delivery) -> None:
        """One attempt. An attempt whose end cannot be stored is made again when its lease ends."""
        try:
            failure, is_final = await self._try(delivery)
            if failure is None:
                await self._deliveries.settle(delivery)
            elif is_final or delivery.attempt > len(self._retry_after_s):
                log.warning(
                    "job %s: its webhook is given up after attempt %d: %s", delivery.job, delivery.attempt, failure
                )
                await self._deliveries.settle(delivery)
            else:
                log.info("job %s: attempt %d at its webhook failed: %s", delivery.job, delivery.attempt, failure)
                after_s = self._retry_after_s[delivery.attempt - 1]
                await self._deliveries.postpone(delivery, after_s * random.uniform(0.9, 1.1))
        except Exception:  # whatever the database raises
            log.exception("job %s: what came of its webhook could not be stored", delivery.job)

    async def _try(self, delivery: Delivery) -> tuple[str | None, bool]:
        """What failed, without the URL, which may hold secrets; and whether it always will."""
        try:
            status = await self._outbound.post(delivery.url, delivery.body, self._signer.headers(delivery))
        except Exception as error:  # a caller chose the address, and may have found one that no library foresaw
            return type(error).__name__, False
        return (None if 200 <= status < 300 else f"HTTP {status}"), status == GONE


@asynccontextmanager
async def delivering(settings: WebhookSettings, deliveries: Deliveries) -> AsyncIterator[None]:
    """Webhooks are called meanwhile, where there is a secret to sign with. Raises BadSecret."""
    secrets = read_secrets(settings)
    if not secrets:
        yield
        return
    outbound = Outbound(rules_of(settings))
    courier = Courier(deliveries, Signer(secrets), outbound)
    work = asyncio.create_task(courier.work(), name="webhooks")
    try:
        yield
    finally:
        courier.close()
        await work
        outbound.close()


class WebhookGate:
    """Says which URLs a job may have told of its end. Raises BadSecret where none could ever be signed."""

    def __init__(self, settings: WebhookSettings) -> None:
        secrets = read_secrets(settings)
        Signer(secrets)
        self.is_open = bool(secrets)
        self._rules = rules_of(settings)
        self._secret_from = settings.secret_from

    def check(self, url: str) -> None:
        """Raises InvalidRequest."""
        if not self.is_open:
            raise InvalidRequest(
                f"webhooks are off on this server, since {self._secret_from} holds no secret to sign with"
            )
        self._rules.check_url(url)


def rules_of(settings: WebhookSettings) -> Rules:
    return Rules(frozenset(settings.http_hosts), settings.allow_private_networks)


def read_secrets(settings: WebhookSettings) -> tuple[str, ...]:
    secrets = os.environ.get(settings.secret_from, "").split(",")
    return tuple(secret.strip() for secret in secrets if secret.strip())


def _bytes_of(secret: str) -> bytes:
    encoded = secret.removeprefix("whsec_").rstrip("=")
    try:
        decoded = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (ValueError, binascii.Error):
        decoded = b""
    if len(decoded) not in SECRET_BYTES:
        raise BadSecret(
            f"a webhook secret is whsec_ and base64 of {SECRET_BYTES[0]} to {SECRET_BYTES[-1]} bytes; seen are "
            f"{len(decoded)} bytes in {len(secret)} characters"
        )
    return decoded
