"""Envelope, results, errors, keys and downloads of the current API."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.music import AudioFormat, Made, Metas, SongPlan, Track
from serve_app.jobs.job import Status
from tests.contract.conftest import CONTENT

if TYPE_CHECKING:
    from tests.contract.conftest import Connect, FakeDesk

KEY = "sesame"


async def entry(client: httpx.AsyncClient, task_id: str) -> dict[str, Any]:
    reply = await client.post("/query_result", json={"task_id_list": [task_id]})
    assert reply.status_code == 200
    (one,) = reply.json()["data"]
    return dict(one)


async def submit(client: httpx.AsyncClient, **body: Any) -> str:
    return str((await client.post("/release_task", json=body)).json()["data"]["task_id"])


async def test_a_job_is_confirmed_in_the_documented_envelope(client: httpx.AsyncClient) -> None:
    reply = await client.post("/release_task", json={"prompt": "upbeat pop song"})
    body = reply.json()
    assert body["data"] == {"task_id": "job-0", "status": "queued", "queue_position": 1, "eta_seconds": 18.5}
    assert (body["code"], body["error"], body["extra"]) == (200, None, None)
    assert body["timestamp"] > 1_700_000_000_000


async def test_a_queued_job_is_status_0_with_a_result_that_is_a_list_in_a_string(client: httpx.AsyncClient) -> None:
    seen = await entry(client, await submit(client, prompt="p", lyrics="l"))
    assert seen["status"] == 0
    assert json.loads(seen["result"]) == [
        {
            "file": "",
            "wave": "",
            "status": 0,
            "create_time": 1_700_000_000,
            "env": "development",
            "prompt": "p",
            "lyrics": "l",
            "metas": {},
            "progress": 0.0,
            "stage": "queued",
            "error": None,
        }
    ]
    assert (seen["progress_text"], seen["eta_seconds"]) == ("queued, number 1 in line", 18.5)


async def test_a_job_that_runs_is_expected_the_sooner_the_further_it_is(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    task_id = await submit(client)
    desk.jobs[0] = replace(desk.jobs[0], status=Status.RUNNING, progress=0.75, stage="denoise", queue_position=0)
    seen = await entry(client, task_id)
    assert (seen["status"], seen["eta_seconds"], seen["progress_text"]) == (0, 3.1, "denoise, 75%")
    desk.jobs[0] = replace(desk.jobs[0], status=Status.CANCELLED)
    assert "eta_seconds" not in await entry(client, task_id)


IDEMPOTENT = {"idempotency-key": "once"}


async def test_a_request_sent_again_is_the_same_job(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    bodies: tuple[dict[str, Any], ...] = (
        {"json": {"prompt": "x", "lyrics": "y"}},
        {"json": {"lyrics": "y", "prompt": "x", "ai_token": "of no matter"}},
        {"data": {"prompt": "x", "lyrics": "y"}},
    )
    replies = [await client.post("/release_task", headers=IDEMPOTENT, **body) for body in bodies]
    assert [reply.json()["data"]["task_id"] for reply in replies] == ["job-0"] * 3
    assert len(desk.jobs) == 1


async def test_another_request_under_the_same_key_is_a_conflict(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    def form(content: bytes) -> dict[str, Any]:
        return {"data": {"prompt": "x"}, "files": {"ref_audio": ("a.wav", content)}}

    assert (await client.post("/release_task", headers=IDEMPOTENT, **form(b"one"))).status_code == 200
    assert list(desk.audio.values()) == [b"one"]  # whole, though it was read before
    assert (await client.post("/release_task", headers=IDEMPOTENT, **form(b"one"))).status_code == 200
    reply = await client.post("/release_task", headers=IDEMPOTENT, **form(b"two"))
    assert (reply.status_code, reply.json()["code"]) == (409, 409)
    assert "'once' was sent with another body" in reply.json()["error"]
    assert len(desk.jobs) == 1


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_that_is_none_is_refused(client: httpx.AsyncClient, desk: FakeDesk, key: str) -> None:
    reply = await client.post("/release_task", headers={"idempotency-key": key}, json={})
    assert (reply.status_code, desk.jobs) == (400, [])


@pytest.mark.parametrize("priority", ["high", "normal", "low"])
async def test_a_job_may_be_more_or_less_urgent(client: httpx.AsyncClient, desk: FakeDesk, priority: str) -> None:
    await client.post("/release_task", json={"priority": priority})
    await client.post("/release_task", json={"param_obj": {"priority": priority}})
    assert [job.priority for job in desk.jobs] == [priority] * 2
    assert (await client.post("/release_task", json={"priority": "now"})).json()["detail"] == (
        "priority 'now': allowed are high, normal, low"
    )


async def test_an_unknown_id_is_status_0_with_an_empty_list(client: httpx.AsyncClient) -> None:
    assert await entry(client, "never") == {"task_id": "never", "status": 0, "result": "[]"}


async def test_a_finished_job_has_one_item_a_song_with_the_documented_keys(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    task_id = await submit(client, prompt="user's", lyrics="words", seed="1,2", use_random_seed=False)
    tracks = [
        Track(ref=f"{n:032x}.mp3", audio_format=AudioFormat.MP3, seconds=10.0, size=1, sha256="") for n in range(2)
    ]
    plan = SongPlan(caption="final", lyrics="words", language="en", metas=Metas(bpm=120, duration=10.0), codes=(1, 2))
    made = Made(
        tracks=tuple(tracks),
        plans=(plan, plan),
        dit_model="acestep-v15-turbo",
        lm_model="acestep-5Hz-lm-0.6B",
        seconds_by_stage={"denoise": 1.0},
        remarks=("shift: 3 applied instead of 2.9",),
    )
    desk.jobs[0] = replace(desk.jobs[0], status=Status.SUCCEEDED, made=made, progress=1.0, stage="succeeded")
    seen = await entry(client, task_id)
    items = json.loads(seen["result"])
    assert seen["status"] == 1
    assert [item["file"] for item in items] == [f"/v1/audio?path={track.ref}" for track in tracks]
    first = items[0]
    assert first["metas"] == {
        "bpm": 120,
        "duration": 10.0,
        "genres": "N/A",
        "keyscale": "N/A",
        "timesignature": "N/A",
        "prompt": "user's",
        "lyrics": "words",
    }
    assert (first["prompt"], first["seed_value"], first["audio_codes"]) == (
        "final",
        "1,2",
        "<|audio_code_1|><|audio_code_2|>",
    )
    assert (first["lm_model"], first["dit_model"]) == ("acestep-5Hz-lm-0.6B", "acestep-v15-turbo")
    assert first["warnings"] == ["shift: 3 applied instead of 2.9"]
    assert first["generation_info"].startswith("**Total generation time (2 songs): 1.00s**")


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
async def test_a_job_that_came_to_nothing_is_status_2_and_says_why(
    client: httpx.AsyncClient, desk: FakeDesk, status: Status
) -> None:
    task_id = await submit(client)
    desk.jobs[0] = replace(desk.jobs[0], status=status, error_message="silence came out", stage=status)
    seen = await entry(client, task_id)
    (item,) = json.loads(seen["result"])
    assert (seen["status"], seen["error"], item["status"], item["error"]) == (
        2,
        "silence came out",
        2,
        "silence came out",
    )


@pytest.mark.parametrize(
    "ids",
    [["job-0", "job-1"], '["job-0", "job-1"]', "job-0,job-1", "job-0, job-1"],
    ids=["list", "json in a string", "commas", "commas and spaces"],
)
async def test_ids_may_be_written_in_every_way_clients_do(client: httpx.AsyncClient, ids: Any) -> None:
    await submit(client)
    await submit(client)
    for how in (
        {"json": {"task_id_list": ids}},
        {"data": {"task_id_list": ids if isinstance(ids, str) else "job-0,job-1"}},
    ):
        reply = await client.post("/query_result", **how)
        assert [one["task_id"] for one in reply.json()["data"]] == ["job-0", "job-1"]


@pytest.mark.parametrize("body", [{}, {"task_id_list": None}, {"task_id_list": 5}, {"task_id_list": {}}])
async def test_no_ids_give_no_entries(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    assert (await client.post("/query_result", json=body)).json()["data"] == []


@pytest.mark.parametrize(
    ("content", "content_type", "status", "said"),
    [
        (b"[1]", "application/json", 400, "JSON payload must be an object"),
        (b"{", "application/json", 400, "Malformed JSON payload"),
        (b"[" * 100_000, "application/json", 400, "Malformed JSON payload"),
        (b"{", "text/plain", 400, "Invalid JSON body"),
        (b"hello", "text/plain", 415, "Unsupported Content-Type: text/plain"),
        (b"hello", "", 415, "Unsupported Content-Type: (missing)"),
    ],
)
async def test_a_body_that_cannot_be_read_is_refused(
    client: httpx.AsyncClient, content: bytes, content_type: str, status: int, said: str
) -> None:
    reply = await client.post("/release_task", content=content, headers={"content-type": content_type})
    assert reply.status_code == status
    assert reply.json()["detail"].startswith(said)
    assert reply.json()["code"] == status


async def test_json_under_another_name_is_still_json(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    for content_type in ("application/vnd.x+json", "application/vnd.x+json; charset=utf-8", "text/plain"):
        reply = await client.post(
            "/release_task", content=b'{"prompt": "jazz"}', headers={"content-type": content_type}
        )
        assert reply.status_code == 200
        assert desk.jobs[-1].request.prompt == "jazz"


async def test_a_full_queue_says_when_to_come_back(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.is_full = True
    reply = await client.post("/release_task", json={})
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert reply.json()["detail"] == "Server busy: queue is full"


async def test_a_full_disk_is_no_fault_of_the_callers_and_says_nothing_of_where(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    desk.storage_is_full = True
    reply = await client.post("/release_task", json={})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "60")
    assert "storage_unavailable" in reply.json()["detail"]
    assert "/srv" not in reply.text


async def test_what_went_wrong_inside_stays_inside(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    desk.is_broken = True
    reply = await client.post("/release_task", json={})
    assert reply.status_code == 500
    assert "swordfish" not in reply.text
    assert reply.json()["error"] == "Internal Server Error"


async def test_every_refusal_has_one_body_for_every_kind_of_client(client: httpx.AsyncClient) -> None:
    for reply in (await client.get("/nowhere"), await client.get("/release_task"), await client.get("/v1/audio")):
        body = reply.json()
        assert body.keys() == {"detail", "data", "code", "error", "timestamp", "extra"}
        assert body["code"] == reply.status_code
        assert isinstance(body["error"], str)


async def test_a_body_that_is_too_large_is_refused(connect: Connect, desk: FakeDesk) -> None:
    async def drip() -> Any:
        for _ in range(20):
            yield b"x" * 100

    async with connect(max_bytes=1000) as client:
        announced = await client.post("/release_task", content=b"x" * 1001)
        streamed = await client.post("/release_task", content=drip())
    assert (announced.status_code, streamed.status_code) == (413, 413)
    assert desk.jobs == []


async def test_health_is_open(connect: Connect) -> None:
    async with connect(keys=(KEY,)) as client:
        body = (await client.get("/health")).json()
    documented = {"status": "ok", "service": "ACE-Step API", "version": "1.0"}
    assert body["data"] == documented | {
        "models_initialized": True,
        "llm_initialized": True,
        "loaded_model": "acestep-v15-turbo",
        "loaded_lm_model": "acestep-5Hz-lm-0.6B",
    }
    assert {name: body[name] for name in documented} == documented
    assert (body["healthy"], body["pipeline_loaded"]) == (True, True)


async def test_a_job_can_be_withdrawn_by_its_owner_only(client: httpx.AsyncClient) -> None:
    task_id = await submit(client)
    reply = await client.post("/cancel_task", json={"task_id": task_id})
    assert reply.json()["data"] == {"task_id": task_id, "status": "cancelled"}
    assert (await client.post("/cancel_task", json={"task_id": "never"})).status_code == 404


async def test_models_are_listed_in_both_documented_shapes_the_default_first(client: httpx.AsyncClient) -> None:
    body = (await client.get("/v1/models")).json()
    assert body["data"]["models"] == body["models"]
    assert body["data"]["default_model"] == body["default_model"] == body["models"][0]["name"] == "acestep-v15-turbo"
    assert [model["is_default"] for model in body["models"]] == [True, False]


async def test_the_inventory_is_the_models_in_the_envelope(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()["data"]
    assert (await client.get("/v1/model_inventory")).json()["data"] == models
    assert (models["lm_models"], models["loaded_lm_model"], models["llm_initialized"]) == (
        *([{"name": "acestep-5Hz-lm-0.6B", "is_loaded": True}], "acestep-5Hz-lm-0.6B", True),
    )


async def test_models_may_be_sent_as_openrouters_list_by_request_or_by_setting(connect: Connect) -> None:
    async with connect() as client:
        asked = (await client.get("/v1/models?format=openrouter")).json()
        assert (await client.get("/v1/models?format=csv")).status_code == 422
    async with connect(models_format="openrouter") as client:
        assert (await client.get("/v1/models")).json() == asked
        wrapped = (await client.get("/v1/models?format=wrapped")).json()
    assert asked["object"] == "list"
    assert [model["id"] for model in asked["data"]] == ["acestep/acestep-v15-turbo", "acestep/acestep-v15-base"]
    assert (asked["models"], asked["default_model"]) == (wrapped["data"]["models"], "acestep-v15-turbo")


async def test_stats_are_the_documented_numbers(client: httpx.AsyncClient) -> None:
    assert (await client.get("/v1/stats")).json()["data"] == {
        "jobs": {"total": 10, "queued": 1, "running": 2, "succeeded": 3, "failed": 4, "cancelled": 0},
        "queue_size": 1,
        "queue_maxsize": 200,
        "avg_job_seconds": 12.346,
    }


@pytest.mark.parametrize(
    ("asked", "status", "content", "told"),
    [
        (None, 200, CONTENT, None),
        ("bytes=0-99", 206, CONTENT[:100], "bytes 0-99/1024"),
        ("bytes=1000-", 206, CONTENT[1000:], "bytes 1000-1023/1024"),
        ("bytes=1000-5000", 206, CONTENT[1000:], "bytes 1000-1023/1024"),
        ("bytes=-24", 206, CONTENT[1000:], "bytes 1000-1023/1024"),
        ("bytes=-5000", 206, CONTENT, "bytes 0-1023/1024"),
        ("bytes=5-4", 200, CONTENT, None),
        ("bytes=0-1,5-6", 200, CONTENT, None),
        ("lines=1-2", 200, CONTENT, None),
    ],
)
async def test_a_file_is_sent_whole_or_in_part(
    client: httpx.AsyncClient, asked: str | None, status: int, content: bytes, told: str | None
) -> None:
    reply = await client.get("/v1/audio?path=abc.mp3", headers={} if asked is None else {"range": asked})
    assert (reply.status_code, reply.content) == (status, content)
    assert reply.headers.get("content-range") == told
    assert reply.headers["content-length"] == str(len(content))
    assert (reply.headers["content-type"], reply.headers["accept-ranges"]) == ("audio/mpeg", "bytes")


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=-0"])
async def test_a_part_outside_the_file_is_refused(client: httpx.AsyncClient, asked: str) -> None:
    reply = await client.get("/v1/audio?path=abc.mp3", headers={"range": asked})
    assert (reply.status_code, reply.headers["content-range"]) == (416, "bytes */1024")


async def test_a_head_tells_the_size_and_sends_nothing(client: httpx.AsyncClient) -> None:
    reply = await client.head("/v1/audio?path=abc.mp3")
    assert (reply.status_code, reply.headers["content-length"], reply.content) == (200, "1024", b"")


async def test_a_file_that_is_already_there_is_not_sent_again(client: httpx.AsyncClient) -> None:
    reply = await client.get("/v1/audio?path=abc.mp3", headers={"if-none-match": '"abc"'})
    assert (reply.status_code, reply.content) == (304, b"")


async def test_a_part_of_another_file_is_not_continued(client: httpx.AsyncClient) -> None:
    headers = {"range": "bytes=5-", "if-range": '"of another"'}
    reply = await client.get("/v1/audio?path=abc.mp3", headers=headers)
    assert (reply.status_code, reply.content) == (200, CONTENT)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("missing.mp3", 404),
        ("", 404),
        ("%2Fetc%2Fpasswd", 403),
        ("..%2F..%2Fjobs.db", 403),
        ("a%2F..%2Fb", 403),
        ("%5C%5Chost%5Cshare", 403),
        ("abc.mp3%00", 400),
        ("x" * 4000, 404),
    ],
)
async def test_nothing_outside_is_ever_read(client: httpx.AsyncClient, path: str, status: int) -> None:
    assert (await client.get(f"/v1/audio?path={path}")).status_code == status


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("null", True),
        ("https://studio.example", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
    ],
)
async def test_pages_of_this_machine_and_of_named_origins_may_call(
    connect: Connect, origin: str, is_allowed: bool
) -> None:
    async with connect(cors_origins=("https://studio.example",)) as client:
        reply = await client.get("/health", headers={"origin": origin})
    assert (reply.headers.get("access-control-allow-origin") == origin) == is_allowed


async def test_the_api_page_shows_every_parameter(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    content = schema["paths"]["/release_task"]["post"]["requestBody"]["content"]
    assert "audio_duration" in content["application/json"]["schema"]["properties"]
