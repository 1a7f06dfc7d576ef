"""Tracks, waveforms, uploads and capabilities of the native API."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote

import httpx
import pytest

from models.checkpoints import GUIDANCE_FIELDS
from models.music import AudioFormat
from serve_app.dialects.desk import Catalogue
from serve_app.dialects.native import schema
from tests.contract.conftest import BASE, CONTENT, TURBO
from tests.contract.native import made, succeeded

if TYPE_CHECKING:
    from tests.contract.conftest import Connect, FakeDesk

TRACK = "/v2/jobs/job-0/tracks/1"


@pytest.fixture
async def song(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    await client.post("/v2/jobs", json={"prompt": "Größe: 100 %, “folk”/../x", "seeds": [42]})
    desk.jobs[0] = succeeded(desk.jobs[0])


@pytest.mark.usefixtures("song")
async def test_a_track_is_sent_whole_or_in_part_and_never_changes(client: httpx.AsyncClient) -> None:
    whole = await client.get(TRACK)
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, CONTENT, "audio/mpeg")
    assert "immutable" in whole.headers["cache-control"]
    part = await client.get(TRACK, headers={"range": "bytes=5-9"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, CONTENT[5:10], "bytes 5-9/1024")
    head = await client.head(TRACK)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "1024")
    known = await client.get(TRACK, headers={"if-none-match": whole.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")


@pytest.mark.usefixtures("song")
async def test_a_part_outside_the_track_is_a_problem(client: httpx.AsyncClient) -> None:
    reply = await client.get(TRACK, headers={"range": "bytes=5000-"})
    assert (reply.status_code, reply.headers["content-range"]) == (416, "bytes */1024")
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.usefixtures("song")
async def test_a_track_is_saved_under_the_words_it_was_asked_for_with(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    told = (await client.get(TRACK)).headers["content-disposition"]
    assert told.isascii()
    assert unquote(told) == "inline; filename*=utf-8''Größe-100-folk-x-42.mp3"
    desk.jobs[0] = replace(desk.jobs[0], request=desk.jobs[0].request.model_copy(update={"prompt": "../…"}))
    assert (await client.get(TRACK)).headers["content-disposition"] == "inline; filename*=utf-8''song-42.mp3"


@pytest.mark.usefixtures("song")
@pytest.mark.parametrize("n", ["0", "9", "-1", "x", "1.5"])
async def test_a_track_that_can_never_be_is_refused(client: httpx.AsyncClient, n: str) -> None:
    assert (await client.get(f"/v2/jobs/job-0/tracks/{n}")).status_code == 422


@pytest.mark.parametrize("path", ["", "/peaks"])
async def test_a_track_that_is_not_there_yet_or_no_more_is_told_apart(
    client: httpx.AsyncClient, desk: FakeDesk, path: str
) -> None:
    await client.post("/v2/jobs", json={})
    assert (await client.get(f"{TRACK}{path}")).status_code == 404
    desk.jobs[0] = succeeded(desk.jobs[0])
    assert (await client.get(f"/v2/jobs/job-0/tracks/2{path}")).status_code == 404
    desk.jobs[0] = replace(desk.jobs[0], made=made(1, AudioFormat.WAV))  # whose file the desk has not
    reply = await client.get(f"{TRACK}{path}")
    assert (reply.status_code, reply.json()["type"]) == (410, "urn:acestep:problem:track_gone")


@pytest.mark.usefixtures("song")
async def test_a_waveform_has_as_many_points_as_asked_for_and_never_changes(client: httpx.AsyncClient) -> None:
    reply = await client.get(f"{TRACK}/peaks?points=3")
    assert reply.json() == {"seconds": 10.0, "points": 3, "lowest": [-0.5] * 3, "highest": [0.25] * 3}
    assert "immutable" in reply.headers["cache-control"]
    known = await client.get(f"{TRACK}/peaks?points=3", headers={"if-none-match": reply.headers["etag"]})
    assert (known.status_code, known.content) == (304, b"")
    other = await client.get(f"{TRACK}/peaks", headers={"if-none-match": reply.headers["etag"]})
    assert other.json()["points"] == 1000


@pytest.mark.usefixtures("song")
@pytest.mark.parametrize("points", ["0", "4001", "x"])
async def test_a_waveform_of_no_or_too_many_points_is_refused(client: httpx.AsyncClient, points: str) -> None:
    reply = await client.get(f"{TRACK}/peaks?points={points}")
    assert (reply.status_code, reply.json()["errors"][0]["field"]) == (422, "query points")


@pytest.mark.parametrize("kind", ["audio/wav", "audio/x-anything", "application/octet-stream", None])
async def test_an_upload_is_the_body_itself(client: httpx.AsyncClient, desk: FakeDesk, kind: str | None) -> None:
    reply = await client.post(
        "/v2/uploads", content=b"RIFF and so on", headers={} if kind is None else {"content-type": kind}
    )
    assert (reply.status_code, desk.uploads["", reply.json()["id"]]) == (201, b"RIFF and so on")
    assert reply.json() == {"id": "0" * 32, "seconds": 2.0, "sample_rate": 48_000, "channels": 2, "size": 14}


async def test_an_upload_may_be_the_one_file_of_a_form(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    reply = await client.post("/v2/uploads", files={"whatever": b"RIFF and so on"})
    assert (reply.status_code, desk.uploads["", reply.json()["id"]]) == (201, b"RIFF and so on")
    body = {"task_type": "cover", "src_audio": reply.json()["id"]}
    assert (await client.post("/v2/jobs", json=body)).status_code == 202
    assert desk.audio["job-0.source"] == reply.json()["id"]


async def test_a_form_of_more_or_less_than_one_file_is_refused(client: httpx.AsyncClient) -> None:
    two = await client.post("/v2/uploads", files={"a": b"RIFF", "b": b"RIFF"})
    named = await client.post("/v2/uploads", files={"a": b"RIFF"}, data={"name": "x"})
    assert (two.status_code, named.status_code) == (422, 422)


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded", "text/plain"])
async def test_what_is_no_audio_by_its_kind_is_a_415(client: httpx.AsyncClient, kind: str) -> None:
    reply = await client.post("/v2/uploads", content=b"RIFF", headers={"content-type": kind})
    assert reply.status_code == 415


async def test_what_is_no_audio_by_its_content_is_told(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v2/uploads", content=b"this is a text", headers={"content-type": "audio/wav"})
    assert (reply.status_code, reply.json()["type"]) == (422, "urn:acestep:problem:invalid_audio")


async def test_an_upload_may_be_as_large_as_a_file_and_no_larger(connect: Connect, desk: FakeDesk) -> None:
    async with connect(max_bytes=10, max_upload_bytes=100) as client:
        headers = {"content-type": "audio/wav"}
        fits = await client.post("/v2/uploads", content=b"RIFF" * 25, headers=headers)
        larger = await client.post("/v2/uploads", content=b"RIFF" * 26, headers=headers)
        told = (await client.get("/v2/capabilities")).json()["uploads"]["file_bytes"]
    assert (fits.status_code, larger.status_code, told) == (201, 413, 100)
    assert larger.headers["content-type"] == "application/problem+json"


async def test_a_form_can_be_built_from_the_capabilities(client: httpx.AsyncClient) -> None:
    told = (await client.get("/v2/capabilities")).json()
    assert [model["name"] for model in told["models"]] == [TURBO, BASE]
    turbo, base = told["models"]
    assert (turbo["defaults"], turbo["ranges"]) == (
        {"inference_steps": 8, "shift": 3.0},
        {"inference_steps": {"minimum": 1, "maximum": 20}},
    )
    assert base["defaults"]["guidance_scale"] == 7.0
    assert {*base["parameters"]} - {*turbo["parameters"]} == {*GUIDANCE_FIELDS, "track_name", "track_classes"}
    assert "repainting_start" in told["tasks"]["repaint"]["parameters"]
    assert not {"repainting_start", "src_audio"} & {*told["tasks"]["text2music"]["parameters"]}
    assert "audio_codes" not in told["tasks"]["repaint"]["parameters"]
    assert told["parameters"]["bpm"].items() >= {"type": "integer", "minimum": 30, "maximum": 300}.items()
    assert told["parameters"].keys() == schema.fields().keys()
    assert told["formats"]["opus"] == {
        "media_type": "audio/ogg",
        "sample_rates": [48_000],
        "kbit_per_s": [64, 96, 128, 160, 192, 224, 256, 320],
        "default_kbit_per_s": 128,
    }
    assert (told["formats"]["wav"]["kbit_per_s"], told["adapters"]) == ([], ["lo-fi"])
    assert ("en" in told["languages"], "C major" in told["keys"], told["time_signatures"]) == (
        True,
        True,
        ["2", "3", "4", "6"],
    )
    assert told["limits"]["seconds"] == [10.0, 600.0]


async def test_tasks_that_no_model_does_are_not_told(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.catalogue = Catalogue(desk.catalogue.models[:1], ())
    told = (await client.get("/v2/capabilities")).json()
    assert (sorted(told["tasks"]), told["lm_models"]) == (["cover", "repaint", "text2music"], [])
