"""Jobs that make no song: how they are asked for, and what they tell."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.music import Analysis, Made
from serve_app.dialects.current.analysis import FLAGS
from serve_app.dialects.parameters import BY_NAME
from serve_app.jobs.job import Status
from tests.contract.conftest import SONG

if TYPE_CHECKING:
    from tests.contract.conftest import FakeDesk

HEARD = ("full_analysis_only", "extract_codes_only")
TRACK = {"src_audio_path": "0" * 32 + ".mp3"}
CODES = "<|audio_code_1|><|audio_code_2|>"
PLAN = SONG.model_copy(update={"codes": (1, 2)})


async def ended(client: httpx.AsyncClient, desk: FakeDesk, body: dict[str, Any]) -> Any:
    """The `result` of a job asked for with this, once it is done."""
    task_id = (await client.post("/release_task", json=body)).json()["data"]["task_id"]
    made = Made(tracks=(), plans=(PLAN,), dit_model="acestep-v15-turbo", lm_model=PLAN.lm_model, seconds_by_stage={})
    desk.jobs[-1] = replace(desk.jobs[-1], status=Status.SUCCEEDED, made=made, stage="succeeded")
    (entry,) = (await client.post("/query_result", json={"task_id_list": [task_id]})).json()["data"]
    assert entry["status"] == 1
    return json.loads(entry["result"])


@pytest.mark.parametrize("name", [name for flag in FLAGS for name in BY_NAME[flag].names])
async def test_an_analysis_is_of_one_song(client: httpx.AsyncClient, desk: FakeDesk, name: str) -> None:
    hows: tuple[dict[str, Any], ...] = (
        {"json": TRACK | {name: True}},
        {"json": {"param_obj": TRACK | {name: "true"}}},
        {"data": TRACK | {name: "1"}},
        {"files": {"src_audio": ("a.wav", b"RIFF"), name: (None, "yes")}},
    )
    analysis = next(analysis for flag, analysis in FLAGS.items() if name in BY_NAME[flag].names)
    for how in hows:
        assert (await client.post("/release_task", **how)).status_code == 200
        request = desk.jobs[-1].request
        assert (request.analysis, request.songs, request.task_type) == (analysis, 1, "text2music")
        assert (request.src_audio is None) == (analysis is Analysis.PLAN)


async def test_what_an_analysis_does_not_use_is_told(client: httpx.AsyncClient) -> None:
    body = TRACK | {"extract_codes_only": True, "batch_size": 3, "task_type": "cover", "audio_code_string": CODES}
    assert (await client.post("/release_task", json=body)).json()["data"]["warnings"] == [
        "batch_size: not used, an analysis is of one song",
        "audio_code_string: not used",
        "task_type: not used, an analysis makes no cover",
    ]


@pytest.mark.parametrize("flag", HEARD)
async def test_what_is_to_be_heard_must_be_there(client: httpx.AsyncClient, desk: FakeDesk, flag: str) -> None:
    reply = await client.post("/release_task", json={flag: True})
    assert (reply.status_code, desk.jobs) == (400, [])
    assert reply.json()["detail"] == f"{flag} requires src_audio_path to be set."


async def test_codes_stand_in_for_audio_that_is_described(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    body = {"full_analysis_only": True, "audio_code_string": CODES}
    assert (await client.post("/release_task", json=body)).status_code == 200
    assert (desk.jobs[-1].request.audio_codes, desk.jobs[-1].request.src_audio) == (((1, 2),), None)


async def test_two_analyses_at_once_are_refused(client: httpx.AsyncClient) -> None:
    reply = await client.post("/release_task", json=TRACK | {"analysis_only": True, "extract_codes_only": True})
    assert reply.status_code == 400
    assert reply.json()["detail"] == "analysis_only and extract_codes_only: allowed is one of them"


async def test_a_described_source_is_one_object(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    metas = {"bpm": 88, "duration": 125.0, "genres": "N/A", "keyscale": "D minor", "timesignature": "4"}
    assert await ended(client, desk, TRACK | {"full_analysis_only": True}) == {
        "status_message": "Full Hardware Analysis Success",
        "bpm": 88,
        "keyscale": "D minor",
        "timesignature": "4",
        "duration": 125.0,
        "genre": "N/A",
        "prompt": "Warm jazz trio.",
        "lyrics": "[Verse]\nLate night",
        "language": "en",
        "metas": metas | {"prompt": "", "lyrics": ""},
        "audio_codes": CODES,
        "audio_paths": [],
    }


async def test_the_codes_of_a_source_are_one_object(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    assert await ended(client, desk, TRACK | {"extract_codes_only": True}) == {
        "status_message": "Audio Codes Extraction Success",
        "audio_codes": CODES,
        "audio_paths": [],
        "raw_audio_paths": [],
        "first_audio_path": None,
        "metas": {},
    }


async def test_a_plan_alone_is_an_item_without_a_file(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    (item,) = await ended(client, desk, {"analysis_only": True, "prompt": "jazz"})
    assert (item["file"], item["status"], item["prompt"], item["metas"]["prompt"]) == ("", 1, "Warm jazz trio.", "jazz")
    assert item["generation_info"] == "Analysis Only Mode Complete"
    assert (item["dit_model"], item["lm_model"]) == ("None (Analysis Only)", "acestep-5Hz-lm-0.6B")


@pytest.mark.parametrize("flag", FLAGS)
async def test_one_that_waits_or_failed_is_told_as_any_job(
    client: httpx.AsyncClient, desk: FakeDesk, flag: str
) -> None:
    task_id = (await client.post("/release_task", json=TRACK | {flag: True})).json()["data"]["task_id"]
    for status, number in ((Status.QUEUED, 0), (Status.FAILED, 2)):
        desk.jobs[-1] = replace(desk.jobs[-1], status=status, error_message="no plan")
        (entry,) = (await client.post("/query_result", json={"task_id_list": [task_id]})).json()["data"]
        assert (entry["status"], json.loads(entry["result"])[0]["status"]) == (number, number)
