"""`/format_input` and `/v1/create_sample`: the LM asked without a job."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.errors import BadPlan, DeadlineExceeded, EngineError, Overloaded
from models.music import Metas
from tests.contract.conftest import CATALOGUE, SONG

if TYPE_CHECKING:
    from tests.contract.conftest import Connect, FakeDesk

PATHS = ("/format_input", "/v1/create_sample")
TOLD = {
    "caption": "Warm jazz trio.",
    "lyrics": "[Verse]\nLate night",
    "bpm": 88,
    "key_scale": "D minor",
    "time_signature": "4",
    "duration": 125,
    "vocal_language": "en",
    "keyscale": "D minor",
    "timesignature": "4",
}
GIVEN = {"duration": 180, "bpm": 90, "key": "Am", "time_signature": "3/4", "language": "fr"}
METAS = Metas(bpm=90, key_scale="A minor", time_signature="3", duration=180.0)


async def data_of(reply: httpx.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    assert (reply.json()["code"], reply.json()["error"]) == (200, None)
    return dict(reply.json()["data"])


async def test_words_are_formatted_around_what_is_given(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    words = {"prompt": "pop rock", "lyrics": "la la", "temperature": 0.5}
    hows: tuple[dict[str, Any], ...] = (
        {"json": words | {"param_obj": json.dumps(GIVEN)}},
        {"json": words | {"param_obj": GIVEN}},
        {"json": words | GIVEN},
        {"data": words | {"param_obj": json.dumps(GIVEN)}},
        {"files": {name: (None, str(value)) for name, value in (words | GIVEN).items()}},
    )
    for how in hows:
        assert await data_of(await client.post("/format_input", **how)) == TOLD
        request = desk.asked[-1]
        assert (request.prompt, request.lyrics, request.lm_temperature) == ("pop rock", "la la", 0.5)
        assert (request.metas, request.vocal_language) == (METAS, "fr")
        assert (request.use_format, request.sample_query, request.songs) == (True, None, 1)


async def test_a_sample_is_invented_from_a_query(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    body = {"query": "a sad song", "vocal_language": "ja", "temperature": 1.1, "bpm": 90}
    assert await data_of(await client.post("/v1/create_sample", json=body)) == TOLD
    request = desk.asked[-1]
    assert (request.sample_query, request.vocal_language, request.lm_temperature, request.bpm) == (
        *("a sad song", "ja", 1.1, 90),
    )
    assert (request.use_format, request.lyrics) == (False, "")


@pytest.mark.parametrize("written", [True, "true", 1])
async def test_a_sample_without_a_voice_is_asked_for_as_such(
    client: httpx.AsyncClient, desk: FakeDesk, written: Any
) -> None:
    await data_of(await client.post("/v1/create_sample", json={"query": "", "instrumental": written}))
    assert (desk.asked[-1].sample_query, desk.asked[-1].is_instrumental) == ("", True)
    assert desk.asked[-1].lyrics == "[Instrumental]"


@pytest.mark.parametrize("path", PATHS)
async def test_an_unknown_language_is_none_and_no_draw_is_like_the_other(
    client: httpx.AsyncClient, desk: FakeDesk, path: str
) -> None:
    for _ in range(2):
        await data_of(await client.post(path, json={"vocal_language": "unknown"}))
    first, second = desk.asked
    assert first.vocal_language is None
    assert first.seeds != second.seeds


@pytest.mark.parametrize("path", PATHS)
async def test_an_empty_body_is_answered_too(client: httpx.AsyncClient, path: str) -> None:
    assert await data_of(await client.post(path)) == TOLD


@pytest.mark.parametrize("path", PATHS)
async def test_what_nobody_knows_is_left_empty(client: httpx.AsyncClient, desk: FakeDesk, path: str) -> None:
    desk.described = SONG.model_copy(update={"metas": Metas(), "language": "unknown"})
    told = await data_of(await client.post(path, json={}))
    assert [told[name] for name in ("bpm", "key_scale", "time_signature", "duration", "vocal_language")] == [
        *(None, "", "", None, "unknown"),
    ]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (BadPlan("the LM wrote nothing"), "failed: the LM wrote nothing"),
        (DeadlineExceeded("the LM gave no answer within 60 s"), "failed: the LM gave no answer within 60 s"),
        (EngineError("the password is swordfish"), "failed: engine_error"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_what_the_lm_fails_at_is_code_500_under_http_200(
    client: httpx.AsyncClient, desk: FakeDesk, path: str, error: Any, said: str
) -> None:
    desk.described = error
    reply = await client.post(path, json={"prompt": "x"} if path == "/format_input" else {})
    assert (reply.status_code, reply.json()["code"], reply.json()["data"]) == (200, 500, None)
    assert reply.json()["error"].endswith(said)


@pytest.mark.parametrize("path", PATHS)
async def test_without_an_lm_nothing_can_be_asked(connect: Connect, desk: FakeDesk, path: str) -> None:
    desk.catalogue = replace(CATALOGUE, lm_models=())
    async with connect() as client:
        reply = await client.post(path, json={})
    assert reply.status_code == 503
    assert reply.json()["detail"] == "LLM not initialized. Set ACESTEP_INIT_LLM=true in .env to enable."


@pytest.mark.parametrize("path", PATHS)
async def test_an_lm_that_is_asked_too_much_says_when_to_come_back(
    client: httpx.AsyncClient, desk: FakeDesk, path: str
) -> None:
    desk.described = Overloaded("Server busy")
    reply = await client.post(path, json={})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "named"), [({"bpm": 500}, "bpm"), ({"temperature": 9}, "lm_temperature"), ({"duration": "NaN"}, "finite")]
)
async def test_what_is_out_of_range_is_refused_by_name(
    client: httpx.AsyncClient, desk: FakeDesk, path: str, body: dict[str, Any], named: str
) -> None:
    reply = await client.post(path, json=body)
    assert (reply.status_code, desk.asked) == (400, [])
    assert named in reply.json()["detail"]


@pytest.mark.parametrize("path", PATHS)
async def test_what_is_not_used_is_told(client: httpx.AsyncClient, path: str) -> None:
    told = await data_of(await client.post(path, json={"shift": 2, "spice": 1}))
    assert told["warnings"] == ["shift: not known here, not used", "spice: not known here, not used"]


@pytest.mark.parametrize("path", PATHS)
async def test_the_key_may_be_in_the_body(connect: Connect, path: str) -> None:
    async with connect(keys=("sesame",)) as client:
        assert (await client.post(path, json={"ai_token": "sesame"})).status_code == 200
        assert (await client.post(path, json={"ai_token": "open"})).status_code == 401
