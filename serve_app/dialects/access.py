"""Who asks, and whether they may: every route asks here, with the scope that it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from models.errors import AceError, Overloaded
from serve_app.keys import Key, Keyring, Scope

__all__ = ["Access", "Forbidden", "Scope", "TooManyRequests", "Unauthorized"]


class Unauthorized(AceError):
    code = "unauthorized"
    is_public = True


class Forbidden(AceError):
    code = "forbidden"
    is_public = True


class TooManyRequests(Overloaded):
    """Of one key. `retry_after_s`: when the next is taken."""

    code = "too_many_requests"

    def __init__(self, message: str, retry_after_s: int = 60) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Access:
    """Requests are counted here, in memory, so each replica of the ingress allows a key its full number.

    Every method raises Unauthorized, Forbidden for a key without the scope, and TooManyRequests.
    """

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    def owner_by_header(self, request: Request, scope: Scope) -> str:
        """Of `Authorization: Bearer KEY` or the bare key."""
        return self._owner_of(bearer(request.headers), scope, "Invalid API key", "Missing Authorization header")

    def asking(self, scope: Scope) -> Callable[[Request], str]:
        """`owner_by_header` as a dependency: asked before the body is judged."""

        def owner(request: Request) -> str:
            return self.owner_by_header(request, scope)

        return owner

    def owner_by_query(self, request: Request, scope: Scope) -> str:
        """For players that cannot set a header: `?ai_token=` counts as well, and before the header."""
        token = request.query_params.get("ai_token")
        if token:
            return self._owner_of(_bytes(token), scope, "Invalid ai_token", "")
        return self.owner_by_header(request, scope)

    def owner_by_fields(self, request: Request, fields: Mapping[str, Any], scope: Scope) -> str:
        """A field `ai_token` that is not empty decides alone, the header otherwise."""
        token = fields.get("ai_token")
        if token:
            return self._owner_of(_bytes(str(token)), scope, "Invalid ai_token", "")
        missing = "Missing ai_token or Authorization header"
        return self._owner_of(bearer(request.headers), scope, "Invalid API key", missing)

    def _owner_of(self, presented: bytes | None, scope: Scope, wrong: str, missing: str) -> str:
        if self._keyring.is_open:
            return ""
        if not presented:
            raise Unauthorized(missing)
        key = self._keyring.find(presented)
        if key is None:
            raise Unauthorized(wrong)
        self._count(key)
        if scope not in key.scopes:
            raise Forbidden(f"key {key.name!r} has no scope {scope.value!r}; it has {', '.join(sorted(key.scopes))}")
        return key.owner_name

    def _count(self, key: Key) -> None:
        if key.requests_per_minute is None:
            return
        limit = RateLimitItemPerMinute(key.requests_per_minute)
        if not self._limiter.hit(limit, key.name):
            wait_s = max(1, math.ceil(self._limiter.get_window_stats(limit, key.name).reset_time - time.time()))
            raise TooManyRequests(f"key {key.name!r} may send {key.requests_per_minute} requests a minute", wait_s)


def bearer(headers: Mapping[str, str]) -> bytes | None:
    """As it was sent; `None` where there is none or an empty one."""
    header = headers.get("authorization", "")
    key = "" if header == "Bearer" else header.removeprefix("Bearer ")
    return key.encode("latin-1") or None


def _bytes(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")  # a lone surrogate is no key, and no fault of ours
