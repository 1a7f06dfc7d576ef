"""Where our own log lines go, and the request that each was made for."""

from __future__ import annotations

import logging
from contextvars import ContextVar

OURS = ("models", "serve_app")

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")


class TellRequest(logging.Filter):
    """Gives every line the id of the request it was made for, in the attribute that Serve's formats show."""

    def filter(self, record: logging.LogRecord) -> bool:
        if id_ := REQUEST_ID.get():
            record.request_id = id_
        return True


def log_with_serve() -> None:
    """To wherever Serve writes in this replica; without it, nobody writes what is below a warning.

    Serve's own level holds for its own lines only.
    """
    theirs = logging.getLogger("ray.serve")
    for handler in theirs.handlers:
        handler.addFilter(TellRequest())  # behind Serve's own filters, which take an id as it was sent
    for name in OURS:
        ours = logging.getLogger(name)
        ours.handlers = list(theirs.handlers)
        ours.setLevel(logging.INFO)
        ours.propagate = not ours.handlers
