"""A word from the database that a job waits, so that conductors need not look so often. It may get lost: whoever waits
for one looks now and then all the same. PostgreSQL only."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, func
from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger(__name__)

CHANNEL = "acestep_queued"
SECONDS_BETWEEN_TRIES = 2.0
SECONDS_BETWEEN_SIGNS = 5.0  # of life, or silence would be taken for an empty queue


def hint(dialect: str) -> tuple[ColumnElement[Any], ...]:
    """Something to return beside a row that is now in the queue: it tells all who listen, once it is committed."""
    return (func.pg_notify(CHANNEL, "").label("hint"),) if dialect == "postgresql" else ()


class Hints:
    """One listener, with a connection of its own."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.is_listening = False

    async def listen(self, heard: Callable[[], None]) -> None:
        """Until cancelled; on another connection when one is lost. At once where nothing will ever be heard."""
        while self._engine.dialect.name == "postgresql":
            try:
                await self._listen(heard)
            except Exception as error:  # whatever the driver raises: without hints, conductors look more often
                log.warning("no hints of new jobs (%s); trying again in %s s", error, SECONDS_BETWEEN_TRIES)
            finally:
                self.is_listening = False
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)

    async def _listen(self, heard: Callable[[], None]) -> None:
        async with self._engine.connect() as connection:
            try:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                await driver.add_listener(CHANNEL, lambda *_: heard())
                self.is_listening = True
                heard()  # what came before is not told again
                while True:
                    await asyncio.sleep(SECONDS_BETWEEN_SIGNS)
                    await driver.execute("SELECT 1", timeout=SECONDS_BETWEEN_SIGNS)
            finally:
                await connection.invalidate()  # nobody else is to have one that listens
