"""A replica that dies under a song costs time, not the song."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import SETTLED

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ASKED = SETTLED | {
    "prompt": "calm piano",
    "lyrics": "la",
    "seed": 4,
    "audio_duration": 60,
    "inference_steps": 20,
}


PLANNED = ASKED | {"thinking": True, "audio_duration": 300, "inference_steps": 1}


def wait_for(client: Client, task: str, stage: str) -> None:
    deadline = time.monotonic() + 60
    while stage not in client.look(task)["progress_text"]:
        assert time.monotonic() < deadline, client.look(task)
        time.sleep(0.05)


def test_a_song_whose_dit_is_killed_is_made_all_the_same(server: Server, client: Client) -> None:
    undisturbed = client.fetch(client.wait(client.ask(**ASKED))[0])
    task = client.ask(**ASKED)
    wait_for(client, task, "denoise")
    (dit,) = server.processes("ray::ServeReplica:acestep:dit-acestep-v15-turbo")
    dit.kill()
    assert client.fetch(client.wait(task)[0]) == undisturbed


@pytest.mark.parametrize("victim", ["VLLM::EngineCore", "ray::ServeReplica:acestep:lm-acestep-5Hz-lm-0_6B"])
def test_a_song_whose_lm_is_killed_is_made_all_the_same(server: Server, client: Client, victim: str) -> None:
    (undisturbed,) = client.wait(client.ask(**PLANNED))
    task = client.ask(**PLANNED)
    wait_for(client, task, "plan")
    engines = server.processes("VLLM::EngineCore")
    (process,) = server.processes(victim)
    process.kill()
    (item,) = client.wait(task)
    assert item["audio_codes"] == undisturbed["audio_codes"]
    assert client.fetch(item) == client.fetch(undisturbed)
    assert not any(engine.is_running() for engine in engines)
