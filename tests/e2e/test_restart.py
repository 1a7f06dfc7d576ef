"""A job that was accepted is finished, whatever becomes of the server meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import Client, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture
def mortal(tmp_path: Path, tiny: Path) -> Iterator[Server]:
    server = Server(tmp_path, tiny)
    yield server
    server.stop()


def test_jobs_queued_when_the_server_stops_are_finished_by_the_next_one(
    mortal: Server, request: pytest.FixtureRequest
) -> None:
    mortal.start()
    client = Client(mortal.address)
    request.addfinalizer(client.http.close)
    done = client.ask(prompt="first", audio_duration=10, batch_size=1)
    file = client.wait(done)[0]
    waiting = [client.ask(prompt=f"later {n}", audio_duration=30, batch_size=4) for n in range(4)]
    mortal.stop()
    mortal.start()
    assert len(client.fetch(file)) > 10_000
    for task in waiting:
        assert len(client.wait(task, within_s=300)) == 4
