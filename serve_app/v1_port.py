"""The v1 API's own port. Serve has one for HTTP, so the replicas of the ingress listen on this one themselves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager

import uvicorn
from fastapi import FastAPI

from models.errors import AceError

CONNECTIONS_AT_MOST = 500  # of one replica; beyond it callers get 503 at once
GOODBYE_S = 5  # what is being answered when the replica ends; its jobs go on without it


class PortTaken(AceError):
    """Something that is not one of our replicas listens there."""

    code = "port_taken"
    is_public = True


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the replica's own."""
        yield


@asynccontextmanager
async def listening(app: FastAPI, host: str, port: int) -> AsyncIterator[int]:
    """Answers at the port, 0 for any that is free, which is yielded. Raises PortTaken."""
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        limit_concurrency=CONNECTIONS_AT_MOST,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GOODBYE_S,
    )
    with closing(_bound(host, port)) as listener:
        server = _Server(config)
        answering = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await answering


def _bound(host: str, port: int) -> socket.socket:
    """All replicas on a host listen on the same port and the kernel deals out callers among them (SO_REUSEPORT): none
    is the one that must not end, and a new one need not wait for an old one to leave."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen()  # from here on callers wait for the server rather than being refused
    except OSError as error:
        listener.close()
        raise PortTaken(f"cannot listen at {host}:{port} for the v1 API: {error.strerror}; see api.v1_port") from error
    return listener
