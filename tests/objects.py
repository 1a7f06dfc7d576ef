"""An S3 of this process's own, and a way to it that can be cut."""

from __future__ import annotations

import socket
import socketserver
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from moto.server import ThreadedMotoServer

BUCKET = "bucket"


@contextmanager
def running() -> Iterator[str]:
    """Its endpoint. There is an empty bucket, and the environment has what a client needs."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as patch:
        environment = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1", "ENDPOINT_URL": endpoint}
        for name, value in environment.items():
            patch.setenv(f"AWS_{name}", value)
        patch.setenv("NO_PROXY", host)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")).close()
        yield endpoint
    server.stop()


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
