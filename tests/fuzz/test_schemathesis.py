"""A minute of made-up requests in CI; `make fuzz` sends them for ten to a server with everything behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.conftest import Server
from tests.fuzz.schemathesis_run import schemathesis

SECONDS = 60
ASKS_THE_LM = "^/(format_input|v1/create_sample)$"  # which the conductor here has not; `make fuzz` asks


@pytest.mark.fuzz
@pytest.mark.timeout(4 * SECONDS)
def test_whatever_the_description_allows_is_answered_as_it_says(server: Server, tmp_path: Path) -> None:
    run = schemathesis(server.address, SECONDS, tmp_path, ASKS_THE_LM)
    assert run.returncode == 0, run.stdout[-10_000:]
    assert "Tested: " in run.stdout
