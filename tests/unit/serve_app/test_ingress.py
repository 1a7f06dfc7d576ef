"""The desk over a real store; the conductor's handle is a fake that counts nudges."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from ray.serve.exceptions import RayServeException

from models.errors import DeadlineExceeded, InvalidRequest, Overloaded, StoreAway, UnknownAdapter, UnknownModel
from models.music import Metas, MusicRequest, SongPlan
from serve_app.artifacts.local import LocalArtifacts
from serve_app.dialects.desk import Attachments
from serve_app.ingress import ASKED_AT_ONCE, FrontDesk, Ingress, catalogue_of, warnings_of_disk
from serve_app.jobs.job import Idempotency, Status, Terms
from serve_app.jobs.store import JobStore
from serve_app.settings import AppSettings
from tests.unit.serve_app.test_intake import wav

TURBO, BASE, LM = "acestep-v15-turbo", "acestep-v15-base", "acestep-5Hz-lm-0.6B"


class FakeHandle:
    """`handle.nudge.remote()`."""

    def __init__(self) -> None:
        self.nudges = 0
        self.is_away = False

    @property
    def nudge(self) -> "FakeHandle":
        return self

    def remote(self) -> None:
        if self.is_away:
            raise RayServeException("no such deployment")
        self.nudges += 1


def settings(folder: Path, **changes: Any) -> AppSettings:
    adapters = folder / "adapters"
    adapters.mkdir(exist_ok=True)
    (adapters / "lo-fi.safetensors").touch()
    args = {
        "data": str(folder),
        "adapters": str(adapters),
        "dit": [{"model": TURBO}, {"model": BASE}],
        "lm": {"model": LM},
        "queue": {"max_jobs": 2},
    }
    return AppSettings.model_validate(args | changes)


def request(**fields: Any) -> MusicRequest:
    return MusicRequest.model_validate({"model": TURBO, "seeds": (1,), **fields})


@pytest.fixture
def handle() -> FakeHandle:
    return FakeHandle()


@pytest.fixture
async def desk(tmp_path: Path, handle: FakeHandle) -> AsyncIterator[FrontDesk]:
    as_handle: Any = handle
    desk = FrontDesk(settings(tmp_path), as_handle)
    async with desk.open():
        yield desk


def test_the_catalogue_is_what_the_settings_run_the_first_its_default(tmp_path: Path) -> None:
    catalogue = catalogue_of(settings(tmp_path))
    assert [(card.name, card.is_default, card.max_steps) for card in catalogue.models] == [
        (TURBO, True, 20),
        (BASE, False, 200),
    ]
    assert catalogue.lm_models == (LM,)
    assert catalogue_of(settings(tmp_path, lm=None)).lm_models == ()
    assert [len(card.tasks) for card in catalogue.models] == [3, 6]


async def test_a_job_is_stored_and_its_conductor_told(desk: FrontDesk, handle: FakeHandle) -> None:
    job = await desk.submit(request(), "")
    assert (job.status, handle.nudges) == (Status.QUEUED, 1)
    assert await desk.look_up([job.id], "") == [job]


async def test_a_job_is_taken_though_its_conductor_cannot_be_told(desk: FrontDesk, handle: FakeHandle) -> None:
    handle.is_away = True
    assert (await desk.submit(request(), "")).status is Status.QUEUED


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"model": "acestep-v15-sft"}, UnknownModel, "'acestep-v15-sft'; it runs acestep-v15-turbo, acestep-v15-base"),
        ({"lm_model": "acestep-5Hz-lm-4B"}, UnknownModel, "LM 'acestep-5Hz-lm-4B'; it runs acestep-5Hz-lm-0.6B"),
        ({"inference_steps": 21}, InvalidRequest, "1 to 20"),
        ({"task_type": "cover"}, InvalidRequest, "works on source audio"),
        ({"audio_bitrate": 200}, InvalidRequest, "200 kbit/s; allowed: 64, 96"),
        ({"audio_format": "opus", "audio_sample_rate": 44_100}, InvalidRequest, "opus is always 48000 Hz"),
        ({"loras": [{"name": "warm"}]}, UnknownAdapter, "'warm'; known are lo-fi"),
    ],
)
async def test_what_this_server_cannot_make_is_refused_and_leaves_nothing(
    desk: FrontDesk, fields: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        await desk.submit(request(**fields), "")
    assert (await desk.stats()).total == 0


async def test_without_an_lm_what_needs_one_is_refused(tmp_path: Path, handle: FakeHandle) -> None:
    as_handle: Any = handle
    desk = FrontDesk(settings(tmp_path, lm=None), as_handle)
    async with desk.open():
        with pytest.raises(InvalidRequest, match="runs no LM"):
            await desk.submit(request(thinking=True), "")
        await desk.submit(request(), "")


async def test_a_full_queue_is_told_with_when_to_come_back(desk: FrontDesk) -> None:
    for _ in range(2):
        await desk.submit(request(), "")
    with pytest.raises(Overloaded):
        await desk.submit(request(), "")
    assert await desk.retry_after_s() >= 1


class FakeLm:
    """`handle.describe.remote(request)`: a song once `may_answer` is set."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.cancelled = 0

    def options(self, *, stream: bool) -> "FakeLm":
        return self

    @property
    def describe(self) -> "FakeLm":
        return self

    def remote(self, request: MusicRequest) -> Any:
        answer: Any = asyncio.ensure_future(self._answer())
        answer.add_done_callback(lambda answer: setattr(self, "cancelled", self.cancelled + answer.cancelled()))
        return answer

    async def _answer(self) -> SongPlan:
        await self.may_answer.wait()
        return SongPlan(caption="jazz", lyrics="", language="en", metas=Metas())


@pytest.fixture
def lm() -> FakeLm:
    return FakeLm()


def desk_with(fake: FakeLm, folder: Path, **changes: Any) -> FrontDesk:
    set_up, handle = settings(folder, **changes), FakeHandle()
    lms: Any = {each.deployment: fake for each in set_up.lm}
    as_handle: Any = handle
    return FrontDesk(set_up, as_handle, lms=lms)


async def test_the_lm_is_asked_without_a_job(tmp_path: Path, lm: FakeLm) -> None:
    lm.may_answer.set()
    assert (await desk_with(lm, tmp_path).describe(request(use_format=True))).caption == "jazz"


async def test_an_lm_that_gives_no_answer_is_not_waited_for(tmp_path: Path, lm: FakeLm) -> None:
    desk = desk_with(lm, tmp_path, api={"lm_timeout_s": 0.01})
    with pytest.raises(DeadlineExceeded, match=r"within 0\.01 s"):
        await desk.describe(request(use_format=True))
    assert lm.cancelled == 1


async def test_no_more_is_asked_of_the_lm_at_once_than_may_be(tmp_path: Path, lm: FakeLm) -> None:
    desk = desk_with(lm, tmp_path)
    asking = [asyncio.ensure_future(desk.describe(request(use_format=True))) for _ in range(ASKED_AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match="8 things at once"):
        await desk.describe(request(use_format=True))
    lm.may_answer.set()
    assert len(await asyncio.gather(*asking)) == ASKED_AT_ONCE
    await desk.describe(request(use_format=True))


@pytest.mark.parametrize(
    ("fields", "changes", "error"),
    [
        ({"use_format": True}, {"lm": None}, InvalidRequest),
        ({"use_format": True, "lm_model": "acestep-5Hz-lm-4B"}, {}, UnknownModel),
    ],
)
async def test_an_lm_this_server_does_not_run_is_not_asked(
    tmp_path: Path, lm: FakeLm, fields: dict[str, Any], changes: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await desk_with(lm, tmp_path, **changes).describe(request(**fields))


async def test_a_caller_may_wait_for_a_job_and_gets_it_as_it_is_when_the_time_is_over(desk: FrontDesk) -> None:
    job = await desk.submit(request(), "")
    waited = await desk.wait(job.id, "", within_s=0.05)
    assert waited is not None
    assert waited.status is Status.QUEUED
    await desk.cancel(job.id, "")
    ended = await desk.wait(job.id, "", within_s=60)
    assert ended is not None
    assert ended.status is Status.CANCELLED
    assert [event.status async for event in desk.watch(job.id, "")] == [Status.QUEUED, Status.CANCELLED]
    assert await desk.wait("never", "", within_s=60) is None


async def test_a_repeated_request_is_one_job_and_keeps_its_audio_once(desk: FrontDesk, tmp_path: Path) -> None:
    async def song() -> AsyncIterator[bytes]:
        yield wav()

    terms = Terms(idempotency=Idempotency("k", "0" * 64))
    cover = request(task_type="cover")
    first = await desk.submit(cover, "", Attachments(source=song()), terms)
    again = await desk.submit(cover, "", Attachments(source=song()), terms)
    assert again.id == first.id
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == [f"{first.id}.source"]


async def test_a_desk_knows_whether_its_store_answers(desk: FrontDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def is_away(*_: Any) -> None:
        raise StoreAway("it is away")

    assert await desk.has_store()
    monkeypatch.setattr(JobStore, "ping", is_away)
    assert not await desk.has_store()


async def test_a_replica_answers_the_v1_api_at_a_port_of_its_own_as_long_as_it_lives(
    tmp_path: Path, handle: FakeHandle
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_handle: Any = handle
    app = Ingress(settings(tmp_path, api={"v1_port": port}), as_handle, {}).__serve_build_asgi_app__()
    async with app.router.lifespan_context(app), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        taken = (await client.post("/generate_music_async", json={"prompt": "jazz"})).json()
        assert (await client.get(f"/status/{taken['request_id']}")).json()["status"] == "pending"
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("/sample_data")


@pytest.mark.parametrize(("high_water", "is_told"), [(0.000001, True), (1.0, False)])
def test_a_disk_that_fills_up_is_a_warning(tmp_path: Path, high_water: float, is_told: bool) -> None:
    warnings = warnings_of_disk(settings(tmp_path, disk_high_water=high_water))
    assert [("% full" in warning, str(tmp_path) in warning) for warning in warnings] == [(True, False)] * is_told


def test_a_disk_with_neither_jobs_nor_audio_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = settings(tmp_path, disk_high_water=0.000001, artifacts="s3://bucket/songs")
    assert warnings_of_disk(elsewhere) != []
    monkeypatch.setenv("ACESTEP_DATABASE_URL", "postgresql://anna@host/jobs")
    assert warnings_of_disk(elsewhere) == []


async def test_a_webhook_needs_a_secret_to_sign_with(desk: FrontDesk) -> None:
    with pytest.raises(InvalidRequest, match="webhooks are off on this server"):
        await desk.submit(request(), "", terms=Terms(webhook="https://example.com/hook"))
    assert (await desk.stats()).total == 0


async def test_a_webhook_goes_with_its_job_to_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACESTEP_WEBHOOK_SECRET", "whsec_" + "A" * 32)
    as_handle: Any = FakeHandle()
    desk = FrontDesk(settings(tmp_path), as_handle)
    async with desk.open():
        job = await desk.submit(request(), "", terms=Terms(webhook="https://example.com/hook"))
        await desk.cancel(job.id, "")
        (owed,) = await desk.store.deliveries.claim(60, 10)
    assert (owed.job, owed.url) == (job.id, "https://example.com/hook")


async def test_adapters_and_waveforms_are_those_of_the_servers_folders(desk: FrontDesk, tmp_path: Path) -> None:
    assert await desk.adapters() == ("lo-fi",)
    ref = LocalArtifacts(tmp_path).save("wav", wav())
    assert len((await desk.peaks(ref, 3)).lowest) == 3
