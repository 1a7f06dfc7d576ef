"""Audio sent with a request: as a file of a form, or as the address of a track that this server made."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from models.music import SOURCE_TASKS, Task
from serve_app.dialects.parameters import BY_NAME
from serve_app.roots import AudioRoots

if TYPE_CHECKING:
    from pathlib import Path

    from tests.contract.conftest import Connect, FakeDesk

TRACK = "0" * 32 + ".mp3"
ADDRESS = f"/v1/audio?path={TRACK}"
SOUND = b"RIFF" + bytes(300_000)  # more than one chunk
STEM_TASKS = (Task.LEGO, Task.EXTRACT, Task.COMPLETE)
MODEL_OF: dict[Task, str] = {
    task: "acestep-v15-base" if task in STEM_TASKS else "acestep-v15-turbo" for task in SOURCE_TASKS
}
SOURCE_NAMES = BY_NAME["src_audio_path"].names
REFERENCE_NAMES = BY_NAME["reference_audio_path"].names


def warnings_of(reply: httpx.Response) -> list[str]:
    assert reply.status_code == 200, reply.text
    return list(reply.json()["data"].get("warnings", []))


@pytest.mark.parametrize("task", SOURCE_TASKS)
async def test_every_task_takes_an_uploaded_source(client: httpx.AsyncClient, desk: FakeDesk, task: Task) -> None:
    fields = {"task_type": task.value, "model": MODEL_OF[task]}
    reply = await client.post("/release_task", data=fields, files={"src_audio": ("a.wav", SOUND)})
    assert warnings_of(reply) == []
    request = desk.jobs[-1].request
    assert (request.task_type, request.reference_audio) == (task, None)
    assert desk.audio == {request.src_audio: SOUND}


@pytest.mark.parametrize("task", SOURCE_TASKS)
async def test_every_task_takes_a_track_of_this_server(client: httpx.AsyncClient, desk: FakeDesk, task: Task) -> None:
    reply = await client.post(
        "/release_task", json={"taskType": task.value, "model": MODEL_OF[task], "src_audio_path": ADDRESS}
    )
    assert warnings_of(reply) == []
    assert desk.audio == {desk.jobs[-1].request.src_audio: TRACK}


@pytest.mark.parametrize("name", ["ctx_audio", "src_audio"])
async def test_a_source_may_be_in_either_field(client: httpx.AsyncClient, desk: FakeDesk, name: str) -> None:
    await client.post("/release_task", data={"task_type": "cover"}, files={name: ("a.wav", SOUND)})
    assert desk.audio == {desk.jobs[-1].request.src_audio: SOUND}


@pytest.mark.parametrize("name", ["ref_audio", "reference_audio"])
async def test_a_reference_may_be_in_either_field_for_text2music_too(
    client: httpx.AsyncClient, desk: FakeDesk, name: str
) -> None:
    reply = await client.post("/release_task", data={"prompt": "x"}, files={name: ("a.wav", SOUND)})
    assert warnings_of(reply) == []
    assert desk.audio == {desk.jobs[-1].request.reference_audio: SOUND}
    assert desk.jobs[-1].request.src_audio is None


@pytest.mark.parametrize("name", SOURCE_NAMES)
async def test_a_source_may_be_named_in_every_way_clients_do(
    client: httpx.AsyncClient, desk: FakeDesk, name: str
) -> None:
    hows: tuple[dict[str, Any], ...] = (
        {"json": {"task_type": "cover", name: ADDRESS}},
        {"json": {"task_type": "cover", "param_obj": {name: ADDRESS}}},
        {"data": {"task_type": "cover", name: ADDRESS}},
        {"files": {"task_type": (None, "cover"), name: (None, ADDRESS)}},
        {"data": {"task_type": "cover", "metas": json.dumps({name: ADDRESS})}},
    )
    for how in hows:
        assert warnings_of(await client.post("/release_task", **how)) == []
        assert desk.audio[str(desk.jobs[-1].request.src_audio)] == TRACK


@pytest.mark.parametrize("name", REFERENCE_NAMES)
async def test_a_reference_may_be_named_in_every_way_clients_do(
    client: httpx.AsyncClient, desk: FakeDesk, name: str
) -> None:
    hows: tuple[dict[str, Any], ...] = ({"json": {name: ADDRESS}}, {"data": {name: ADDRESS}})
    for how in hows:
        assert warnings_of(await client.post("/release_task", **how)) == []
        assert desk.audio[str(desk.jobs[-1].request.reference_audio)] == TRACK


@pytest.mark.parametrize(
    "written",
    [TRACK, ADDRESS, f"http://somewhere:8001{ADDRESS}", f"https://somewhere{ADDRESS}&ai_token=secret", f" {ADDRESS} "],
)
async def test_a_track_is_named_by_its_id_or_its_address(
    client: httpx.AsyncClient, desk: FakeDesk, written: str
) -> None:
    await client.post("/release_task", json={"task_type": "cover", "src_audio_path": written})
    assert list(desk.audio.values()) == [TRACK]


@pytest.mark.parametrize(
    "written",
    [
        *("C:\\music\\a.wav", "\\\\host\\share\\a.wav", "file:///etc/passwd"),
        *("http://somewhere/a.mp3", "https://somewhere/a.mp3?path=/v1/audio", "data:audio/wav;base64,UklGRg=="),
        *("/v1/audio", "/v1/audio?path=", f"{ADDRESS}&path=b.mp3"),
        "http://[",
    ],
)
@pytest.mark.parametrize("name", ["src_audio_path", "reference_audio_path"])
async def test_nothing_of_the_server_or_of_the_network_can_be_named(
    client: httpx.AsyncClient, desk: FakeDesk, name: str, written: str
) -> None:
    reply = await client.post("/release_task", json={"task_type": "cover", name: written})
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith(f"{name} {written!r}: only a finished track of this server can be named")
    assert desk.jobs == []


@pytest.mark.parametrize("name", ["src_audio_path", "reference_audio_path"])
@pytest.mark.parametrize("written", ["../data/jobs.db", "/music/../etc/passwd", "a/..\\b"])
async def test_a_path_that_climbs_is_refused(
    client: httpx.AsyncClient, desk: FakeDesk, name: str, written: str
) -> None:
    reply = await client.post("/release_task", json={"task_type": "cover", name: written})
    assert reply.status_code == 400
    assert reply.json()["detail"] == f"{name} {written!r}: path traversal in audio file paths is not allowed"
    assert desk.jobs == []


async def test_a_file_of_the_server_may_be_named_where_the_operator_lists_its_folder(
    client: httpx.AsyncClient, desk: FakeDesk, tmp_path: Path
) -> None:
    (tmp_path / "a song.wav").write_bytes(SOUND)
    body = {"task_type": "cover", "src_audio_path": str(tmp_path / "a song.wav")}
    reply = await client.post("/release_task", json=body)
    assert reply.status_code == 400
    assert "absolute audio file paths are not allowed" in reply.json()["detail"]
    desk.roots = AudioRoots([tmp_path])
    assert warnings_of(await client.post("/release_task", json=body)) == []
    assert list(desk.audio.values()) == [SOUND]


@pytest.mark.parametrize("written", ["/etc/passwd", f"//v1/audio?path={TRACK}", f"/x{ADDRESS}", "/", "/v1/audio/x"])
async def test_no_other_file_of_the_server_may_be_named(
    client: httpx.AsyncClient, desk: FakeDesk, tmp_path: Path, written: str
) -> None:
    desk.roots = AudioRoots([tmp_path])
    reply = await client.post("/release_task", json={"reference_audio_path": written})
    assert reply.status_code == 400
    assert "absolute audio file paths are not allowed outside" in reply.json()["detail"]
    assert desk.jobs == []


async def test_a_file_wins_over_an_address_and_that_is_told(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    fields = {"task_type": "cover", "src_audio_path": ADDRESS, "reference_audio_path": ADDRESS}
    files = {
        "src_audio": ("a.wav", b"second"),
        "ctx_audio": ("b.wav", b"first"),
        "ref_audio": ("c.wav", b"style"),
    }
    reply = await client.post("/release_task", data=fields, files=files)
    assert sorted(map(str, desk.audio.values())) == sorted(map(str, [b"first", b"style"]))
    assert warnings_of(reply) == [
        "src_audio: not used, ctx_audio was sent",
        "src_audio_path: not used, ctx_audio was sent",
        "reference_audio_path: not used, ref_audio was sent",
    ]


async def test_text_in_the_place_of_a_file_is_no_path(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    fields = {"task_type": "cover", "src_audio": "/etc/passwd", "src_audio_path": ADDRESS}
    hows: tuple[dict[str, Any], ...] = ({"json": fields}, {"data": fields})
    for how in hows:
        reply = await client.post("/release_task", **how)
        assert warnings_of(reply) == ["src_audio: not a file, not used"]
        assert desk.audio[str(desk.jobs[-1].request.src_audio)] == TRACK


async def test_a_file_that_nobody_chose_is_not_given(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    boundary = "x"
    content = (
        '--x\r\nContent-Disposition: form-data; name="src_audio"; filename=""\r\n\r\n\r\n'
        '--x\r\nContent-Disposition: form-data; name="ref_audio"; filename=""\r\n\r\n\r\n--x--\r\n'
    )
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    assert warnings_of(await client.post("/release_task", content=content, headers=headers)) == []
    assert desk.audio == {}


async def test_source_audio_sent_along_with_text2music_is_tolerated_and_reported(
    client: httpx.AsyncClient, desk: FakeDesk
) -> None:
    reply = await client.post("/release_task", data={"prompt": "x"}, files={"src_audio": ("s.wav", b"RIFF")})
    assert warnings_of(reply) == ["src_audio: not used by text2music"]
    reply = await client.post("/release_task", json={"src_audio_path": "/etc/passwd"})
    assert warnings_of(reply) == ["src_audio_path: not used by text2music"]
    assert desk.audio == {}


async def test_audio_codes_stand_in_for_a_source(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    fields = {"task_type": "cover", "audio_code_string": "<|audio_code_1|>"}
    reply = await client.post("/release_task", data=fields, files={"src_audio": ("s.wav", b"RIFF")})
    assert warnings_of(reply) == ["src_audio: not used, audio codes stand in for it"]
    assert desk.audio == {}
    assert warnings_of(await client.post("/release_task", json=fields)) == []


async def test_a_file_under_a_name_that_means_nothing_is_reported(client: httpx.AsyncClient) -> None:
    reply = await client.post("/release_task", data={"prompt": "x"}, files={"song": ("s.wav", b"RIFF")})
    assert warnings_of(reply) == ["song: not known here, not used"]


@pytest.mark.parametrize("task", SOURCE_TASKS)
async def test_without_a_source_there_is_nothing_to_work_on(
    client: httpx.AsyncClient, desk: FakeDesk, task: Task
) -> None:
    reply = await client.post("/release_task", json={"task_type": task.value, "model": MODEL_OF[task]})
    assert reply.status_code == 400
    assert reply.json()["detail"] == f"task_type {task.value!r} works on source audio, and there is none"
    assert desk.jobs == []


@pytest.mark.parametrize("task", STEM_TASKS)
async def test_a_task_of_another_model_is_refused_with_those_of_this_one(
    client: httpx.AsyncClient, desk: FakeDesk, task: Task
) -> None:
    reply = await client.post("/release_task", data={"task_type": task.value}, files={"src_audio": ("a.wav", SOUND)})
    assert reply.status_code == 400
    assert "acestep-v15-turbo's: text2music, cover, repaint" in reply.json()["detail"]
    assert (desk.jobs, desk.audio) == ([], {})


async def test_each_model_says_which_tasks_it_does(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()["models"]
    assert {model["name"]: model["supported_task_types"] for model in models} == {
        "acestep-v15-turbo": ["text2music", "cover", "repaint"],
        "acestep-v15-base": ["text2music", "cover", "repaint", "lego", "extract", "complete"],
    }


@pytest.mark.parametrize(("size", "status"), [(3_000, 200), (5_000, 413)])
async def test_a_body_with_files_has_a_limit_of_its_own(
    connect: Connect, desk: FakeDesk, size: int, status: int
) -> None:
    async def drip() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="ref_audio"; filename="a"\r\n\r\n'
        for _ in range(size // 100):
            yield b"x" * 100
        yield b"\r\n--x--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=x"}
    async with connect(max_bytes=1_000, max_upload_bytes=4_000) as client:
        dripped = await client.post("/release_task", content=drip(), headers=headers)
        whole = await client.post("/release_task", files={"ref_audio": ("a", b"x" * size)})
    assert (dripped.status_code, whole.status_code) == (status, status)
    assert list(desk.audio.values()) == ([b"x" * size] * 2 if status == 200 else [])


async def test_a_form_with_too_many_files_is_refused(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    reply = await client.post("/release_task", files={f"file{n}": ("a", b"x") for n in range(9)})
    assert reply.status_code == 400
    assert "Too many files" in reply.json()["detail"]
    assert desk.jobs == []


async def test_a_form_cut_short_is_refused(client: httpx.AsyncClient, desk: FakeDesk) -> None:
    content = b'--x\r\nContent-Disposition: form-data; name="ref_audio"; filename="a"\r\n\r\nhalf a fi'
    reply = await client.post(
        "/release_task", content=content, headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert reply.status_code == 400
    assert desk.jobs == []


async def test_the_api_page_offers_files_where_they_can_be_sent(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/openapi.json")).json()
    content = schema["paths"]["/release_task"]["post"]["requestBody"]["content"]
    forms = content["multipart/form-data"]["schema"]["properties"]
    assert {forms[name]["format"] for name in ("ctx_audio", "ref_audio")} == {"binary"}
    assert "ctx_audio" not in content["application/json"]["schema"]["properties"]
