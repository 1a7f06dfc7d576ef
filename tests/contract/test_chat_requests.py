"""Chat completions, field by field, over a desk that is a fake; and whole ones beside their golden files."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.music import MusicRequest
from serve_app.dialects.openrouter.requests import ChatBody
from tests.contract.conftest import BASE, TURBO, Connect
from tests.contract.studio import Studio

GOLDEN = Path(__file__).parent / "golden" / "openrouter"
SOUND = b"some audio of a caller's" * 20_000
BASE64 = base64.b64encode(SOUND).decode()
LYRICS = "[Verse]\nla la"


@pytest.fixture(scope="module")
def everybodys_studio() -> Studio:
    return Studio()


@pytest.fixture
def desk(everybodys_studio: Studio) -> Studio:
    """As new."""
    vars(everybodys_studio).clear()
    vars(everybodys_studio).update(vars(Studio()))
    return everybodys_studio


def said(*content: Any) -> list[dict[str, Any]]:
    """A message for each."""
    return [{"role": "user", "content": one} for one in content]


def heard(data: str) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}}


def a_text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


async def asked(client: httpx.AsyncClient, desk: Studio, **body: Any) -> MusicRequest:
    answer = await client.post("/v1/chat/completions", json={"messages": said("jazz")} | body)
    assert answer.status_code == 200, answer.text
    return desk.jobs[-1].request


async def refused(client: httpx.AsyncClient, **body: Any) -> str:
    answer = await client.post("/v1/chat/completions", json={"messages": said("jazz")} | body)
    told = answer.json()
    assert (answer.status_code, told["code"], told["data"]) == (400, 400, None)
    assert told["detail"] == told["error"]["message"]
    return str(told["detail"])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
async def test_a_golden_request_is_understood_and_answered_as_ever(
    client: httpx.AsyncClient, desk: Studio, path: Path
) -> None:
    golden = json.loads(path.read_text())
    desk.codes = tuple(golden.get("codes", ()))
    answer = await client.post("/v1/chat/completions", json=golden["body"])
    assert json.loads(desk.jobs[0].request.model_dump_json(exclude_defaults=True)) == golden["request"]
    assert answer.json() == golden["reply"]


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"model": f"acemusic/{BASE}"}, "model", BASE),
        ({"model": BASE}, "model", BASE),
        ({}, "model", TURBO),
        ({"audio_config": {"duration": 90}}, "audio_duration", 90),
        ({"audio_config": {"duration": -1}}, "audio_duration", None),
        ({"audio_config": {"duration": None, "bpm": None}}, "audio_duration", None),
        ({"audio_config": {"format": "wav"}}, "audio_format", "wav"),
        ({"audio_config": {"bpm": 88}}, "bpm", 88),
        ({"audio_config": {"key_scale": "am"}}, "key_scale", "A minor"),
        ({"audio_config": {"time_signature": "3/4"}}, "time_signature", "3"),
        ({"audio_config": {"vocal_language": "ja"}}, "vocal_language", "ja"),
        ({"audio_config": {"instrumental": True}}, "lyrics", "[inst]"),
        ({"audio_config": {"instrumental": True}, "lyrics": "la"}, "lyrics", "la"),
        ({"temperature": 1.5}, "lm_temperature", 1.5),
        ({"top_p": 0.5}, "lm_top_p", 0.5),
        ({"top_p": 0}, "lm_top_p", 1e-6),
        ({"top_k": 40}, "lm_top_k", 40),
        ({}, "lm_cfg_scale", 2.0),
        ({"lm_cfg_scale": 3}, "lm_cfg_scale", 3),
        ({"seed": 7}, "seeds", (7,)),
        ({"seed": "1,2", "batch_size": 2}, "seeds", (1, 2)),
        ({"seed": [3, 4], "batch_size": 2}, "seeds", (3, 4)),
        ({"thinking": True}, "thinking", True),
        ({"use_format": True}, "use_format", True),
        ({"use_cot_caption": False}, "use_cot_caption", False),
        ({"use_cot_language": False}, "use_cot_language", False),
        ({"guidance_scale": 7.0}, "guidance_scale", 7.0),
        ({"inference_steps": 4}, "inference_steps", 4),
        ({"infer_method": "euler"}, "infer_method", "ode"),
        ({"infer_method": "sde"}, "infer_method", "sde"),
        ({"audio_codes": "<|audio_code_1|><|audio_code_2|>", "batch_size": 2}, "audio_codes", ((1, 2), (1, 2))),
        ({"audio_codes": ["<|audio_code_1|>", "<|audio_code_2|>"], "batch_size": 2}, "audio_codes", ((1,), (2,))),
    ],
)
async def test_a_field_lands_in_the_request(
    client: httpx.AsyncClient, desk: Studio, body: dict[str, Any], field: str, value: Any
) -> None:
    assert getattr(await asked(client, desk, **body), field) == value


@pytest.mark.parametrize(
    ("body", "field", "value"),
    [
        ({"task_type": "repaint", "repainting_start": 2, "repainting_end": 9}, "repainting_start", 2),
        ({"task_type": "repaint", "repainting_start": 2, "repainting_end": 9}, "repainting_end", 9),
        ({"task_type": "repaint", "repainting_end": -1}, "repainting_end", None),
        ({"task_type": "cover", "audio_cover_strength": 0.5}, "audio_cover_strength", 0.5),
        ({"task_type": "cover", "cover_noise_strength": 0.2}, "cover_noise_strength", 0.2),
    ],
)
async def test_a_field_of_a_task_on_audio_lands_in_the_request(
    client: httpx.AsyncClient, desk: Studio, body: dict[str, Any], field: str, value: Any
) -> None:
    assert getattr(await asked(client, desk, messages=said([heard(BASE64)]), **body), field) == value


async def test_songs_without_a_seed_get_one_each(client: httpx.AsyncClient, desk: Studio) -> None:
    request = await asked(client, desk, batch_size=3, seed=[5, -1])
    assert (request.seeds[0], len(set(request.seeds))) == (5, 3)


@pytest.mark.parametrize(
    ("text", "body", "prompt", "lyrics", "query"),
    [
        ("jazz", {"lyrics": LYRICS}, "jazz", LYRICS, None),
        ("a sad song", {"sample_mode": True}, "", "", "a sad song"),
        ("<Prompt> jazz </Prompt>\n<lyrics>la\nla</lyrics>", {}, "jazz", "la\nla", None),
        ("<prompt>jazz</prompt>", {"lyrics": LYRICS}, "jazz", LYRICS, None),
        ("[VERSE 1]\nla", {}, "", "[VERSE 1]\nla", None),
        ("one\ntwo\nthree\n\nfour", {}, "", "one\ntwo\nthree\n\nfour", None),
        ("one\ntwo\nthree", {}, "one\ntwo\nthree", "", None),
        ("\n".join(["a line of a prompt that is too long to be one of a song's lines"] * 4), {}, ..., "", None),
        ("a plain caption", {}, "a plain caption", "", None),
    ],
)
async def test_a_text_is_read_by_the_first_rule_that_fits(
    client: httpx.AsyncClient,
    desk: Studio,
    text: str,
    body: dict[str, Any],
    prompt: Any,
    lyrics: str,
    query: str | None,
) -> None:
    request = await asked(client, desk, messages=said(text), **body)
    assert request.prompt == (text if prompt is ... else prompt)
    assert (request.lyrics, request.sample_query) == (lyrics, query)


async def test_the_last_message_of_the_user_counts_and_the_rest_is_told(
    client: httpx.AsyncClient, desk: Studio
) -> None:
    messages = [*said("rock", [a_text("slow"), a_text("jazz")]), {"role": "assistant", "content": None}]
    answer = await client.post("/v1/chat/completions", json={"messages": messages})
    assert desk.jobs[0].request.prompt == "slow\njazz"
    assert answer.json()["warnings"] == ["messages: only the last one of the user is used"]


@pytest.mark.parametrize("data", [BASE64, f"data:audio/mpeg;base64,{BASE64}", "\n".join([BASE64[:76], BASE64[76:]])])
async def test_audio_is_a_reference_for_music_from_text(client: httpx.AsyncClient, desk: Studio, data: str) -> None:
    request = await asked(client, desk, messages=said([a_text("jazz"), heard(data)]))
    assert (request.src_audio, desk.audio) == (None, {"job-0.reference": SOUND})


async def test_audio_is_the_source_of_other_tasks_then_a_reference(client: httpx.AsyncClient, desk: Studio) -> None:
    parts = [heard(BASE64), heard("AAAA"), heard("AAAA")]
    answer = await client.post("/v1/chat/completions", json={"messages": said(parts), "task_type": "cover"})
    assert desk.audio == {"job-0.source": SOUND, "job-0.reference": bytes(3)}
    assert answer.json()["warnings"] == ["input_audio: the last 1 not used by cover"]


@pytest.mark.parametrize(
    "data", ["not base64!", "AAA", "http://10.0.0.1/a.mp3", "data:audio/mpeg,plain", "A" * 300_001, ""]
)
async def test_what_is_not_base64_is_refused(client: httpx.AsyncClient, desk: Studio, data: str) -> None:
    assert "input_audio.data (the reference audio) is" in await refused(client, messages=said([heard(data)]))
    assert desk.jobs == []


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"messages": []}, "No valid prompt, lyrics, sample query, or input audio found in request"),
        ({"messages": said("  ")}, "No valid prompt, lyrics, sample query, or input audio found in request"),
        ({"messages": None}, "Invalid request format: messages: Field required"),
        (
            {"messages": said([{"type": "image_url"}])},
            "Invalid request format: a part of a message is of type 'image_url'",
        ),
        ({"messages": said(["jazz"])}, "Invalid request format: a part of a message is of type 'jazz'"),
        ({"temperature": 2.1}, "Invalid request format: temperature: "),
        ({"top_p": 1.1}, "Invalid request format: top_p: "),
        ({"top_k": -1}, "Invalid request format: top_k: "),
        ({"batch_size": 9}, "Invalid request format: batch_size: "),
        ({"n": 2}, "Invalid request format: n: "),
        ({"seed": "one"}, "Invalid request format: seed"),
        ({"seed": 2**40}, "Invalid request format: seed.0: "),
        ({"audio_config": {"duration": 5}}, "Invalid request format: audio_config.duration: "),
        ({"audio_config": {"bpm": 500}}, "Invalid request format: audio_config.bpm: "),
        ({"audio_config": {"format": "ogg"}}, "Invalid request format: audio_config.format: "),
        ({"audio_config": {"key_scale": "H major"}}, "Invalid request format: audio_config.key_scale: "),
        ({"audio_config": {"time_signature": "5"}}, "Invalid request format: audio_config.time_signature: "),
        ({"audio_config": {"vocal_language": "xx"}}, "Invalid request format: audio_config.vocal_language: "),
        ({"task_type": "cover-nofsq"}, "Invalid request format: task_type: "),
        ({"task_type": "cover"}, "task_type 'cover' works on source audio, and there is none"),
        ({"model": "gpt-4o-audio"}, "this server does not run model 'gpt-4o-audio'"),
        ({"audio_codes": "la"}, "audio_codes: 1 texts for 1 songs"),
        ({"audio_codes": [f"<|audio_code_{'9' * 5000}|>"]}, "audio_codes: 1 texts for 1 songs"),
        ({"messages": said("a" * 2049)}, "Invalid request format: messages: String should have at most 2048"),
        ({"lyrics": "a" * 8193}, "Invalid request format: lyrics: String should have at most 8192"),
    ],
)
async def test_a_mistake_is_refused_by_name(client: httpx.AsyncClient, body: dict[str, Any], told: str) -> None:
    assert (await refused(client, **body)).startswith(told)


@pytest.mark.parametrize(
    ("content", "told"), [(b"[]", "JSON payload must be an object"), (b"{", "Malformed JSON payload")]
)
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, content: bytes, told: str) -> None:
    answer = await client.post("/v1/chat/completions", content=content)
    assert (answer.status_code, answer.json()["detail"]) == (400, told)


async def test_a_refusal_before_the_route_is_told_to_openais_clients_too(connect: Connect) -> None:
    async with connect(max_bytes=10) as client:
        large = await client.post("/v1/chat/completions", json={"messages": said("jazz")})
        wrong = await client.get("/v1/chat/completions")
    assert (large.status_code, large.json()["error"]["message"]) == (413, "the request body is larger than 10 bytes")
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (405, "Method Not Allowed")


@pytest.mark.parametrize(
    ("body", "warning"),
    [
        ({"stop": ["x"]}, "stop: not used, a song ends where it ends"),
        ({"use_cot_metas": False}, "use_cot_metas: not used, what is not given of the music is always planned"),
        ({"modalities": ["text"]}, "modalities: not used, every answer has audio"),
        ({"seed": [1, 2]}, "seed: 2 given, 1 used"),
        ({"audio_config": {"loudness": 3}}, "audio_config.loudness: not known here, not used"),
        ({"lyrics": "la", "audio_config": {"instrumental": True}}, "audio_config.instrumental: not used, lyrics"),
    ],
)
async def test_what_is_not_used_is_told(client: httpx.AsyncClient, body: dict[str, Any], warning: str) -> None:
    answer = await client.post("/v1/chat/completions", json={"messages": said("jazz")} | body)
    (told,) = answer.json()["warnings"]
    assert told.startswith(warning)


async def test_the_document_of_the_api_has_every_field_and_no_loose_end(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    content = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    schema = content["application/json"]["schema"]
    assert schema["properties"].keys() == ChatBody.model_fields.keys()
    assert "bpm" in schema["properties"]["audio_config"]["properties"]
    assert "$ref" not in json.dumps(schema)
