"""What the LM does for a song, through HTTP."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.e2e.conftest import SECOND_LM

if TYPE_CHECKING:
    from tests.e2e.conftest import Client, Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FIRST_LM = "acestep-5Hz-lm-0.6B"
SONG: dict[str, Any] = {
    "prompt": "calm piano",
    "lyrics": "[verse]\nHello world",
    "audio_duration": 10,
    "batch_size": 1,
    "use_random_seed": False,
    "seed": 3,
    "thinking": True,
    "use_cot_caption": False,
}


def make(client: Client, **changed: Any) -> dict[str, Any]:
    (item,) = client.wait(client.ask(**{**SONG, **changed}))
    return item


def test_what_was_left_open_is_filled_in_and_what_was_given_stays(client: Client) -> None:
    item = make(client, bpm=97, key_scale="F# minor")
    metas = item["metas"]
    assert (metas["bpm"], metas["keyscale"], metas["duration"]) == (97, "F# minor", 10)
    assert metas["timesignature"] in ("2", "3", "4", "6")


def test_an_lm_is_chosen_by_name(client: Client) -> None:
    first, second = make(client, lm_model_path=FIRST_LM), make(client, lm_model_path=SECOND_LM)
    assert (first["lm_model"], second["lm_model"]) == (FIRST_LM, SECOND_LM)
    assert first["audio_codes"] != second["audio_codes"]


def test_an_lm_is_chosen_by_backend(client: Client) -> None:
    assert make(client, lm_backend="pt")["lm_model"] == SECOND_LM
    assert make(client, lm_backend="vllm")["lm_model"] == FIRST_LM


def test_a_backend_its_lm_does_not_run_on_is_told(client: Client) -> None:
    (warning,) = make(client, lm_model_path=FIRST_LM, lm_backend="pt")["warnings"]
    assert warning == f"lm_backend: pt asked, {FIRST_LM} runs on vllm"


def test_an_lm_that_does_not_run_here_is_refused_by_name(client: Client) -> None:
    reply = client.http.post("/release_task", json={**SONG, "lm_model_path": "acestep-5Hz-lm-9B"})
    assert reply.status_code == 400
    assert "acestep-5Hz-lm-9B" in reply.json()["detail"]
    assert FIRST_LM in reply.json()["detail"]


def test_codes_are_the_same_alone_and_beside_seven_with_other_settings(client: Client) -> None:
    alone = make(client, audio_duration=20)
    neighbours = [
        client.ask(
            **{**SONG, "prompt": f"neighbour {n}", "seed": n, "audio_duration": 10 + n},
            lm_temperature=0.2 * n,
            lm_cfg_scale=0.5 + n / 2,
            lm_top_k=10 * n,
            lm_negative_prompt="noise",
        )
        for n in range(7)
    ]
    beside = make(client, audio_duration=20)
    for neighbour in neighbours:
        client.wait(neighbour)
    assert beside["audio_codes"] == alone["audio_codes"]


def test_each_setting_of_the_lm_changes_what_it_writes(client: Client) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"lm_temperature": 0.3},
        {"lm_cfg_scale": 1},
        {"lm_top_k": 2},
        {"lm_top_p": 0.2},
        {"lm_repetition_penalty": 2},
        {"lm_negative_prompt": "loud noise"},
        {"seed": 4},
    ]
    tasks = [client.ask(**{**SONG, **setting}) for setting in settings]
    assert len({client.wait(task)[0]["audio_codes"] for task in tasks}) == len(settings)


def test_codes_of_the_caller_are_used_as_they_are(client: Client) -> None:
    codes = "".join(f"<|audio_code_{n}|>" for n in range(50))
    assert make(client, audio_code_string=codes)["audio_codes"] == codes


def test_without_constraints_any_token_may_be_written(client: Client) -> None:
    # what random weights write freely seldom holds codes, so none are asked for
    item = make(client, thinking=False, constrained_decoding=False, constrained_decoding_debug=True)
    assert re.match(r"metadata 0: rest, \d{4} allowed", item["debug"]["lm_trace"][0])


@pytest.mark.parametrize(
    "asked", [{"sample_mode": True}, {"sample_query": "a short instrumental"}, {"use_format": True}], ids=str
)
def test_the_lm_writes_whole_songs_and_words(client: Client, asked: dict[str, Any]) -> None:
    item = make(client, prompt="" if "use_format" not in asked else "pop", lyrics="", thinking=False, **asked)
    assert item["lm_model"] == FIRST_LM
    assert item["prompt"]


def test_a_trace_of_the_constraints_comes_with_the_result_and_is_logged(client: Client, server: Server) -> None:
    trace = make(client, constrained_decoding_debug=True)["debug"]["lm_trace"]
    assert trace[0] == "metadata 0: open, 1 allowed, wrote '<think>'"
    assert trace[-1].startswith("codes of seed 3 50: codes, 1 allowed")
    deadline = time.monotonic() + 10
    while trace[-1] not in server.log():
        assert time.monotonic() < deadline, server.tail()
        time.sleep(0.2)


def test_progress_of_a_plan_reaches_the_job(client: Client) -> None:
    task = client.ask(**{**SONG, "audio_duration": 240})
    seen = []
    while (entry := client.look(task))["status"] == 0:
        if "plan" in entry["progress_text"]:
            seen.append(entry["progress_text"])
        time.sleep(0.1)
    assert entry["status"] == 1, entry
    assert len(set(seen)) > 2
