"""Runs a `curl` command line of a document against an API: all but the host is taken as it is written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import httpx


async def curl(client: httpx.AsyncClient, command: str, files: Mapping[str, bytes] | None = None) -> httpx.Response:
    """`files`: content by the path that follows an `@`. Raises ValueError for an option that is not known here."""
    name, *words = shlex.split(command.replace("\\\n", " "))
    if name != "curl":
        raise ValueError(f"not a curl command: {command}")
    method, url, asked = "", "", _Asked()
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            header, _, value = words.pop(0).partition(":")
            asked.headers[header] = value.strip()
        elif word == "-d":
            asked.content = words.pop(0).encode()
        elif word == "-F":
            asked.add(words.pop(0), files or {})
        elif word == "-o":
            words.pop(0)
        elif word.startswith("-"):
            raise ValueError(f"option {word} of {command}")
        else:
            url = re.sub(r"^https?://[^/]+", "", word)
    return await client.request(method or asked.method, url, headers=asked.headers, **asked.body())


class _Asked:
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.content: bytes | None = None
        self._fields: dict[str, str] = {}
        self._files: dict[str, tuple[str, bytes]] = {}

    @property
    def method(self) -> str:
        return "POST" if self.body() else "GET"

    def add(self, part: str, files: Mapping[str, bytes]) -> None:
        name, _, value = part.partition("=")
        if value.startswith("@"):
            self._files[name] = (value.rpartition("/")[2], files[value[1:]])
        else:
            self._fields[name] = value

    def body(self) -> dict[str, Any]:
        if self._fields or self._files:
            return {"data": self._fields, "files": self._files}
        return {} if self.content is None else {"content": self.content}
