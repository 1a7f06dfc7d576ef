"""Engine processes that end with the process that started them, however that one ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def die_with_parent() -> None:
    """In a child process of multiprocessing: kills it as soon as its parent is gone. Elsewhere does nothing.

    A killed parent cannot shut its children down, and an engine left behind keeps the device's memory.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="die-with-parent", daemon=True).start()
