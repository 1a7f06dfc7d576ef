"""A real PostgreSQL for tests and benchmarks: no installation, no root, a folder that goes with it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

NOBODY = 65534
START_WITHIN_S = 30


class Postgres:
    """One server, reached by a socket in its own folder only."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the database that is there from the start."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        return f"postgresql://tester@/{database}?host={self._folder}"

    @property
    def socket(self) -> Path:
        return self._folder / ".s.PGSQL.5432"

    def start(self, *settings: str) -> None:
        """`settings` as in `fsync=off`. Returns when it answers."""
        if not self._data.exists():
            self._run("initdb", "-D", str(self._data), "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = (f"unix_socket_directories={self._folder}", "listen_addresses=", *settings)
        command = [_binary("postgres"), "-D", str(self._data), *(part for option in options for part in ("-c", option))]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **_as_nobody())
        deadline = time.monotonic() + START_WITHIN_S
        while self._run("pg_isready", "-h", str(self._folder), check=False):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL did not start:\n{(self._folder / 'log').read_text()}")
            time.sleep(0.02)

    def stop(self) -> None:
        """At once, as a power cut would but for what the system has not written yet."""
        if self._process is not None:
            self._process.send_signal(3)  # SIGQUIT: no goodbye to clients, recovery at the next start
            self._process.wait(START_WITHIN_S)
            self._process = None

    def kill(self) -> None:
        """All of its processes, by SIGKILL: nobody tidies up."""
        if self._process is not None:
            server, self._process = self._process, None
            workers = psutil.Process(server.pid).children(recursive=True)
            server.kill()
            server.wait()
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            psutil.wait_procs(workers, timeout=START_WITHIN_S)

    def _run(self, program: str, *arguments: str, check: bool = True) -> int:
        done = subprocess.run(
            [_binary(program), *arguments], capture_output=True, text=True, check=False, **_as_nobody()
        )
        if check and done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")
        return done.returncode


@contextmanager
def running(*settings: str) -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path may have 107 characters
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    server = Postgres(folder)
    try:
        server.start(*settings)
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


def _binary(name: str) -> str:
    """Of the wheel that brings them. The package is not imported: it has ideas of its own about servers."""
    found = importlib.util.find_spec("pgserver")
    if found is None or not found.submodule_search_locations:
        raise RuntimeError("no pgserver here; it is one of the test dependencies, which `make setup` installs")
    return str(Path(found.submodule_search_locations[0]) / "pginstall" / "bin" / name)


def _as_nobody() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
