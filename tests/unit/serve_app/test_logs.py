from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from serve_app.logs import OURS, log_with_serve


@pytest.fixture(autouse=True)
def left_as_it_was() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("ray.serve", *OURS)]
    before = [(own, own.handlers, own.level, own.propagate) for own in loggers]
    yield
    for own, handlers, level, propagate in before:
        own.handlers, own.level, own.propagate = handlers, level, propagate


def test_our_lines_are_written_where_serve_writes_whatever_its_own_level() -> None:
    written = io.StringIO()
    theirs = logging.getLogger("ray.serve")
    theirs.handlers = [logging.StreamHandler(written)]
    theirs.setLevel(logging.WARNING)

    log_with_serve()
    logging.getLogger("models.lm.planner").info("metadata 0: open")
    theirs.info("access log")

    assert written.getvalue() == "metadata 0: open\n"
