"""Requests to addresses that callers chose, and that must not reach what only this server can.

A name is resolved once, every address of it is checked, and the connection goes to an address that was: whoever answers
for the name cannot give a harmless address to the check and another one to the connection.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from models.errors import InvalidRequest

LETTERS_AT_MOST = 2048
ADDRESSES_AT_MOST = 3  # of a name, tried in turn
CONNECT_WITHIN_S, ANSWER_WITHIN_S = 5.0, 10.0
WITHIN_S = 20.0  # all of it, also where an answer comes drop by drop
RESOLVERS = 8  # threads: a name server that does not answer holds up nothing else

GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
UNIQUE_LOCAL = ipaddress.ip_network("fc00::/7")
OF_IPV4 = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "::ffff:0:0/96")))  # NAT64's, and mapped ones

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]  # of a name and a port


class ForbiddenAddress(InvalidRequest):
    """A URL that callers may not have this server call."""

    code = "forbidden_address"


@dataclass(frozen=True, slots=True)
class Rules:
    """`http_hosts` may be called without TLS. With `allows_private`, so may hosts of private networks and this one."""

    http_hosts: frozenset[str] = frozenset()
    allows_private: bool = False

    def check_url(self, url: str) -> httpx.URL:
        """Raises ForbiddenAddress. What a name stands for is looked at when it is called."""
        if len(url) > LETTERS_AT_MOST:
            raise ForbiddenAddress(f"a URL of {len(url)} characters; allowed are {LETTERS_AT_MOST}")
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise ForbiddenAddress(f"{url!r} is no URL: {error}") from None
        if not parsed.host or parsed.userinfo or not 0 < (parsed.port or 443) < 2**16:
            raise ForbiddenAddress(f"{parsed!r}: allowed is https://HOST:PORT/PATH, without a user and a password")
        if parsed.scheme != "https" and not (parsed.scheme == "http" and parsed.host in self.http_hosts):
            raise ForbiddenAddress(
                f"{url!r}: allowed is https" + "".join(f", http to {host}" for host in self.http_hosts)
            )
        if (literal := _literal(parsed.host)) is not None:
            self.check_address(literal)
        return parsed

    def check_address(self, address: Address) -> None:
        """Raises ForbiddenAddress."""
        inner = _embedded(address)
        if not (_is_public(inner) or (self.allows_private and _is_private(inner))):
            raise ForbiddenAddress(f"{address} is not an address of the public internet")


class Outbound:
    """Posts to URLs within rules. `resolve` and `tls` are the system's unless given."""

    def __init__(self, rules: Rules, resolve: Resolve | None = None, tls: ssl.SSLContext | None = None) -> None:
        self._rules = rules
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "resolve")
        self._resolve = resolve or self._ask_system
        self._tls = tls or ssl.create_default_context()

    def close(self) -> None:
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, body: str, headers: Mapping[str, str]) -> int:
        """The status of the answer, which is not read, and not followed when it points elsewhere.

        Raises ForbiddenAddress, httpx.HTTPError, OSError and TimeoutError. Each call has its own connection, since one
        to the same address may have been made for another name.
        """
        self._rules.check_url(url)
        timeout = httpx.Timeout(ANSWER_WITHIN_S, connect=CONNECT_WITHIN_S)
        pinned = _Pinned(httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False), self._addresses)
        async with (
            asyncio.timeout(WITHIN_S),
            httpx.AsyncClient(transport=pinned, timeout=timeout, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", url, content=body, headers=dict(headers)) as answer,
        ):
            return answer.status_code

    async def _addresses(self, host: str, port: int) -> list[str]:
        """Of a name, all of them checked. Raises ForbiddenAddress, OSError."""
        found = list(dict.fromkeys(await self._resolve(host, port)))
        for address in found:
            self._rules.check_address(ipaddress.ip_address(address))
        return found[:ADDRESSES_AT_MOST]

    async def _ask_system(self, host: str, port: int) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(
            self._resolvers, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [str(place[0]) for *_, place in found]


class _Pinned(httpx.AsyncBaseTransport):
    """Connects to addresses that were checked; TLS is still asked for the certificate of the name."""

    def __init__(self, inner: httpx.AsyncBaseTransport, addresses: Resolve) -> None:
        self._inner = inner
        self._addresses = addresses

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, host = request.url, request.url.raw_host.decode("ascii")
        failure: httpx.TransportError = httpx.ConnectError(f"{host} has no address", request=request)
        for address in await self._addresses(host, url.port or (443 if url.scheme == "https" else 80)):
            request.url = url.copy_with(host=address)
            if _literal(host) is None:
                request.extensions = {**request.extensions, "sni_hostname": host}
            try:
                return await self._inner.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        await self._inner.aclose()


def _literal(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _embedded(address: Address) -> Address:
    """The IPv4 address that one of IPv6 leads to."""
    if isinstance(address, ipaddress.IPv6Address) and any(address in network for network in OF_IPV4):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def _is_public(address: Address) -> bool:
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    if isinstance(address, ipaddress.IPv6Address):  # others lead to addresses of IPv4 that nobody checked
        return address in GLOBAL_UNICAST and address.sixtofour is None and address.teredo is None
    return True


def _is_private(address: Address) -> bool:
    """Of a private network, or this host's own; link-local ones are not, where clouds keep their machines' secrets."""
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_loopback or address in UNIQUE_LOCAL
    is_special = address.is_link_local or address.is_unspecified or address.is_reserved
    return address.is_private and not is_special
