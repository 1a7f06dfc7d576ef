"""People who use the server all the while: they ask for small songs of known seeds at a steady pace, and poll."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.chaos.servers import WITHIN_S, wait_until
from tests.e2e.conftest import SETTLED

SONGS = 6
PACE_S = 0.2
UNFINISHED_AT_MOST = 8
BUSY = 5  # jobs under way
AWAY = (404, 429, *range(500, 600))  # 404: a proxy that was not told yet whom it is to ask
PATIENCE_S = 20.0  # with one request; then it is sent again


def song(number: int) -> dict[str, Any]:
    """Every second one is planned by the LM; the longest have latents too large to travel inside a message of Ray's."""
    return SETTLED | {
        "prompt": f"song {number}",
        "seed": number,
        "audio_duration": 30 if number % 3 == 0 else 10,
        "inference_steps": 20,
        "thinking": number % 2 == 0,
    }


@dataclass(slots=True)
class Asked:
    """One job as its caller sees it. Times are of the monotonic clock."""

    number: int
    accepted_at: float
    entry: dict[str, Any]
    ended_at: float | None = None

    @property
    def is_made(self) -> bool:
        return bool(self.entry.get("status") == 1)


class Crowd:
    def __init__(self, address: str) -> None:
        self.asked: dict[str, Asked] = {}
        self._address = address
        self._is_leaving = threading.Event()
        self._is_gone = threading.Event()
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._polling = threading.Thread(target=self._poll, daemon=True)

    def come(self) -> None:
        self._asking.start()
        self._polling.start()

    def leave(self) -> None:
        """Once everything that was accepted came to an end."""
        self._is_leaving.set()
        self._asking.join()
        try:
            self._wait(lambda: not self.unfinished(), "every caller is told of an end")
        finally:
            self._is_gone.set()
            self._polling.join()

    def unfinished(self) -> list[Asked]:
        return [asked for asked in list(self.asked.values()) if asked.ended_at is None]

    def wait_for_work(self, stage: str) -> None:
        """Until several jobs are under way, one of them at this stage."""

        def is_busy() -> bool:
            waiting = self.unfinished()
            return len(waiting) >= BUSY and any(stage in asked.entry.get("progress_text", "") for asked in waiting)

        self._wait(is_busy, f"{BUSY} jobs under way, one at {stage!r}")

    def wait_for_songs(self, since: float, songs: int = 3) -> float:
        """Until so many songs were asked for and made since then; when the first of them was."""
        self._wait(lambda: len(self._made_since(since)) >= songs, f"{songs} songs after the fault")
        return min(self._made_since(since))

    def _made_since(self, since: float) -> list[float]:
        asked = list(self.asked.values())
        return [one.ended_at for one in asked if one.is_made and one.accepted_at > since and one.ended_at is not None]

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        def is_so_while_they_stay() -> bool:
            assert self._polling.is_alive(), "whoever polls gave up"
            assert self._asking.is_alive() or self._is_leaving.is_set(), "whoever asks gave up"
            return is_so()

        wait_until(is_so_while_they_stay, what, WITHIN_S)

    def _ask(self) -> None:
        number = 0
        with httpx.Client(base_url=self._address, timeout=PATIENCE_S) as http:
            while not self._is_leaving.wait(PACE_S):
                if len(self.unfinished()) >= UNFINISHED_AT_MOST:
                    continue
                reply = _sent(http, "/release_task", song(number % SONGS))
                if reply is not None:
                    self.asked[reply["task_id"]] = Asked(number % SONGS, time.monotonic(), {})
                    number += 1

    def _poll(self) -> None:
        with httpx.Client(base_url=self._address, timeout=PATIENCE_S) as http:
            while not self._is_gone.wait(0.1):
                waiting = [id_ for id_, asked in list(self.asked.items()) if asked.ended_at is None]
                for entry in (_sent(http, "/query_result", {"task_id_list": waiting}) if waiting else None) or []:
                    asked = self.asked[entry["task_id"]]
                    asked.entry = entry
                    if entry["status"] != 0:
                        asked.ended_at = time.monotonic()


def _sent(http: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    """The answer's data; `None` where the server is away, for the caller to try again."""
    try:
        reply = http.post(path, json=body)
    except httpx.TransportError:
        return None
    if reply.status_code in AWAY:
        return None
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]
