"""What `POST /v2/jobs` takes and refuses: its fields are a MusicRequest's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.music import MusicRequest
from serve_app.dialects.native.fields import DESCRIPTIONS, OwnFields
from serve_app.jobs.job import Priority
from tests.contract.conftest import BASE, TURBO
from tests.contract.native import succeeded

if TYPE_CHECKING:
    from tests.contract.conftest import FakeDesk

# one that is not the default of every field that is taken over as it is
VALUES: dict[str, Any] = {
    "model": BASE,
    "lm_model": "acestep-5Hz-lm-0.6B",
    "task_type": "text2music",
    "prompt": "jazz",
    "lyrics": "la",
    "bpm": 90,
    "key_scale": "A minor",
    "time_signature": "3",
    "audio_duration": 30.0,
    "vocal_language": "en",
    "analysis": "plan",
    "seeds": [5, 6],
    "audio_format": "opus",
    "audio_bitrate": 96,
    "audio_sample_rate": 44_100,
    "inference_steps": 12,
    "guidance_scale": 5.0,
    "shift": 2.0,
    "infer_method": "heun",
    "timesteps": [1.0, 0.5, 0.0],
    "use_adg": True,
    "cfg_interval_start": 0.1,
    "cfg_interval_end": 0.9,
    "velocity_norm_threshold": 1.0,
    "velocity_ema_factor": 0.1,
    "dcw_enabled": True,
    "dcw_scaler": 0.2,
    "dcw_high_scaler": 0.3,
    "retake_seeds": [7],
    "retake_variance": 0.5,
    "loras": [{"name": "lo-fi", "scale": 0.5}],
    "thinking": True,
    "sample_query": "",
    "use_format": True,
    "audio_codes": [[1, 2, 3]],
    "lm_backend": "pt",
    "lm_temperature": 0.5,
    "lm_cfg_scale": 1.5,
    "lm_negative_prompt": "noise",
    "lm_top_k": 10,
    "lm_top_p": 0.5,
    "lm_repetition_penalty": 1.2,
    "use_cot_caption": False,
    "use_cot_language": False,
    "constrained_decoding": False,
    "constrained_decoding_debug": True,
    "allow_lm_batch": False,
    "instruction": "Do it",
    "track_name": "drums",
    "track_classes": ["drums", "bass"],
    "repainting_start": 1.0,
    "repainting_end": 2.0,
    "repaint_mode": "aggressive",
    "repaint_strength": 0.1,
    "chunk_mask_mode": "auto",
    "audio_cover_strength": 0.5,
    "cover_noise_strength": 0.5,
}
WITH: dict[str, dict[str, Any]] = {  # what a value of a field is only good with
    "audio_sample_rate": {"audio_format": "wav"},
    "retake_seeds": {"retake_variance": 0.5},
}
AUDIO = {"src_audio", "reference_audio"}


async def faults(client: httpx.AsyncClient, **body: Any) -> dict[str, str]:
    """Messages by field."""
    reply = await client.post("/v2/jobs", json=body)
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")
    problem = reply.json()
    assert (problem["type"], problem["instance"]) == ("urn:acestep:problem:invalid_request", "/v2/jobs")
    assert all(fault["message"] in problem["detail"] for fault in problem["errors"])
    return {fault["field"]: fault["message"] for fault in problem["errors"]}


def test_every_field_of_a_request_may_be_given_and_is_described() -> None:
    assert VALUES.keys() | AUDIO >= MusicRequest.model_fields.keys()
    assert DESCRIPTIONS.keys() == MusicRequest.model_fields.keys() - OwnFields.model_fields.keys()


@pytest.mark.parametrize("name", [name for name in VALUES if name in MusicRequest.model_fields])
async def test_a_field_lands_in_the_request_under_its_own_name(
    client: httpx.AsyncClient, desk: FakeDesk, name: str
) -> None:
    reply = await client.post("/v2/jobs", json={name: VALUES[name], **WITH.get(name, {})})
    assert reply.status_code == 202, reply.text
    assert desk.jobs[0].request.model_dump(mode="json")[name] == VALUES[name]
    assert reply.json()["request"][name] == VALUES[name]


async def test_a_job_of_nothing_is_one_song_of_the_default_model_and_a_drawn_seed(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    seeds = set()
    for _ in range(3):
        await client.post("/v2/jobs", json={})
        seeds |= {*desk.jobs[-1].request.seeds}
    assert (desk.jobs[0].request.model, desk.jobs[0].request.songs, len(seeds)) == (TURBO, 1, 3)


async def test_seeds_and_retake_seeds_are_drawn_one_a_song(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    await client.post("/v2/jobs", json={"batch_size": 3, "retake_variance": 0.2})
    request = desk.jobs[0].request
    assert (len({*request.seeds}), len({*request.retake_seeds})) == (3, 3)


async def test_terms_are_the_jobs_not_the_requests(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    url = "https://example.org/told"
    for more in ({"reuse": True, "seeds": [1]}, {"webhook": {"url": url}}):
        assert (await client.post("/v2/jobs", json={"priority": "low", "deadline_s": 60, **more})).status_code == 202
    one, other = desk.terms
    assert (one.priority, one.deadline_s, one.reuse, one.webhook) == (Priority.LOW, 60, True, None)
    assert (other.reuse, other.webhook) == (False, url)


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"bpm": 301}, "bpm", "301: Input should be less than or equal to 300"),
        ({"bpm": "120"}, "bpm", "'120': Input should be a valid integer"),
        ({"thinking": 1}, "thinking", "1: Input should be a valid boolean"),
        ({"prompt": None}, "prompt", "None: Input should be a valid string"),
        ({"key_scale": "H"}, "key_scale", "'H' is not a key"),
        ({"vocal_language": "xx"}, "vocal_language", "'xx' is not a known language"),
        ({"task_type": "hum"}, "task_type", "'hum': Input should be 'text2music', 'cover'"),
        ({"lyrics": "l" * 8193}, "lyrics", "at most 8192 characters"),
        ({"seeds": []}, "seeds", "at least 1 item"),
        ({"seeds": list(range(9))}, "seeds", "at most 8 items"),
        ({"seeds": [1, -1]}, "seeds.1", "-1: Input should be greater than or equal to 0"),
        ({"audio_codes": [[1], [64_000]]}, "audio_codes.1.0", "less than or equal to 63999"),
        ({"loras": [{"name": "lo-fi", "weight": 1}]}, "loras.0.weight", "not known here"),
        ({"loras": [{"name": "loud"}]}, "loras.0.name", "no adapter is called 'loud'"),
        ({"duration": 30}, "duration", "not known here; did you mean audio_duration?"),
        ({"model": "acestep-v15-xl-sft"}, "model", f"this server runs {TURBO}, {BASE}"),
        ({"lm_model": "x"}, "lm_model", "this server runs acestep-5Hz-lm-0.6B"),
        ({"deadline_s": 0}, "deadline_s", "greater than 0"),
        ({"priority": "urgent"}, "priority", "'high', 'normal' or 'low'"),
        ({"batch_size": 2, "seeds": [1]}, "batch_size", "batch_size 2 with 1 seeds"),
        ({"reuse": True}, "reuse", "reuse without seeds"),
        ({"reuse": True, "seeds": [1], "reference_audio": "a.mp3"}, "reuse", "reuse with audio"),
        ({"reuse": True, "seeds": [1], "webhook": {"url": "https://x"}}, "webhook", "webhook with reuse"),
        ({"webhook": {"url": "https://x", "secret": "y"}}, "webhook.secret", "not known here"),
        ({"webhook": "https://x"}, "webhook", "'https://x': Input should be an object"),
        ({"repainting_start": 5, "repainting_end": 4}, "repainting_end", "4 s is not after repainting_start 5 s"),
        ({"inference_steps": 21}, "inference_steps", "takes 1 to 20"),
        ({"timesteps": [0.1, 0.9]}, "timesteps", "rise somewhere"),
        ({"task_type": "extract", "src_audio": "a.mp3"}, "task_type", "is not one of acestep-v15-turbo's"),
        ({"task_type": "cover"}, "src_audio", "works on source audio, and there is none"),
        ({"src_audio": "a.mp3"}, "src_audio", "src_audio is not used: text2music works on none"),
        ({"audio_bitrate": 100}, "audio_bitrate", "100 kbit/s; allowed: 64, 96"),
        ({"audio_format": "flac", "audio_bitrate": 96}, "audio_bitrate", "has no bit rate to choose"),
        ({"audio_sample_rate": 8000}, "audio_sample_rate", "allowed: 44100, 48000"),
        ({"retake_seeds": [1]}, "retake_variance", "retake_variance 0 with 1 retake seeds"),
    ],
)
async def test_what_is_not_allowed_is_told_with_its_field(
    client: httpx.AsyncClient, desk: FakeDesk, body: dict[str, Any], field: str, said: str
) -> None:
    told = await faults(client, **body)
    assert said in told[field]
    assert len(told) == 1
    assert desk.jobs == []


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_no_number_is_endless(client: httpx.AsyncClient, value: str) -> None:
    content = f'{{"repainting_start": {value}}}'
    reply = await client.post("/v2/jobs", content=content, headers={"content-type": "application/json"})
    assert reply.status_code in (400, 422)


async def test_all_faults_are_told_at_once_with_places_and_what_is_allowed(client: httpx.AsyncClient) -> None:
    body = {"bpm": 400, "tempo": 1, "model": "mine", "loras": [{"name": "lo-fi", "scale": 3}], "timesteps": [2.0]}
    told = (await client.post("/v2/jobs", json=body)).json()["errors"]
    assert [(fault["field"], fault["pointer"], fault.get("allowed")) for fault in told] == [
        ("bpm", "#/bpm", {"type": "integer", "minimum": 30, "maximum": 300, "nullable": True}),
        ("timesteps.0", "#/timesteps/0", {"type": "number", "minimum": 0.0, "maximum": 1.0}),
        ("loras.0.scale", "#/loras/0/scale", {"type": "number", "minimum": -2.0, "maximum": 2.0}),
        ("tempo", "#/tempo", None),
        ("model", "#/model", {"enum": [TURBO, BASE]}),
    ]


async def test_all_contradictions_are_told_at_once(client: httpx.AsyncClient) -> None:
    told = await faults(
        client, task_type="lego", inference_steps=30, seeds=[1], batch_size=2, audio_format="wav", audio_bitrate=64
    )
    assert told.keys() == {"task_type", "src_audio", "inference_steps", "batch_size", "audio_bitrate"}


async def test_without_an_lm_what_needs_one_is_refused_by_name(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.catalogue = desk.catalogue.__class__(desk.catalogue.models, ())
    told = await faults(client, thinking=True, sample_query="", lyrics="l")
    assert told.keys() == {"thinking", "sample_query"}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"1", b'"x"', b"\xff", b"[" * 100_000])
async def test_a_body_that_is_no_object_is_a_400(client: httpx.AsyncClient, content: bytes) -> None:
    reply = await client.post("/v2/jobs", content=content, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["type"]) == (400, "urn:acestep:problem:invalid_json")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_body_of_another_kind_is_a_415(client: httpx.AsyncClient, kind: str) -> None:
    reply = await client.post("/v2/jobs", content=b"{}", headers={"content-type": kind})
    assert (reply.status_code, reply.json()["status"], reply.headers["accept"]) == (415, 415, "application/json")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.mine+json"])
async def test_json_of_any_kind_is_taken(client: httpx.AsyncClient, kind: str) -> None:
    assert (await client.post("/v2/jobs", content=b"{}", headers={"content-type": kind})).status_code == 202


@pytest.mark.parametrize(
    "value",
    ["a.mp3", "/v2/jobs/job-0/tracks/1", "http://server/v2/jobs/job-0/tracks/1", "/v1/audio?path=abc.mp3"],
)
async def test_a_track_is_named_by_its_id_or_its_address(client: httpx.AsyncClient, desk: FakeDesk, value: str) -> None:
    await client.post("/v2/jobs", json={})
    desk.jobs[0] = succeeded(desk.jobs[0])
    body = {"task_type": "cover", "src_audio": value, "reference_audio": value}
    reply = await client.post("/v2/jobs", json=body)
    assert reply.status_code == 202
    expected = "a.mp3" if value == "a.mp3" else "abc.mp3"
    assert [*desk.audio.values()] == [expected, expected]


@pytest.mark.parametrize(
    "value",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "C:\\x.wav",
        "https://elsewhere.example/song.mp3",
        "/v2/jobs/job-9/tracks/1",
        "/v2/jobs/job-0/tracks/2",
        "/v2/jobs/job-0/tracks/1/peaks",
        "/v1/audio",
        "http://[",
    ],
)
async def test_no_other_audio_is_ever_named(client: httpx.AsyncClient, desk: FakeDesk, value: str) -> None:
    await client.post("/v2/jobs", json={})
    desk.jobs[0] = succeeded(desk.jobs[0])
    told = await faults(client, task_type="cover", src_audio=value, reference_audio=value)
    assert told.keys() == {"src_audio", "reference_audio"}


async def test_the_examples_of_the_api_page_are_taken(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    body = schema["paths"]["/v2/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert len(body["examples"]) == 2
    for example in body["examples"]:
        assert (await client.post("/v2/jobs", json=example)).status_code == 202
    assert "$ref" not in json.dumps(body)


async def test_a_body_of_countless_values_or_names_is_refused_quickly_and_briefly(client: httpx.AsyncClient) -> None:
    huge = await client.post("/v2/jobs", json={"audio_codes": [[1] * 100_001]})
    assert huge.status_code == 413
    strange = await client.post("/v2/jobs", json={f"name{number}": 1 for number in range(5000)})
    assert (strange.status_code, len(strange.json()["errors"])) == (422, 100)
    long = await client.post("/v2/jobs", json={"audio_codes": [[1] * 3001]})
    assert long.json()["errors"][0]["field"].startswith("audio_codes.0")
