"""Bodies made to exhaust a server: its memory stays bounded, and it answers others throughout."""

from __future__ import annotations

import io
import json
import resource
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress

import httpx
import numpy as np
import pytest
import soundfile

from tests.fuzz.conftest import Bystander, Server
from tests.fuzz.server import PATIENCE_S

pytestmark = [pytest.mark.fuzz, pytest.mark.timeout(300)]

MIB = 2**20
JSON, FORM = {"content-type": "application/json"}, {"content-type": "multipart/form-data; boundary=b"}
SLOW_CLIENTS = 1000


def pieces(total: int, size: int = 256 * 1024) -> Iterator[bytes]:
    for _ in range(0, total, size):
        yield b"x" * size


def refused(server: Server, content: Iterator[bytes] | bytes, headers: dict[str, str]) -> int:
    """The status; a server that has heard enough may close the connection before everything is sent."""
    try:
        return httpx.post(f"{server.address}/release_task", content=content, headers=headers, timeout=60).status_code
    except (httpx.WriteError, httpx.ReadError):
        return 413


@pytest.mark.parametrize("headers", [JSON, {"content-type": "application/x-www-form-urlencoded"}, {}], ids=str)
def test_a_body_of_a_gigabyte_is_refused_with_little_of_it_held(server: Server, headers: dict[str, str]) -> None:
    with Bystander(server) as bystander:
        assert refused(server, pieces(1024 * MIB), headers) in (400, 413)
    assert bystander.grown < 100 * MIB


def test_a_file_of_a_gigabyte_is_refused_with_nothing_of_it_held(server: Server) -> None:
    def form() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="src_audio"; filename="a.wav"\r\n\r\n'
        yield from pieces(1024 * MIB)

    with Bystander(server) as bystander:
        assert refused(server, form(), FORM) == 413
    assert bystander.grown < 100 * MIB


def parts(count: int, value: bytes, named: bytes = b"p%d", extra: bytes = b"") -> Iterator[bytes]:
    for number in range(count):
        name = named % number if b"%" in named else named
        yield b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % (name, extra, value)
    yield b"--b--\r\n"


@pytest.mark.parametrize(
    "form",
    [
        parts(10_000, b"x"),
        parts(10_000, b"x" * 10_000),
        parts(10_000, b"x", extra=b'; filename="a.wav"'),
        parts(100, b"x" * MIB),
        parts(1, b"x", named=b"n" * 5 * MIB),
    ],
    ids=["many", "many and large", "many files", "large", "a long name"],
)
def test_a_form_of_too_many_or_too_large_parts_is_refused(server: Server, form: Iterator[bytes]) -> None:
    with Bystander(server) as bystander:
        assert refused(server, form, FORM) in (400, 413)
    assert bystander.grown < 100 * MIB


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 3_000_000,
        b'{"a":' * 500_000,
        b'{"task_id_list": [' + b"[]," * 1_000_000 + b"[]]}",
        b'{"bpm": ' + b"9" * 3_000_000 + b"}",
        b"&".join(b"a%d=" % number for number in range(300_000)),
    ],
    ids=["deep", "deep objects", "wide", "a long number", "many pairs"],
)
def test_a_text_that_grows_when_it_is_read_is_refused(server: Server, body: bytes) -> None:
    with Bystander(server) as bystander:
        for headers in (JSON, {}):
            assert refused(server, body, headers) in (200, 400, 415)
    assert bystander.grown < 100 * MIB


def hours_of_silence() -> bytes:
    """Hours in 40 kB that do not say how long they are: a stream of FLAC frames that are all alike but for a number."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros((3600 * 8000, 1), np.int16), 8000, format="FLAC", subtype="PCM_16")
    content = bytearray(file.getvalue())
    at = 18  # of the stream's description: 20 bits of rate, 8 of kind, 36 of length, which become 0: not known
    (word,) = struct.unpack_from(">Q", content, at)
    struct.pack_into(">Q", content, at, word >> 36 << 36)
    return bytes(content)


def test_a_small_file_that_decodes_to_hours_is_refused(server: Server) -> None:
    content = hours_of_silence()
    assert len(content) < 200_000
    with Bystander(server) as bystander:
        files = {"src_audio": ("a.flac", content)}
        reply = httpx.post(f"{server.address}/release_task", data={"task_type": "cover"}, files=files, timeout=120)
    assert reply.status_code == 400
    assert "longer than" in reply.json()["error"]
    assert bystander.grown < 100 * MIB


def test_a_thousand_slow_clients_hold_little_and_those_in_a_body_are_given_up(server: Server) -> None:
    """Half of them never end the head of their request; the other half send a body, and a byte of it now and then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * SLOW_CLIENTS)), hard))
    head = b"POST /release_task HTTP/1.1\r\nHost: server\r\nContent-Type: application/json\r\n"
    with Bystander(server) as bystander:
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(SLOW_CLIENTS)]
        for number, connection in enumerate(connections):
            is_body = number % 2
            connection.sendall(head + (b"Content-Length: 50000\r\n\r\n" + b"{" * 20_000 if is_body else b"X-Slow: "))
        until = time.monotonic() + PATIENCE_S + 5
        while time.monotonic() < until:
            for connection in connections:
                with suppress(OSError):  # it was given up
                    connection.send(b" ")
            time.sleep(1)
        in_body = connections[1::2]
        replies = [connection.recv(100) for connection in in_body]
    for connection in connections:
        connection.close()
    assert all(reply.startswith(b"HTTP/1.1 408 ") for reply in replies)
    assert bystander.grown < 200 * MIB


def test_the_server_is_as_it_was(server: Server) -> None:
    reply = httpx.post(f"{server.address}/release_task", json={"prompt": "jazz"})
    assert reply.status_code == 200
    assert json.loads(httpx.get(f"{server.address}/v1/stats").text)["data"]["jobs"]["total"] >= 1
