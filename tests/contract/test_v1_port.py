"""The v1 API on a port of its own, over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import httpx
import pytest

from serve_app.edge import EdgeOptions, build_v1_api
from serve_app.v1_port import PortTaken, listening
from tests.contract.songs import succeeded
from tests.contract.studio import Studio

if TYPE_CHECKING:
    from fastapi import FastAPI

    from tests.contract.conftest import FakeDesk


async def is_up() -> bool:
    return True


def api(desk: FakeDesk, is_ready: bool = True) -> FastAPI:
    async def answer() -> bool:
        return is_ready

    desk.becomes = succeeded
    return build_v1_api(desk, EdgeOptions(), answer)


@pytest.fixture
async def port(desk: FakeDesk) -> AsyncIterator[int]:
    async with listening(api(desk), "127.0.0.1", 0) as port:
        yield port


def as_documented(base_url: str) -> tuple[dict[str, object], dict[str, object]]:
    """The document's Python client."""
    health = httpx.get(f"{base_url}/health")
    music_request = {
        "prompt": "jazz piano, smooth, relaxing",
        "audio_duration": 15.0,
        "infer_step": 30,
        "guidance_scale": 15.0,
    }
    response = httpx.post(f"{base_url}/generate_music", json=music_request, timeout=300)
    return health.json(), response.json() if response.status_code == 200 else {}


async def test_the_documents_client_needs_nothing_but_the_port(port: int, desk: FakeDesk) -> None:
    health, result = await asyncio.to_thread(as_documented, f"http://localhost:{port}")
    assert health == {"status": "healthy", "pipeline_loaded": True}
    assert result["success"]
    assert str(result["audio_path"]).startswith("./outputs/")
    request = desk.jobs[0].request
    assert (request.prompt, request.audio_duration, request.inference_steps) == (
        "jazz piano, smooth, relaxing",
        15.0,
        20,
    )


async def test_nothing_but_the_v1_api_is_there(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/health", "/initialize", "/generate_music", "/sample_data", "/outputs/{ref}"} <= paths.keys()
        assert not [path for path in paths if path.startswith("/v1")]
        assert (await client.post("/release_task", json={})).status_code == 404
        assert (await client.get("/outputs/abc.mp3")).status_code == 200


async def test_the_pipeline_is_loaded_once_every_model_is_up(desk: FakeDesk) -> None:
    async with (
        listening(api(desk, is_ready=False), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        assert (await client.get("/health")).json() == {"status": "healthy", "pipeline_loaded": False}


async def test_a_caller_who_leaves_takes_the_song_along() -> None:
    studio = Studio(never_ends=True)
    async with listening(api(studio), "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"http://127.0.0.1:{port}/generate_music", json={}, timeout=0.3)
        assert await asyncio.to_thread(studio.was_cancelled.wait, 30)


async def test_a_caller_who_waited_long_enough_leaves_the_song_to_go_on() -> None:
    studio = Studio(never_ends=True)
    app = build_v1_api(studio, EdgeOptions(generation_timeout_s=0.05), is_up)
    async with listening(app, "127.0.0.1", 0) as port, httpx.AsyncClient() as client:
        reply = (await client.post(f"http://127.0.0.1:{port}/generate_music", json={})).json()
    assert (reply["success"], reply["request_id"], studio.was_cancelled.is_set()) == (False, "job-0", False)


async def test_replicas_of_a_host_share_the_port_and_one_may_leave(port: int, desk: FakeDesk) -> None:
    async with listening(api(desk), "127.0.0.1", port) as shared, httpx.AsyncClient() as client:
        assert shared == port
        for _ in range(8):
            assert (await client.get(f"http://127.0.0.1:{port}/health")).status_code == 200
    for _ in range(8):
        reply = await asyncio.to_thread(urllib.request.urlopen, f"http://127.0.0.1:{port}/health")
        with reply:
            assert reply.status == 200


async def test_a_port_that_is_somebody_elses_is_refused_by_name(desk: FakeDesk) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"cannot listen at 127.0.0.1:{port} .*see api.v1_port"):
            async with listening(api(desk), "127.0.0.1", port):
                pass


async def test_the_port_is_free_again_when_the_replica_ends(desk: FakeDesk) -> None:
    async with listening(api(desk), "127.0.0.1", 0) as port:
        pass
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
