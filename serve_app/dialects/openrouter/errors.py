"""Refusals as OpenAI's clients read them, whichever part of the server they come from.

`error` is an object with a `message`, which these clients show; the other APIs' clients read a sentence there, and on
these paths `detail`.
"""

from __future__ import annotations

import json

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/v1/chat/", "/v1/audio/speech", "/api/v1/")


class OpenAiErrors:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PATHS):
            await self._app(scope, receive, send)
            return
        refused: Message | None = None
        body = b""

        async def reshaped(message: Message) -> None:
            nonlocal refused, body
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = message
            elif refused is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await _reshape(refused, body)(scope, receive, send)

        await self._app(scope, receive, reshaped)


def _reshape(start: Message, body: bytes) -> JSONResponse:
    status, headers = start["status"], Headers(raw=start["headers"])
    told = json.loads(body)
    told["error"] = {"message": told["error"], "type": _type_of(status), "param": None, "code": None}
    kept = {name: value for name, value in headers.items() if name not in ("content-length", "content-type")}
    return JSONResponse(told, status, kept)


def _type_of(status: int) -> str:
    if status >= 500:
        return "server_error"
    return "rate_limit_error" if status == 429 else "invalid_request_error"
