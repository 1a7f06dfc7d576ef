"""Every curl of the three documents of the current API, run as written, host and file path apart.

A case of golden/current.json is the document it is from, the request, what is meant by it, and the reply. Of what is
meant only what differs from MusicRequest's own defaults is told; seeds are drawn anew each time.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from models.music import AudioFormat, Made, Track
from serve_app.jobs.job import Status
from tests.contract.conftest import CONTENT, SONG

if TYPE_CHECKING:
    import httpx

    from tests.contract.conftest import Connect, FakeDesk

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden" / "current.json").read_text())
FILE_PATH = "%2Ftmp%2Fapi_audio%2Fabc123.mp3"
KEY = "your-api-key"
ASKED_FOR = "550e8400-e29b-41d4-a716-446655440000"
# what the documents show of a reply; others keep to these names and may send more
DOCUMENTED = {
    "/release_task": {"task_id", "status", "queue_position"},
    "/format_input": {*("caption", "lyrics", "bpm", "key_scale", "time_signature", "duration", "vocal_language")},
    "/create_random_sample": {*("caption", "lyrics", "bpm", "key_scale", "time_signature", "duration")},
    "/v1/models": {"models", "default_model"},
    "/v1/stats": {"jobs", "queue_size", "queue_maxsize", "avg_job_seconds"},
    "/health": {"status", "service", "version"},
}
ITEM = {"file", "wave", "status", "create_time", "env", "prompt", "lyrics", "metas"}
ITEM |= {"generation_info", "seed_value", "lm_model", "dit_model"}


def name_of(case: dict[str, Any]) -> str:
    told = case.get("body") or case.get("form") or ""
    return f"{case['seed']} {case['path']} {''.join(str(told).split())[:60]}"


async def run(client: httpx.AsyncClient, case: dict[str, Any]) -> httpx.Response:
    path = case["path"].replace(FILE_PATH, "abc.mp3")
    files = {name: (file, CONTENT) for name, file in case.get("files", {}).items()}
    how: dict[str, Any] = {"content": case["body"]} if "body" in case else {"data": case.get("form"), "files": files}
    return await client.request(case["method"], path, headers=case["headers"], **how)


async def finish(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    """The job that the documents ask for has been made."""
    await client.post("/release_task", json={"prompt": "p", "seed": "12345,67890", "use_random_seed": False})
    tracks = tuple(
        Track(ref=f"{n:032x}.mp3", audio_format=AudioFormat.MP3, seconds=125, size=1, sha256="") for n in range(2)
    )
    made = Made(
        tracks=tracks,
        plans=(SONG, SONG),
        dit_model="acestep-v15-turbo",
        lm_model=SONG.lm_model,
        seconds_by_stage={"denoise": 1.5},
    )
    desk.jobs[0] = replace(desk.jobs[0], id=ASKED_FOR, status=Status.SUCCEEDED, made=made, stage="succeeded")


def meant(desk: FakeDesk) -> dict[str, Any] | None:
    request = desk.jobs[-1].request if desk.jobs else desk.asked[-1] if desk.asked else None
    return None if request is None else request.model_dump(mode="json", exclude_defaults=True, exclude={"seeds"})


def told(reply: httpx.Response) -> Any:
    return {name: value for name, value in reply.json().items() if name != "timestamp"}


@pytest.mark.parametrize("case", CASES, ids=name_of)
async def test_a_documented_call_gives_what_is_documented(
    connect: Connect, desk: FakeDesk, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secrets, "choice", lambda choices: choices[0])
    async with connect(keys=[KEY] if "Authorization" in case["headers"] else []) as client:
        if case["path"] == "/query_result":
            await finish(client, desk)
        reply = await run(client, case)
    assert reply.status_code == 200, reply.text
    if case["path"].startswith("/v1/audio"):
        assert reply.content == CONTENT
        return
    assert told(reply) == case["reply"]
    assert reply.json().keys() >= {"data", "code", "error", "timestamp", "extra"}
    data = reply.json()["data"]
    if case["path"] == "/query_result":
        assert data[0].keys() >= {"task_id", "status", "result"}
        assert all(item.keys() >= ITEM for item in json.loads(data[0]["result"]))
    else:
        assert data.keys() >= DOCUMENTED[case["path"]]
        assert meant(desk) == case.get("canonical")


def test_the_documents_are_all_there() -> None:
    assert [sum(case["seed"] == seed for case in CASES) for seed in ("000", "002", "003")] == [14, 1, 14]
