"""The v1 API: every parameter lands or is named as not applied; its documented commands; its failures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.music import Lora
from serve_app.dialects.desk import Catalogue
from serve_app.dialects.gradio_v1.requests import DOCUMENTED, GenerateMusic
from serve_app.jobs.job import Job, Status
from tests.contract.conftest import CATALOGUE, CONTENT
from tests.contract.curl import curl
from tests.contract.songs import REFS, failed, made_of, succeeded

if TYPE_CHECKING:
    from tests.contract.conftest import Connect, FakeDesk

TURBO, BASE = CATALOGUE.models
TRACK = f"{REFS[0]}.wav"
NOT_IN_1_5 = "a 1.5 model has no such thing"

# parameter: value sent, and where it is in MusicRequest of a guided model
LANDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "format": ("flac", {"audio_format": "flac"}),
    "audio_duration": (12.5, {"audio_duration": 12.5}),
    "prompt": ("jazz piano", {"prompt": "jazz piano"}),
    "lyrics": ("[verse]\nla", {"lyrics": "[verse]\nla"}),
    "infer_step": (30, {"inference_steps": 30}),
    "guidance_scale": (15.0, {"guidance_scale": 15.0}),
    "scheduler_type": ("heun", {"infer_method": "heun"}),
    "manual_seeds": ("42", {"seeds": (42,)}),
    "guidance_interval": (0.5, {"cfg_interval_start": 0.25, "cfg_interval_end": 0.75}),
    "lora_name_or_path": ("warm", {"loras": (Lora(name="warm", scale=1.0),)}),
}
# parameter: value sent, and why nothing comes of it
TOLD: dict[str, tuple[Any, str]] = {
    "cfg_type": ("cfg_star", "apg is the only one here"),
    "omega_scale": (10.0, NOT_IN_1_5),
    "guidance_interval_decay": (0.5, NOT_IN_1_5),
    "min_guidance_scale": (3.0, NOT_IN_1_5),
    "use_erg_tag": (True, NOT_IN_1_5),
    "use_erg_lyric": (True, NOT_IN_1_5),
    "use_erg_diffusion": (True, NOT_IN_1_5),
    "oss_steps": ("1,5,9", NOT_IN_1_5),
    "guidance_scale_text": (5.0, NOT_IN_1_5),
    "guidance_scale_lyric": (1.5, NOT_IN_1_5),
    "ref_audio_input": (TRACK, "audio2audio_enable is false"),
}
TOGETHER = {"audio2audio_enable", "ref_audio_strength", "lora_weight"}  # tested with what they belong to


async def generate(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    reply = await client.post("/generate_music", json=body)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


@pytest.fixture
def guided(desk: FakeDesk) -> FakeDesk:
    """A server whose default model takes more steps and guidance."""
    desk.catalogue = Catalogue((replace(BASE, is_default=True), replace(TURBO, is_default=False)), CATALOGUE.lm_models)
    desk.becomes = succeeded
    return desk


def test_the_tables_have_every_documented_parameter() -> None:
    assert LANDS.keys() | TOLD.keys() | TOGETHER == GenerateMusic.model_fields.keys()
    assert DOCUMENTED.keys() == GenerateMusic.model_fields.keys()


async def test_what_a_1_5_model_can_do_lands_and_nothing_else_is_told(
    client: httpx.AsyncClient, guided: FakeDesk
) -> None:
    for name, (value, fields) in LANDS.items():
        reply = await generate(client, **{name: value})
        request = guided.jobs[-1].request
        assert {field: getattr(request, field) for field in fields} == fields
        assert (reply["not_applied"], reply["params_json"][name]) == ([], value)


async def test_what_a_1_5_model_cannot_do_is_named_and_recorded(client: httpx.AsyncClient, guided: FakeDesk) -> None:
    for name, (value, reason) in TOLD.items():
        reply = await generate(client, **{name: value})
        assert reply["not_applied"] == [f"{name}: not applied, {reason}"]
        assert reply["params_json"][name] == value


async def test_what_is_not_known_is_named(client: httpx.AsyncClient, guided: FakeDesk) -> None:
    content = '{"return_file_data": true, "nested": [NaN, {"deep": 1e999}]}'
    reply = await client.post("/generate_music", content=content, headers={"content-type": "application/json"})
    assert reply.json()["not_applied"] == [
        "nested: not applied, not known here",
        "return_file_data: not applied, not known here",
    ]


async def test_a_minimal_request_takes_the_models_own_steps_and_the_words_as_they_are(
    client: httpx.AsyncClient, guided: FakeDesk
) -> None:
    reply = await generate(client, prompt="jazz")
    request = guided.jobs[0].request
    assert (request.model, request.inference_steps, request.guidance_scale) == (BASE.name, BASE.default_steps, None)
    assert (request.audio_duration, request.audio_format, request.songs) == (30.0, "wav", 1)
    assert (request.use_cot_caption, request.thinking) == (False, False)
    assert reply["not_applied"] == []


async def test_a_turbo_model_takes_fewer_steps_and_no_guidance_and_that_is_told(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    desk.becomes = succeeded
    reply = await generate(client, infer_step=60, guidance_scale=15.0, guidance_interval=0.5)
    assert (desk.jobs[0].request.inference_steps, desk.jobs[0].request.guidance_scale) == (20, None)
    assert reply["params_json"]["infer_step"] == 20
    assert reply["not_applied"] == [
        f"infer_step: not applied, {TURBO.name} takes at most 20, and 20 are made",
        f"guidance_scale: not applied, {TURBO.name} is not guided",
        f"guidance_interval: not applied, {TURBO.name} is not guided",
    ]


@pytest.mark.parametrize(
    ("scheduler", "method", "told"),
    [
        ("euler", "ode", []),
        ("heun", "heun", []),
        ("pingpong", "sde", []),
        ("ddim", "ode", ["scheduler_type: not applied, euler is; allowed: euler, heun, pingpong"]),
    ],
)
async def test_a_scheduler_is_a_method_or_is_told(
    client: httpx.AsyncClient, guided: FakeDesk, scheduler: str, method: str, told: list[str]
) -> None:
    reply = await generate(client, scheduler_type=scheduler)
    assert (guided.jobs[0].request.infer_method, reply["not_applied"]) == (method, told)


@pytest.mark.parametrize(
    "sent",
    [TRACK, f"./outputs/{TRACK}", f"/outputs/{TRACK}", f"http://x:8019/outputs/{TRACK}", f"/v1/audio?path={TRACK}"],
)
async def test_a_song_is_made_from_a_finished_one(client: httpx.AsyncClient, guided: FakeDesk, sent: str) -> None:
    body = {"audio2audio_enable": True, "ref_audio_input": sent, "ref_audio_strength": 0.7, "audio_duration": 30.0}
    reply = await generate(client, **body)
    request = guided.jobs[0].request
    assert (request.task_type, request.audio_cover_strength, request.cover_noise_strength) == ("cover", 0.7, 0.7)
    assert request.audio_duration is None
    assert guided.audio == {request.src_audio: TRACK}
    assert reply["not_applied"] == ["audio_duration: not applied, a song made from a source is as long as it"]


async def test_an_adapter_has_a_weight_and_several_seeds_make_one_song(
    client: httpx.AsyncClient, guided: FakeDesk
) -> None:
    reply = await generate(client, lora_name_or_path="warm", lora_weight=0.5, manual_seeds="3, 4")
    assert guided.jobs[0].request.loras == (Lora(name="warm", scale=0.5),)
    assert guided.jobs[0].request.seeds == (3,)
    assert reply["not_applied"] == ["manual_seeds: not applied, one song is made, of the first of 2"]
    assert reply["params_json"]["actual_seeds"] == [3]


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"format": "invalid_format", "audio_duration": -1, "infer_step": 0}, "format 'invalid_format'"),
        ({"format": "ogg"}, "format 'ogg'"),
        ({"audio_duration": -1}, "audio_duration -1"),
        ({"audio_duration": 601}, "audio_duration 601"),
        ({"infer_step": 0}, "infer_step 0"),
        ({"guidance_scale": 31}, "guidance_scale 31"),
        ({"manual_seeds": "a"}, "manual_seeds is not a number"),
        ({"manual_seeds": -2}, "manual_seeds -2"),
        ({"lora_name_or_path": "/models/warm"}, "lora_name_or_path '/models/warm'"),
        ({"lora_name_or_path": "warm", "lora_weight": 3}, "lora_weight 3"),
        ({"prompt": "p" * 2049}, "prompt"),
        ({"audio2audio_enable": True}, "ref_audio_input names no audio"),
        ({"audio2audio_enable": True, "ref_audio_input": "/etc/passwd"}, "'/etc/passwd': absolute audio file paths"),
        ({"audio2audio_enable": True, "ref_audio_input": "./outputs/../a.wav"}, "ref_audio_input './outputs/../a.wav'"),
    ],
)
async def test_what_is_out_of_range_is_no_success_and_named(
    client: httpx.AsyncClient, guided: FakeDesk, sent: dict[str, Any], said: str
) -> None:
    reply = await generate(client, **sent)
    assert reply["success"] is False
    assert said in reply["error_message"]
    assert guided.jobs == []


@pytest.mark.parametrize(
    "content",
    [
        '{"audio_duration": "long"}',
        '{"prompt": 1}',
        '{"infer_step": 1.5}',
        '{"guidance_interval": 1.5}',
        '{"use_erg_tag": "perhaps"}',
        '{"omega_scale": NaN}',
        '{"audio_duration": null}',
        "[]",
        "{",
    ],
)
async def test_a_wrong_type_is_422_with_a_list(client: httpx.AsyncClient, desk: FakeDesk, content: str) -> None:
    reply = await client.post("/generate_music", content=content, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    assert {"loc", "msg", "type"} <= reply.json()["detail"][0].keys()
    assert desk.jobs == []


COMMAND = """curl -X POST "http://localhost:8019/generate_music" \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "acoustic guitar, peaceful",
    "audio_duration": 10.0,
    "infer_step": 20
  }'
"""


async def test_the_command_of_the_document_makes_a_song(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.becomes = succeeded
    reply = (await curl(client, COMMAND)).json()
    request = desk.jobs[0].request
    assert (request.prompt, request.audio_duration, request.inference_steps) == ("acoustic guitar, peaceful", 10.0, 20)
    assert (reply["success"], reply["audio_path"]) == (True, f"./outputs/{TRACK}")


async def test_a_sample_can_be_sent_back_as_it_is(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.becomes = succeeded
    for _ in range(10):
        seen = (await client.get("/sample_data")).json()
        assert seen["success"]
        assert {"prompt", "lyrics", "audio_duration", "infer_step", "omega_scale"} <= seen["sample"].keys()
        assert (await generate(client, **seen["sample"]))["success"]


async def test_a_caller_who_waited_long_enough_gets_the_job(connect: Connect, desk: FakeDesk) -> None:
    async with connect(generation_timeout_s=3) as client:
        reply = await generate(client, prompt="p", omega_scale=1)
        assert (reply["success"], reply["request_id"]) == (False, "job-0")
        assert reply["error_message"] == "not finished within 3 s; it goes on as request job-0, see /status/job-0"
        assert reply["not_applied"] == [f"omega_scale: not applied, {NOT_IN_1_5}"]
        assert (await client.post("/generate_music_direct", json={})).status_code == 504


async def test_a_song_may_come_as_the_reply_itself(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    def as_mp3(job: Job) -> Job:
        made = made_of(job.request)
        track = made.tracks[0].model_copy(update={"ref": "abc.mp3"})
        return replace(succeeded(job), made=made.model_copy(update={"tracks": (track,)}))

    desk.becomes = as_mp3
    reply = await client.post("/generate_music_direct", json={"format": "mp3"})
    assert (reply.status_code, reply.content, reply.headers["content-type"]) == (200, CONTENT, "audio/mpeg")
    assert reply.headers["content-disposition"] == 'attachment; filename="abc.mp3"'
    desk.becomes = failed
    reply = await client.post("/generate_music_direct", json={})
    assert (reply.status_code, reply.json()["detail"]) == (500, "silence came out")
    assert (await client.post("/generate_music_direct", json={"format": "x"})).status_code == 400


async def test_a_file_is_fetched_by_its_path_whole_or_in_part(client: httpx.AsyncClient) -> None:
    whole = await client.get("/outputs/abc.mp3")
    assert (whole.status_code, whole.content) == (200, CONTENT)
    part = await client.get("/outputs/abc.mp3", headers={"range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, CONTENT[4:8])
    assert (await client.head("/outputs/abc.mp3")).headers["content-length"] == str(len(CONTENT))
    for path in ("/outputs/other.mp3", "/outputs/..%2Fabc.mp3", "/outputs/%2Fetc%2Fpasswd", "/outputs/%00"):
        assert (await client.get(path)).status_code in (400, 404)


async def test_a_request_is_withdrawn_unless_it_has_ended(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    await client.post("/generate_music_async", json={})
    for job in (replace(desk.jobs[0], status=Status.RUNNING), desk.jobs[0]):
        desk.jobs[0] = job
        assert (await client.delete("/request/job-0")).json() == {"message": "Request cancelled"}
    desk.jobs[0] = replace(desk.jobs[0], status=Status.CANCELLED)
    assert (await client.get("/status/job-0")).json()["error"] == "cancelled by the caller"
    desk.jobs[0] = succeeded(desk.jobs[0])
    reply = await client.delete("/request/job-0")
    assert (reply.status_code, reply.json()["detail"]) == (400, "Cannot cancel request in completed status")


async def test_an_unknown_request_is_404(client: httpx.AsyncClient) -> None:
    for method, path in (("GET", "/status/x"), ("GET", "/result/x"), ("DELETE", "/request/x")):
        reply = await client.request(method, path)
        assert (reply.status_code, reply.json()["detail"]) == (404, "Request not found")


async def test_a_server_is_not_set_up_by_its_callers(client: httpx.AsyncClient) -> None:
    reply = (await client.post("/initialize")).json()
    assert reply == {"success": True, "message": "Pipeline initialized successfully", "not_applied": []}
    assert (await client.post("/initialize", json={"device_id": "one"})).status_code == 422
    assert (await client.post("/initialize?bf16=perhaps")).status_code == 422


async def test_a_full_queue_is_429(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.is_full = True
    reply = await client.post("/generate_music", json={})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")


async def test_a_key_closes_all_of_it_before_a_body_is_judged(connect: Connect) -> None:
    async with connect(keys=("sesame",)) as client:
        for path in ("/generate_music", "/generate_music_async", "/generate_music_direct", "/initialize"):
            assert (await client.post(path, json={"prompt": 1, "device_id": "x"})).status_code == 401
        for path in ("/sample_data", "/status/x", "/result/x", "/queue/status", "/outputs/abc.mp3"):
            assert (await client.get(path)).status_code == 401
        assert (await client.delete("/request/x")).status_code == 401
        headers = {"Authorization": "Bearer sesame"}
        assert (await client.get("/sample_data", headers=headers)).status_code == 200
        assert (await client.get("/outputs/abc.mp3?ai_token=sesame")).status_code == 200


async def test_on_the_shared_port_health_has_this_apis_words_too(client: httpx.AsyncClient) -> None:
    health = (await client.get("/health")).json()
    assert (health["status"], health["pipeline_loaded"]) == ("ok", True)
