"""An S3 in a process of its own, and a way to it that can be cut."""

from __future__ import annotations

import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

BUCKET = "bucket"
STARTS_WITHIN_S = 60


@contextmanager
def running() -> Iterator[str]:
    """Its endpoint. There is an empty bucket, and the environment has what a client needs.

    Flask, which it is made of, puts objects into this process that whoever walks through all modules (vLLM does)
    stumbles over: so it has a process of its own.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        host, port = free.getsockname()
    endpoint = f"http://{host}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", host, "-p", str(port)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.MonkeyPatch.context() as patch:
            keys = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "ENDPOINT_URL": endpoint}
            for name, value in keys.items():
                patch.setenv(f"AWS_{name}", value)
            patch.setenv("NO_PROXY", host)
            _make_bucket(endpoint)
            yield endpoint
    finally:
        server.kill()
        server.wait()


def _make_bucket(endpoint: str) -> None:
    """As soon as it answers."""
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
            return
        except urllib.error.URLError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Wire(socketserver.ThreadingTCPServer):
    """Passes everything on to the endpoint, until so many bytes have passed in all, either way; then it is cut."""

    daemon_threads = True

    def __init__(self, endpoint: str, cut_after: int) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.far_end = (host, int(port))
        self.bytes_left = cut_after

    def carries(self, chunk: bytes) -> bool:
        self.bytes_left -= len(chunk)
        return self.bytes_left >= 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @classmethod
    @contextmanager
    def laid(cls, endpoint: str, cut_after: int) -> Iterator[Wire]:
        with cls(endpoint, cut_after) as wire:
            thread = threading.Thread(target=wire.serve_forever, args=(0.01,))
            thread.start()
            yield wire
            wire.shutdown()
            thread.join()


class _Passing(socketserver.BaseRequestHandler):
    server: Wire

    def handle(self) -> None:
        with socket.create_connection(self.server.far_end) as far:
            back = threading.Thread(target=self._carry, args=(far, self.request))
            back.start()
            self._carry(self.request, far)
            back.join()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while (chunk := source.recv(65536)) and self.server.carries(chunk):
                target.sendall(chunk)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
