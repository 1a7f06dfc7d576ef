"""What the reference's one user does to its one process, asked of a server that many share; and examples."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from serve_app.dialects.current.management import ABSENT
from serve_app.keys import Keyring
from tests.contract.conftest import BASE, CATALOGUE, TURBO

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.conftest import Connect, FakeDesk

LM = "acestep-5Hz-lm-0.6B"


@pytest.mark.parametrize(
    ("body", "slot", "model"),
    [
        ({}, 1, TURBO),
        ({"model": BASE}, 1, BASE),
        ({"model": f"./checkpoints/{BASE}/"}, 1, BASE),
        ({"slot": 2}, 2, BASE),
        ({"init_llm": True}, 1, TURBO),
        ({"lm_model_path": LM, "init_llm": True}, 1, TURBO),
    ],
    ids=str,
)
async def test_a_model_that_runs_is_initialised(
    client: httpx.AsyncClient, body: dict[str, Any], slot: int, model: str
) -> None:
    reply = (await client.post("/v1/init", json=body)).json()
    data = reply["data"]
    assert (reply["code"], data["message"]) == (200, "Model initialization completed")
    assert (data["slot"], data["loaded_model"], data["loaded_lm_model"]) == (slot, model, LM)
    assert (data["llm_initialized"], [each["name"] for each in data["models"]]) == (True, [TURBO, BASE])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"model": "acestep-v15-sft"}, f"'acestep-v15-sft'; it runs {TURBO}, {BASE}"),
        ({"slot": 3}, "Slot 3 is not available because ACESTEP_CONFIG_PATH3 was not set at startup"),
        ({"init_llm": True, "lm_model_path": "acestep-5Hz-lm-4B"}, f"'acestep-5Hz-lm-4B'; it runs {LM}"),
    ],
    ids=str,
)
async def test_a_model_that_does_not_run_is_code_400_under_http_200(
    client: httpx.AsyncClient, body: dict[str, Any], said: str
) -> None:
    reply = await client.post("/v1/init", json=body)
    assert (reply.status_code, reply.json()["code"], reply.json()["data"]) == (200, 400, None)
    assert said in reply.json()["error"]


async def test_no_lm_can_be_initialised_where_none_runs(connect: Connect, desk: FakeDesk) -> None:
    desk.catalogue = replace(CATALOGUE, lm_models=())
    async with connect() as client:
        assert "it runs none" in (await client.post("/v1/init", json={"init_llm": True})).json()["error"]
        data = (await client.post("/v1/init", json={})).json()["data"]
    assert (data["loaded_lm_model"], data["llm_initialized"]) == (None, False)


async def test_there_is_nothing_to_load_again(client: httpx.AsyncClient) -> None:
    data = (await client.post("/v1/reinitialize")).json()["data"]
    assert data == {"message": "✅ Service reinitialized", "reloaded": []}


@pytest.mark.parametrize("body", [{"slot": 4}, {"slot": "first"}, {"model": 5}], ids=str)
async def test_a_body_of_another_shape_is_refused_field_by_field(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    reply = await client.post("/v1/init", json=body)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["loc"] == ["body", *body]


@pytest.mark.parametrize(("method", "path"), ABSENT, ids=str)
async def test_what_this_server_does_not_do_says_so(client: httpx.AsyncClient, method: str, path: str) -> None:
    reply = await client.request(method, path.replace("{index}", "3").replace("{task}", "abc"), json={})
    assert reply.status_code == 501
    assert reply.json().keys() == {"detail", "data", "code", "error", "timestamp", "extra"}
    assert reply.json()["error"].endswith("is not part of this server; it makes music and trains nothing")


HOW = "Many share this server, so no adapter is set for all of them: send "


@pytest.mark.parametrize("written", ["lo-fi", "/srv/adapters/lo-fi/", "adapters/lo-fi.safetensors"])
async def test_an_adapter_is_not_loaded_for_all_and_the_refusal_says_what_to_send(
    client: httpx.AsyncClient, desk: FakeDesk, written: str
) -> None:
    reply = await client.post("/v1/lora/load", json={"lora_path": written})
    assert reply.status_code == 400
    said = "adapter 'lo-fi' is here already. " + HOW
    assert reply.json()["detail"] == f'{said}"loras": [{{"name": "lo-fi", "scale": 1}}] with each request'
    assert (await client.post("/release_task", json={"loras": [{"name": "lo-fi", "scale": 1}]})).status_code == 200
    assert desk.jobs[-1].request.loras[0].name == "lo-fi"


async def test_an_adapter_that_is_not_there_is_refused_with_those_that_are(client: httpx.AsyncClient) -> None:
    reply = await client.post("/v1/lora/load", json={"lora_path": "/etc/passwd"})
    assert (reply.status_code, reply.json()["detail"]) == (400, "no adapter is called 'passwd'; known are lo-fi")


async def test_adapters_are_off_for_all_and_stay_so(client: httpx.AsyncClient) -> None:
    off = (await client.post("/v1/lora/toggle", json={"use_lora": False})).json()
    assert (off["code"], off["data"]) == (200, {"message": "✅ LoRA disabled", "use_lora": False})
    assert (await client.post("/v1/lora/unload")).json()["data"] == {"message": "⚠️ No LoRA adapter loaded."}
    for path, body in (("toggle", {"use_lora": True}), ("scale", {"scale": 0.5, "adapter_name": "lo-fi"})):
        reply = await client.post(f"/v1/lora/{path}", json=body)
        assert (reply.status_code, reply.json()["code"], reply.json()["data"]) == (200, 400, None)
        assert reply.json()["error"].startswith(HOW)
    assert '"scale": 0.5' in reply.json()["error"]


async def test_the_adapters_that_requests_may_name_are_listed(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/lora/status")).json()["data"] == {
        "lora_loaded": False,
        "use_lora": False,
        "lora_scale": 1.0,
        "adapter_type": None,
        "scales": {},
        "active_adapter": None,
        "adapters": ["lo-fi"],
        "synthetic_default_mode": False,
    }


@pytest.mark.parametrize(
    ("path", "body"), [("load", {}), ("toggle", {"use_lora": "perhaps"}), ("scale", {"scale": 1.5})], ids=str
)
async def test_an_adapter_is_asked_for_as_documented(
    client: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    assert (await client.post(f"/v1/lora/{path}", json=body)).status_code == 422


@pytest.mark.parametrize(
    "path", ["/v1/init", "/v1/reinitialize", "/v1/training/start", "/v1/lora/unload", "/v1/transcribe"]
)
async def test_the_server_is_run_by_a_key_with_that_scope(connect: Connect, tmp_path: Path, path: str) -> None:
    (tmp_path / "keys.yaml").write_text(f"keys:\n- {{name: user, sha256: {hashlib.sha256(b'user').hexdigest()}}}\n")
    async with connect(keyring=Keyring(["root"], tmp_path / "keys.yaml")) as client:
        assert (await client.post(path, json={})).status_code == 401
        assert (await client.post(path, json={}, headers={"authorization": "user"})).status_code == 403
        assert (await client.post(path, json={}, headers={"authorization": "root"})).status_code in (200, 501)


@pytest.mark.parametrize("body", [{}, {"sample_type": "simple_mode"}, {"sample_type": ""}], ids=str)
async def test_an_example_in_a_few_words(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    hows: tuple[dict[str, Any], ...] = ({"json": body}, {"data": body})
    for how in hows:
        data = (await client.post("/create_random_sample", **how)).json()["data"]
        assert data["caption"] == data["description"] != ""
        assert isinstance(data["instrumental"], bool)
        assert data.keys() >= {"lyrics", "bpm", "key_scale", "time_signature", "duration", "vocal_language"}


async def test_an_example_written_out_has_both_spellings(client: httpx.AsyncClient) -> None:
    data = (await client.post("/create_random_sample", json={"sample_type": "custom_mode"})).json()["data"]
    assert data.keys() >= {"caption", "lyrics", "bpm", "duration", "think"}
    assert data["key_scale"] == data["keyscale"] != ""
    assert data["time_signature"] == data["timesignature"] != ""
    assert data["vocal_language"] == data["language"] != ""


async def test_an_example_can_be_asked_for_as_it_is(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    for kind in ("simple_mode", "custom_mode"):
        data = (await client.post("/create_random_sample", json={"sample_type": kind})).json()["data"]
        reply = await client.post("/release_task", json=data)
        assert reply.status_code == 200, reply.text
        assert desk.jobs[-1].request.prompt == data["caption"]
