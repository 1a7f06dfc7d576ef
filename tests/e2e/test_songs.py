"""What a user hears back, through HTTP, from a server with every part real."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from models.source_audio import AudioLimits, examine
from tests.e2e.conftest import SETTLED

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tests.e2e.conftest import Client, Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def samples_of(data: bytes) -> NDArray[np.float64]:
    samples, rate = soundfile.read(io.BytesIO(data), always_2d=True)
    assert rate == 48_000
    assert samples.shape[1] == 2
    return np.asarray(samples)  # (sample, channel)


def make(client: Client, **fields: Any) -> list[NDArray[np.float64]]:
    return [samples_of(client.fetch(item)) for item in client.wait(client.ask(**fields))]


def test_the_documented_request_gives_an_mp3_of_the_length_asked(client: Client) -> None:
    items = client.wait(
        client.ask(prompt="upbeat pop song", lyrics="Hello world", inference_steps=8, audio_duration=12, batch_size=1)
    )
    (item,) = items
    assert item["file"].startswith("/v1/audio?path=")
    assert item["file"].endswith(".mp3")
    assert item["dit_model"] == "acestep-v15-turbo"
    samples = samples_of(client.fetch(item))
    assert abs(len(samples) / 48_000 - 12) < 0.1
    assert np.abs(samples).max() > 0.1


def test_thinking_plans_five_codes_a_second_with_the_lm(client: Client) -> None:
    (item,) = client.wait(client.ask(**SETTLED, prompt="calm piano", audio_duration=11, thinking=True, seed=3))
    assert item["lm_model"] == "acestep-5Hz-lm-0.6B"
    assert item["audio_codes"].count("<|audio_code_") == 55


def test_one_seed_is_one_song_and_another_seed_another(client: Client) -> None:
    asked = {**SETTLED, "prompt": "calm piano", "audio_duration": 10}
    first, again, other = (make(client, **asked, seed=seed)[0] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=1e-2)


def test_a_thought_out_song_is_the_same_twice(client: Client) -> None:
    asked = {**SETTLED, "prompt": "calm piano", "audio_duration": 10, "thinking": True, "seed": 8}
    first, again = client.wait(client.ask(**asked))[0], client.wait(client.ask(**asked))[0]
    assert first["audio_codes"] == again["audio_codes"]
    assert np.array_equal(samples_of(client.fetch(first)), samples_of(client.fetch(again)))


def test_a_batch_of_two_is_two_songs_with_two_seeds(client: Client) -> None:
    items = client.wait(client.ask(**{**SETTLED, "batch_size": 2}, prompt="rock", audio_duration=10, seed="21,22"))
    assert [item["seed_value"] for item in items] == ["21,22", "21,22"]
    one, two = (samples_of(client.fetch(item)) for item in items)
    assert not np.allclose(one, two, atol=1e-2)


def test_a_song_is_the_same_alone_and_among_seven_of_other_lengths(client: Client) -> None:
    asked = {**SETTLED, "prompt": "calm piano", "audio_duration": 14, "seed": 77}
    (alone,) = make(client, **asked)
    neighbours = [
        client.ask(**{**SETTLED, "prompt": f"neighbour {n}", "audio_duration": 10 + 3 * n, "seed": n}) for n in range(7)
    ]
    (among,) = make(client, **asked)
    for neighbour in neighbours:
        client.wait(neighbour)
    assert len(alone) == len(among)
    assert np.abs(alone - among).max() < 1e-4


@pytest.mark.parametrize("audio_format", ["wav", "flac", "mp3", "opus", "aac"])
def test_each_format_decodes(client: Client, audio_format: str, tmp_path: Path) -> None:
    (item,) = client.wait(client.ask(prompt="jazz", audio_duration=10, batch_size=1, audio_format=audio_format))
    assert item["file"].endswith(f".{audio_format}")
    (tmp_path / "song").write_bytes(client.fetch(item))
    info = examine(tmp_path / "song", AudioLimits())
    assert (info.sample_rate, info.channels) == (48_000, 2)
    assert info.seconds == pytest.approx(10, abs=0.1)


def test_a_song_comes_at_the_sample_rate_and_bit_rate_asked_for(client: Client) -> None:
    asked = {"audio_format": "mp3", "mp3_bitrate": "320k", "mp3_sample_rate": 44_100}
    (item,) = client.wait(client.ask(prompt="jazz", audio_duration=10, batch_size=1, **asked))
    content = client.fetch(item)
    file = soundfile.info(io.BytesIO(content))
    assert (file.samplerate, file.channels) == (44_100, 2)
    assert file.duration == pytest.approx(10, abs=0.1)
    assert len(content) == pytest.approx(10 * 320_000 / 8, rel=0.05)


def test_eight_songs_come_of_one_request(client: Client) -> None:
    items = client.wait(client.ask(prompt="jazz", audio_duration=10, batch_size=8))
    assert len({item["file"] for item in items}) == 8


@pytest.mark.parametrize("seconds", [9.9, 601])
def test_a_length_out_of_range_is_refused(client: Client, seconds: float) -> None:
    reply = client.http.post("/release_task", json={"prompt": "x", "audio_duration": seconds})
    assert reply.status_code == 400
    assert "600" in reply.json()["detail"] or "10" in reply.json()["detail"]


def test_a_model_that_does_not_run_here_is_refused_by_name(client: Client) -> None:
    reply = client.http.post("/release_task", json={"prompt": "x", "model": "acestep-v16"})
    assert reply.status_code == 400
    assert "acestep-v16" in reply.json()["detail"]
    assert "acestep-v15-turbo" in reply.json()["detail"]


@pytest.mark.parametrize("model", ["acestep-v15-base", "acestep-v15-xl-turbo"])
def test_every_variant_makes_a_song(client: Client, model: str) -> None:
    (item,) = client.wait(
        client.ask(**SETTLED, prompt="jazz", audio_duration=10, model=model, seed=1, inference_steps=8)
    )
    assert item["dit_model"] == model
    assert np.abs(samples_of(client.fetch(item))).max() > 0.1


def test_the_server_tells_it_is_ready_and_what_it_runs(client: Client) -> None:
    components = client.http.get("/readyz").json()["components"]
    assert {"ingress", "conductor", "lm-acestep-5Hz-lm-0_6B", "vae", "dit-acestep-v15-turbo"} <= set(components)
    models = client.http.get("/v1/models").json()["data"]["models"]
    assert models[0]["name"] == "acestep-v15-turbo"


def test_a_file_is_served_in_part(client: Client) -> None:
    (item,) = client.wait(client.ask(prompt="jazz", audio_duration=10, batch_size=1))
    whole = client.fetch(item)
    part = client.http.get(item["file"], headers={"Range": "bytes=100-199"})
    assert part.status_code == 206
    assert part.content == whole[100:200]


def test_the_log_of_a_server_at_work_has_no_traceback(server: Server, client: Client) -> None:
    client.wait(client.ask(prompt="jazz", audio_duration=10, batch_size=2))
    assert "Traceback" not in server.tail()
