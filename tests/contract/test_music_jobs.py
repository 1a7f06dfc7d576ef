"""The older API: its parameters, its documented commands, its errors."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from serve_app.dialects.parameters import PARAMETERS
from serve_app.jobs.job import Status
from tests.contract.curl import curl
from tests.contract.songs import REFS, succeeded
from tests.contract.test_release_task_parameters import LANDS

if TYPE_CHECKING:
    from tests.contract.conftest import Connect, FakeDesk

# every name that the API's document has, with its aliases
NAMES = """
caption prompt lyrics thinking vocal_language audio_format sample_mode sample_query sampleQuery description desc
use_format useFormat format model bpm key_scale keyscale keyScale time_signature timesignature timeSignature
audio_duration duration audioDuration target_duration targetDuration audio_code_string audioCodeString
inference_steps guidance_scale shift infer_method timesteps use_adg cfg_interval_start cfg_interval_end lm_model_path
lm_backend lm_temperature lm_cfg_scale lm_negative_prompt lm_top_k lm_top_p lm_repetition_penalty use_cot_caption
cot_caption cot-caption use_cot_language cot_language cot-language constrained_decoding constrainedDecoding constrained
constrained_decoding_debug task_type instruction repainting_start repainting_end audio_cover_strength dit_model ditModel
""".split()
PARAMETER_OF = {name: parameter.name for parameter in PARAMETERS for name in parameter.names}
AUDIO = "RIFF" * 100
JSON = "-H 'Content-Type: application/json'"
GENERATE = f"curl -X POST http://localhost:8001/v1/music/generate \\\n  {JSON} \\\n  -d "
TIMESTEPS = "0.97,0.76,0.615,0.5,0.395,0.28,0.18,0.085,0"
# the document's commands, their Chinese words replaced: it came to us with a damaged encoding
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (
        GENERATE
        + """'{
    "caption": "欢快的流行歌曲",
    "lyrics": "你好世界",
    "inference_steps": 8
  }'""",
        {"prompt": "欢快的流行歌曲", "lyrics": "你好世界", "inference_steps": 8},
    ),
    "thinking": (
        GENERATE
        + """'{
    "caption": "欢快的流行歌曲",
    "lyrics": "你好世界",
    "thinking": true,
    "lm_temperature": 0.85,
    "lm_cfg_scale": 2.5
  }'""",
        {"thinking": True, "lm_temperature": 0.85, "lm_cfg_scale": 2.5},
    ),
    "description": (
        GENERATE
        + """'{
    "sample_query": "安静的夜里一首轻柔的情歌",
    "thinking": true
  }'""",
        {"sample_query": "安静的夜里一首轻柔的情歌", "thinking": True, "prompt": ""},
    ),
    "format": (
        GENERATE
        + """'{
    "caption": "流行摇滚",
    "lyrics": "[Verse 1]\\n走在街上...",
    "use_format": true,
    "thinking": true
  }'""",
        {"lyrics": "[Verse 1]\n走在街上...", "use_format": True},
    ),
    "model": (
        GENERATE
        + """'{
    "caption": "电子舞曲",
    "model": "acestep-v15-turbo",
    "thinking": true
  }'""",
        {"model": "acestep-v15-turbo"},
    ),
    "timesteps": (
        GENERATE
        + f"""'{{
    "caption": "爵士钢琴三重奏",
    "timesteps": "{TIMESTEPS}",
    "thinking": true
  }}'""",
        {"timesteps": tuple(float(t) for t in TIMESTEPS.split(","))},
    ),
    "no thinking": (
        GENERATE
        + """'{
    "caption": "缓慢的情感民谣",
    "lyrics": "...",
    "thinking": false,
    "bpm": 72
  }'""",
        {"thinking": False, "bpm": 72},
    ),
    "a file": (
        """curl -X POST http://localhost:8001/v1/music/generate \\
  -F "caption=重新混音这首歌" \\
  -F "src_audio=@/path/to/local/song.mp3" \\
  -F "task_type=repaint"
""",
        {"prompt": "重新混音这首歌", "task_type": "repaint", "src_audio": "job-0.source"},
    ),
    "random": (
        f"""curl -X POST http://localhost:8001/v1/music/random \\
  {JSON} \\
  -d '{{"thinking": true}}'""",
        {"thinking": True, "sample_query": "", "prompt": ""},
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_command_of_the_document_gives_a_queued_job(
    client: httpx.AsyncClient, desk: FakeDesk, name: str
) -> None:
    command, fields = COMMANDS[name]
    reply = await curl(client, command, {"/path/to/local/song.mp3": AUDIO.encode()})
    assert (reply.status_code, reply.json()) == (200, {"job_id": "job-0", "status": "queued", "queue_position": 1})
    request = desk.jobs[0].request
    assert {field: getattr(request, field) for field in fields} == fields
    assert request.songs == 2


async def test_models_and_health_can_be_read_without_an_envelope(client: httpx.AsyncClient) -> None:
    models = (await curl(client, "curl http://localhost:8001/v1/models")).json()
    assert models["default_model"] == "acestep-v15-turbo"
    assert [(model["name"], model["is_default"]) for model in models["models"]] == [
        ("acestep-v15-turbo", True),
        ("acestep-v15-base", False),
    ]
    health = (await client.get("/health")).json()
    assert (health["status"], health["service"], health["version"]) == ("ok", "ACE-Step API", "1.0")


@pytest.mark.parametrize("kind", ["json", "data"])
async def test_every_documented_name_lands_where_the_current_api_puts_it(
    client: httpx.AsyncClient, desk: FakeDesk, kind: str
) -> None:
    wrong = []
    for name in NAMES:
        value, field, there = LANDS[PARAMETER_OF[name]]
        sent = value if kind == "json" or isinstance(value, str) else json.dumps(value)
        body: dict[str, Any] = {kind: {name: sent}}
        reply = await client.post("/v1/music/generate", **body)
        if reply.status_code != 200 or getattr(desk.jobs[-1].request, field) != there:
            wrong.append((name, reply.text))
    assert wrong == []
    assert len(desk.jobs) == len(NAMES)


@pytest.mark.parametrize("nesting", ["metas", "metadata", "user_metadata"])
async def test_metadata_may_be_nested(client: httpx.AsyncClient, desk: FakeDesk, nesting: str) -> None:
    await client.post("/v1/music/generate", json={nesting: {"bpm": 99, "keyscale": "Am", "duration": 20}})
    request = desk.jobs[0].request
    assert (request.bpm, request.key_scale, request.audio_duration) == (99, "A minor", 20.0)


async def test_a_seed_and_a_number_of_songs_are_taken_zero_too(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    await client.post("/v1/music/generate", json={"seed": 0, "use_random_seed": False, "batch_size": 1})
    assert desk.jobs[0].request.seeds == (0,)
    await client.post("/v1/music/generate", json={"guidance_scale": 0, "model": "acestep-v15-base"})
    assert desk.jobs[1].request.guidance_scale == 0


@pytest.mark.parametrize(
    ("path", "field"), [("src_audio_path", "src_audio"), ("reference_audio_path", "reference_audio")]
)
async def test_audio_may_be_named_in_json(client: httpx.AsyncClient, desk: FakeDesk, path: str, field: str) -> None:
    address = f"/v1/audio?path={REFS[0]}.mp3"
    reply = await client.post(
        "/v1/music/generate", json={"task_type": "cover", "src_audio_path": address, path: address}
    )
    assert reply.status_code == 200, reply.text
    assert desk.audio[getattr(desk.jobs[0].request, field)] == f"{REFS[0]}.mp3"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"bpm": 301}, "bpm 301"),
        ({"batch_size": 9}, "batch_size 9"),
        ({"audio_duration": "nan"}, "audio_duration is not a finite number"),
        ({"audio_format": "ogg"}, "audio_format 'ogg'"),
        ({"model": "other"}, "'other'"),
    ],
)
async def test_what_is_out_of_range_is_refused_by_name(
    client: httpx.AsyncClient, desk: FakeDesk, sent: dict[str, Any], said: str
) -> None:
    reply = await client.post("/v1/music/generate", json=sent)
    assert reply.status_code == 400
    assert said in reply.json()["detail"]
    assert desk.jobs == []


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/v1/music/random", ""),
        ("/v1/music/random", "{}"),
        ("/v1/music/random", '{"thinking": null}'),
        ("/v1/music/random?thinking=true", ""),
    ],
)
async def test_a_random_song_is_invented_and_planned_by_the_lm(
    client: httpx.AsyncClient, desk: FakeDesk, path: str, content: str
) -> None:
    await client.post(path, content=content)
    assert (desk.jobs[0].request.sample_query, desk.jobs[0].request.thinking) == ("", True)


@pytest.mark.parametrize(
    "sent", [{"json": {"thinking": False}}, {"params": {"Thinking": "0"}}, {"data": {"thinking": "no"}}]
)
async def test_a_random_song_is_not_planned_where_the_caller_says_so(
    client: httpx.AsyncClient, desk: FakeDesk, sent: dict[str, Any]
) -> None:
    await client.post("/v1/music/random", **sent)
    assert (desk.jobs[0].request.sample_query, desk.jobs[0].request.thinking) == ("", False)


async def test_an_unknown_job_is_404(client: httpx.AsyncClient) -> None:
    reply = await client.get("/v1/jobs/never")
    assert (reply.status_code, reply.json()["detail"]) == (404, "Job not found")


@pytest.mark.parametrize("path", ["/v1/music/generate", "/v1/music/random"])
async def test_a_full_queue_is_429(client: httpx.AsyncClient, desk: FakeDesk, path: str) -> None:
    desk.is_full = True
    reply = await client.post(path, json={})
    assert (reply.status_code, reply.json()["detail"]) == (429, "Server busy: queue is full")
    assert reply.headers["retry-after"] == "7"


async def test_both_apis_know_a_job(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    task_id = (await client.post("/release_task", json={})).json()["data"]["task_id"]
    assert (await client.get(f"/v1/jobs/{task_id}")).json()["status"] == "queued"
    job_id = (await client.post("/v1/music/generate", json={})).json()["job_id"]
    desk.jobs[1] = succeeded(desk.jobs[1])
    (entry,) = (await client.post("/query_result", json={"task_id_list": [job_id]})).json()["data"]
    first = (await client.get(f"/v1/jobs/{job_id}")).json()["result"]["first_audio_path"]
    assert json.loads(entry["result"])[0]["file"] == first


async def test_a_withdrawn_job_failed_in_this_apis_words(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    await client.post("/v1/music/generate", json={})
    desk.jobs[0] = replace(desk.jobs[0], status=Status.CANCELLED)
    seen = (await client.get("/v1/jobs/job-0")).json()
    assert (seen["status"], seen["error"], seen["result"]) == ("failed", "the job was cancelled", None)


async def test_a_key_closes_all_of_it(connect: Connect) -> None:
    async with connect(keys=("sesame",)) as client:
        paths = [("POST", "/v1/music/generate"), ("POST", "/v1/music/random"), ("GET", "/v1/jobs/job-0")]
        for method, path in paths:
            assert (await client.request(method, path, json={})).status_code == 401
        assert (await client.post("/v1/music/generate", json={"ai_token": "sesame"})).status_code == 200
        headers = {"Authorization": "Bearer sesame"}
        assert (await client.get("/v1/jobs/job-0", headers=headers)).status_code == 200


async def test_a_request_sent_twice_under_one_key_is_one_job_of_its_priority(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    body = {"caption": "jazz", "priority": "high"}
    for _ in range(2):
        assert (await client.post("/v1/music/generate", json=body, headers={"idempotency-key": "k"})).status_code == 200
    assert [job.priority for job in desk.jobs] == ["high"]
