"""A network that fails: a TCP proxy before a server that listens on a Unix socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from enum import Enum, auto
from pathlib import Path

CHUNK = 2**16
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: no goodbye


class Weather(Enum):
    FAIR = auto()
    SLOW = auto()  # a delay each way
    HALF_OPEN = auto()  # what either side says is swallowed, for ever on connections that were open then
    CUT = auto()  # connections are reset, and so are new ones


class Proxy:
    """`noticed_s`: how long a server keeps a session whose half-open connection its client has given up."""

    def __init__(self, upstream: Path, delay_s: float, noticed_s: float) -> None:
        self._upstream = upstream
        self._delay_s = delay_s
        self._noticed_s = noticed_s
        self._weather = Weather.FAIR
        self._port = 0
        self._links: dict[asyncio.Task[None], Link] = {}

    def url_of(self, database: str) -> str:
        return f"postgresql://tester@127.0.0.1:{self._port}/{database}"

    async def change(self, weather: Weather) -> None:
        self._weather = weather
        for link in self._links.values():
            if weather is Weather.HALF_OPEN:
                link.is_dead = True
            if weather is Weather.CUT:
                link.is_over.set()
        if weather is Weather.CUT:
            await asyncio.gather(*self._links)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await self.change(Weather.CUT)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link = self._links[task] = Link(writer, is_dead=self._weather is Weather.HALF_OPEN)
        try:
            if self._weather is not Weather.CUT:
                await self._join(reader, link)
        except OSError:
            pass  # the server is not there
        finally:
            del self._links[task]
            await link.reset()

    async def _join(self, reader: asyncio.StreamReader, link: Link) -> None:
        there_reader, link.there = await asyncio.open_unix_connection(str(self._upstream))
        ways = (self._carry(reader, link.there, link), self._carry(there_reader, link.here, link))
        both = [asyncio.create_task(way) for way in ways]
        over = asyncio.create_task(link.is_over.wait())
        await asyncio.wait([*both, over], return_when=asyncio.FIRST_COMPLETED)
        if link.is_dead:
            await asyncio.wait([over], timeout=self._noticed_s)
        for task in (*both, over):
            task.cancel()
        await asyncio.wait([*both, over])

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        """Until one side is gone."""
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._weather is Weather.SLOW:
                    await asyncio.sleep(self._delay_s)
                if not link.is_dead:
                    writer.write(data)
                    await writer.drain()


class Link:
    """One connection through the proxy."""

    def __init__(self, here: asyncio.StreamWriter, is_dead: bool) -> None:
        self.here = here
        self.there: asyncio.StreamWriter | None = None
        self.is_dead = is_dead
        self.is_over = asyncio.Event()

    async def reset(self) -> None:
        with suppress(OSError):
            self.here.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        for writer in (self.here, self.there):
            if writer is not None:
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()


def proxied(upstream: Path, delay_s: float = 0.02, noticed_s: float = 10) -> AbstractAsyncContextManager[Proxy]:
    return Proxy(upstream, delay_s, noticed_s).opened()
