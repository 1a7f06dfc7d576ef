"""Keys: who asks. A server without keys lets everybody in as the same owner."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from models.errors import AceError


class Unauthorized(AceError):
    code = "unauthorized"
    is_public = True


class Access:
    """Holds digests only. An owner is the digest of a key, `""` where the server has none."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def owner_by_header(self, request: Request) -> str:
        """Of `Authorization: Bearer KEY` or the bare key. Raises Unauthorized."""
        return self._owner_of(_bearer(request), "Invalid API key", "Missing Authorization header")

    def owner_by_query(self, request: Request) -> str:
        """For players that cannot set a header: `?ai_token=` counts as well. Raises Unauthorized."""
        token = request.query_params.get("ai_token")
        return self._owner_of(token, "Invalid ai_token", "") if token else self.owner_by_header(request)

    def owner_by_fields(self, request: Request, fields: Mapping[str, Any]) -> str:
        """A field `ai_token` that is not empty decides alone, the header otherwise. Raises Unauthorized."""
        token = fields.get("ai_token")
        if token:
            return self._owner_of(str(token), "Invalid ai_token", "")
        return self._owner_of(_bearer(request), "Invalid API key", "Missing ai_token or Authorization header")

    def _owner_of(self, key: str | None, wrong: str, missing: str) -> str:
        if not self._digests:
            return ""
        if not key:
            raise Unauthorized(missing)
        presented = _digest(key)
        matches = [
            hmac.compare_digest(presented, digest) for digest in self._digests
        ]  # all, so that time tells nothing
        if not any(matches):
            raise Unauthorized(wrong)
        return presented


def _bearer(request: Request) -> str | None:
    header = request.headers.get("authorization")
    return header.removeprefix("Bearer ") if header else None


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
