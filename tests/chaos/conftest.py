"""The servers that faults are done to, and the table of what came of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.chaos.ordeal import Outcome
from tests.chaos.promise import undisturbed
from tests.chaos.servers import Cluster, Lone
from tests.postgres import running

S = TypeVar("S", bound=Lone)
OUTCOMES = pytest.StashKey[list[Outcome]]()


@pytest.fixture(scope="session")
def outcomes(pytestconfig: pytest.Config) -> list[Outcome]:
    return pytestconfig.stash.setdefault(OUTCOMES, [])


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints") / "tiny"


@pytest.fixture(scope="session")
def reference() -> dict[int, str]:
    """Each song's SHA-256; made by the first server that starts."""
    return {}


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory, tiny: Path, reference: dict[int, str]) -> Iterator[Lone]:
    server = Lone(tmp_path_factory.mktemp("lone"), tiny)
    yield from served(server, reference)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, tiny: Path, reference: dict[int, str]) -> Iterator[Cluster]:
    with running() as postgres:
        yield from served(Cluster(tmp_path_factory.mktemp("cluster"), tiny, postgres), reference)


def served(server: S, reference: dict[int, str]) -> Iterator[S]:
    try:
        server.start()
        if not reference:
            reference.update(undisturbed(server.address))
        yield server
    finally:
        server.stop()


def pytest_unconfigure(config: pytest.Config) -> None:
    """After pytest's own last line: a table for people and, as the last line, one JSON document."""
    outcomes = config.stash.get(OUTCOMES, [])
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not outcomes or reporter is None:
        return
    names = [field.name for field in dataclasses.fields(Outcome)]
    rows = [dataclasses.asdict(outcome) for outcome in outcomes]
    widths = [34, *(11 for _ in names[1:])]
    for cells in ([name.replace("_", " ") for name in names], *(row.values() for row in rows)):
        first, *rest = (f"{cell!s:{'<' if index == 0 else '>'}{widths[index]}}" for index, cell in enumerate(cells))
        reporter.write_line(first + "".join(rest))
    reporter.write_line(json.dumps({"benchmark": "chaos", "rows": rows}))
