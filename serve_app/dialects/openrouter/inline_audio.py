"""Audio inside JSON, in base64: read out of requests and written into replies piece by piece, never whole in memory."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import AsyncIterator

from models.errors import InvalidRequest
from serve_app.dialects.desk import TrackFile

LETTERS_AT_ONCE = 4 * 64 * 1024  # every four are three bytes
DATA_URL = re.compile(r"data:[^,]{0,255};base64,", re.IGNORECASE)


async def decoded(name: str, data: str) -> AsyncIterator[bytes]:
    """The bytes of base64 or of a data URL. Raises InvalidRequest where it is neither."""
    prefix = DATA_URL.match(data)
    letters = "".join(data[prefix.end() if prefix else 0 :].split())
    if not letters:
        raise InvalidRequest(f"{name} is empty")
    for first in range(0, len(letters), LETTERS_AT_ONCE):
        try:
            yield base64.b64decode(letters[first : first + LETTERS_AT_ONCE], validate=True)
        except (ValueError, binascii.Error) as error:
            raise InvalidRequest(f"{name} is neither base64 nor a data URL of base64: {error}") from None


class Marks:
    """Stand in a text for files. Nobody can guess them, so no caller's text holds one."""

    def __init__(self) -> None:
        self._files: dict[str, TrackFile] = {}

    def data_url(self, file: TrackFile) -> str:
        mark = secrets.token_hex(16)
        self._files[mark] = file
        return f"data:{file.media_type};base64,{mark}"

    async def replaced(self, text: str) -> AsyncIterator[bytes]:
        """The text with each file where its mark was."""
        for part in re.split(f"({'|'.join(self._files)})", text) if self._files else [text]:
            if part in self._files:
                async for encoded in _encoded(self._files[part]):
                    yield encoded
            else:
                yield part.encode()


async def _encoded(file: TrackFile) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in file.read(0, file.size - 1):
        ready = rest + chunk
        whole = len(ready) // 3 * 3
        rest = ready[whole:]
        yield base64.b64encode(ready[:whole])
    yield base64.b64encode(rest)
