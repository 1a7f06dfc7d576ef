"""What is still to be told to webhooks: owed from the transaction that ends a job, until it was told or given up."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, delete, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from serve_app.jobs.database import ONLY_READS, to_its_end
from serve_app.jobs.schema import deliveries, now


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt to tell of a job. `id` and `body` are the same in all of them; `attempt` is 1 for the first."""

    id: str
    job: str
    url: str
    body: str
    attempt: int


def owed(row: Row[Any]) -> dict[str, Any]:
    """What is owed for a whole row of a job that ended: a row of `deliveries`."""
    error = None if row.error_code is None else {"code": row.error_code, "message": row.error_message}
    ended_at = _moment(row.finished_at)
    data = {"id": row.id, "status": row.status, "created_at": _moment(row.created_at), "finished_at": ended_at}
    body = {"type": f"job.{row.status}", "timestamp": ended_at, "data": data | {"error": error}}
    return {"id": f"msg_{uuid.uuid4().hex}", "job": row.id, "url": row.webhook, "body": json.dumps(body)}


class Deliveries:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._reading = engine.execution_options(**{ONLY_READS: True})

    @to_its_end
    async def claim(self, lease_s: float, at_most: int) -> list[Delivery]:
        """Those whose time has come, for this caller alone as long as the lease lasts, and then again for anybody."""
        due = select(deliveries.c.id).where(deliveries.c.due_at <= now()).order_by(deliveries.c.due_at).limit(at_most)
        async with self._reading.connect() as connection:
            if (await connection.scalar(due.limit(1))) is None:  # as nearly always; no lock is taken for that
                return []
        async with self._engine.begin() as connection:
            ids = list(await connection.scalars(due.with_for_update(skip_locked=True)))
            claimed = await connection.execute(
                update(deliveries)
                .where(deliveries.c.id.in_(ids))
                .values(due_at=now() + lease_s, attempts=deliveries.c.attempts + 1)
                .returning(*deliveries.c)
            )
            return [Delivery(row.id, row.job, row.url, row.body, row.attempts) for row in claimed]

    @to_its_end
    async def settle(self, delivery: Delivery) -> None:
        """It is told, or given up."""
        async with self._engine.begin() as connection:
            await connection.execute(delete(deliveries).where(deliveries.c.id == delivery.id))

    @to_its_end
    async def postpone(self, delivery: Delivery, by_s: float) -> None:
        """Unless somebody else tries again already, whose attempt counts more."""
        is_it = and_(deliveries.c.id == delivery.id, deliveries.c.attempts == delivery.attempt)
        async with self._engine.begin() as connection:
            await connection.execute(update(deliveries).where(is_it).values(due_at=now() + by_s))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
