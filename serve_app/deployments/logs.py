"""Where our own log lines go."""

from __future__ import annotations

import logging

OURS = ("models", "serve_app")


def log_with_serve() -> None:
    """To wherever Serve writes in this replica; without it, nobody writes what is below a warning.

    Serve's own level holds for its own lines only.
    """
    theirs = logging.getLogger("ray.serve")
    for name in OURS:
        ours = logging.getLogger(name)
        ours.handlers = list(theirs.handlers)
        ours.setLevel(logging.INFO)
        ours.propagate = not ours.handlers
