"""People who use the server all the while: they ask for small songs of known seeds at a steady pace, and poll."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.chaos.servers import WITHIN_S, wait_until
from tests.e2e.conftest import SETTLED

SONGS = 6
PACE_S = 0.4
UNFINISHED_AT_MOST = 10
PATIENCE_S = 20.0  # with one request; then it is sent again


def song(number: int) -> dict[str, Any]:
    """Every second one is planned by the LM."""
    return SETTLED | {
        "prompt": f"song {number}",
        "seed": number,
        "audio_duration": 10,
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
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._ask, self._poll)]

    def come(self) -> None:
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        """Once everything that was accepted came to an end."""
        self._is_leaving.set()
        try:
            wait_until(lambda: not self.unfinished(), "every caller is told of an end")
        finally:
            self._is_gone.set()
            for thread in self._threads:
                thread.join()

    def unfinished(self) -> list[Asked]:
        return [asked for asked in list(self.asked.values()) if asked.ended_at is None]

    def wait_for_work(self, stage: str) -> None:
        """Until several jobs are under way, one of them at this stage."""

        def is_busy() -> bool:
            waiting = self.unfinished()
            return len(waiting) > 2 and any(stage in asked.entry.get("progress_text", "") for asked in waiting)

        self._wait(is_busy, f"three jobs under way, one at {stage!r}")

    def wait_for_songs(self, since: float, songs: int = 3) -> float:
        """Until so many songs were asked for and made since then; when the first of them was."""
        self._wait(lambda: len(self._made_since(since)) >= songs, f"{songs} songs after the fault")
        return min(self._made_since(since))

    def _made_since(self, since: float) -> list[float]:
        asked = list(self.asked.values())
        return [one.ended_at for one in asked if one.is_made and one.accepted_at > since and one.ended_at is not None]

    def _wait(self, is_so: Any, what: str) -> None:
        def is_so_or_broken() -> bool:
            assert all(thread.is_alive() for thread in self._threads), "a caller gave up"
            return bool(is_so())

        wait_until(is_so_or_broken, what, WITHIN_S)

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
    """The answer's data; `None` where the server is away or overloaded, for the caller to try again."""
    try:
        reply = http.post(path, json=body)
    except httpx.TransportError:
        return None
    if reply.status_code == 429 or reply.status_code >= 500:
        return None
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]
