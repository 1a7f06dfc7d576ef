"""A desk over a real store and a real disk: what becomes of the audio that comes with a request."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from models.errors import AceError, InvalidAudio, InvalidRequest, Overloaded, StoreAway, TooLong
from models.music import MusicRequest
from models.source_audio import AudioLimits
from serve_app import intake
from serve_app.artifacts.local import LocalArtifacts
from serve_app.dialects.desk import Attachments
from serve_app.ingress import FrontDesk
from serve_app.jobs.store import JobStore
from serve_app.settings import AppSettings

pytestmark = pytest.mark.real

TURBO = "acestep-v15-turbo"


class DeafConductor:
    """`handle.nudge.remote()`."""

    @property
    def nudge(self) -> DeafConductor:
        return self

    def remote(self) -> None:
        pass


def wav(seconds: float = 2.0, channels: int = 2, peak: float = 0.5) -> bytes:
    samples = peak * np.random.default_rng(0).uniform(-1, 1, (round(seconds * 8000), channels))
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


async def sent(content: bytes) -> AsyncIterator[bytes]:
    yield content[:1000]
    yield content[1000:]


def cover(**fields: Any) -> MusicRequest:
    return MusicRequest.model_validate({"model": TURBO, "seeds": (1,), "task_type": "cover", **fields})


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[FrontDesk]:
    args = {"data": str(tmp_path), "dit": [{"model": TURBO}], "lm": None, "queue": {"max_jobs": 2}}
    handle: Any = DeafConductor()
    desk = FrontDesk(AppSettings.model_validate(args), handle)
    async with desk.open():
        yield desk


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


async def test_audio_is_on_disk_under_its_jobs_name_before_the_job_is(
    desk: FrontDesk, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    submit = JobStore.submit

    async def watched(self: JobStore, *args: Any, **kwargs: Any) -> Any:
        seen.append(files_in(uploads))
        return await submit(self, *args, **kwargs)

    monkeypatch.setattr(JobStore, "submit", watched)
    job = await desk.submit(cover(), "", Attachments(sent(wav()), sent(wav(3.0))))
    names = [f"{job.id}.reference", f"{job.id}.source"]
    assert [job.request.reference_audio, job.request.src_audio] == names
    assert seen == [names]
    assert (uploads / f"{job.id}.source").read_bytes() == wav()
    assert (uploads / f"{job.id}.reference").read_bytes() == wav(3.0)


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"", InvalidAudio, "the file is empty"),
        (b"this is a text about a song", InvalidAudio, "begins with b'this is '.*allowed: wav, flac, mp3"),
        (wav()[:40], InvalidAudio, "wav file"),
        (wav(peak=0), InvalidAudio, "2.0 s of silence"),
        (wav(channels=9), InvalidAudio, "9 channels; allowed: 1 to 8"),
        (wav(601.0, channels=1), TooLong, r"601\.0 s long; at most 600 s"),
    ],
    ids=["empty", "text", "cut short", "silent", "nine channels", "too long"],
)
async def test_audio_no_song_can_be_made_from_is_refused_by_what_it_is_and_leaves_nothing(
    desk: FrontDesk, uploads: Path, content: bytes, error: type[AceError], said: str
) -> None:
    with pytest.raises(error, match=f"source audio: .*{said}"):
        await desk.submit(cover(), "", Attachments(sent(content), sent(wav())))
    assert files_in(uploads) == []
    assert (await desk.stats()).total == 0


async def test_a_reference_that_is_refused_takes_the_source_with_it(desk: FrontDesk, uploads: Path) -> None:
    with pytest.raises(InvalidAudio, match="reference audio: the file is empty"):
        await desk.submit(cover(), "", Attachments(sent(wav()), sent(b"")))
    assert files_in(uploads) == []
    assert (await desk.stats()).total == 0


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"repainting_start": 2.0}, InvalidRequest, "nothing is left, the source ends at 2 s"),
        ({"repainting_start": 1.0, "repainting_end": 600.5}, TooLong, "a song is at most 600 s"),
    ],
)
async def test_a_window_is_laid_on_the_source_before_anybody_waits_for_it(
    desk: FrontDesk, uploads: Path, fields: dict[str, Any], error: type[AceError], said: str
) -> None:
    with pytest.raises(error, match=said):
        await desk.submit(cover(task_type="repaint", **fields), "", Attachments(sent(wav())))
    assert files_in(uploads) == []


async def test_a_request_that_is_refused_does_not_have_its_audio_read(desk: FrontDesk, uploads: Path) -> None:
    content = sent(wav())
    with pytest.raises(InvalidRequest, match="'lego' is not one of"):
        await desk.submit(cover(task_type="lego"), "", Attachments(content))
    assert await anext(content) == wav()[:1000]
    assert files_in(uploads) == []


async def test_a_full_queue_keeps_no_audio(desk: FrontDesk, uploads: Path) -> None:
    jobs = [await desk.submit(cover(), "", Attachments(sent(wav()))) for _ in range(2)]
    with pytest.raises(Overloaded):
        await desk.submit(cover(), "", Attachments(sent(wav()), sent(wav())))
    assert files_in(uploads) == sorted(f"{job.id}.source" for job in jobs)


async def test_audio_stays_while_nobody_knows_whether_its_job_was_stored(
    desk: FrontDesk, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(*_: Any, **__: Any) -> None:
        raise ConnectionError("the database went away")

    monkeypatch.setattr(JobStore, "submit", lost)
    with pytest.raises(ConnectionError):
        await desk.submit(cover(), "", Attachments(sent(wav())))
    assert len(files_in(uploads)) == 1


async def test_a_finished_track_can_be_worked_on(desk: FrontDesk, tmp_path: Path) -> None:
    ref = LocalArtifacts(tmp_path).save("wav", wav())
    job = await desk.submit(cover(), "", Attachments(ref, ref))
    assert files_in(tmp_path / "uploads") == [f"{job.id}.reference", f"{job.id}.source"]
    assert (tmp_path / "uploads" / f"{job.id}.source").read_bytes() == wav()


@pytest.mark.parametrize("ref", ["0" * 32 + ".mp3", "../jobs.db", "jobs.db", ""])
async def test_a_track_that_is_none_is_refused(desk: FrontDesk, uploads: Path, ref: str) -> None:
    with pytest.raises(InvalidRequest, match="source audio: no finished track of this server is called"):
        await desk.submit(cover(), "", Attachments(ref))
    assert files_in(uploads) == []


async def test_audio_may_be_sent_ahead_and_named_by_its_owner_only(desk: FrontDesk, uploads: Path) -> None:
    upload = await desk.keep_upload(sent(wav(3.0, channels=1)), "anna")
    assert (upload.seconds, upload.sample_rate, upload.channels) == (3.0, 8000, 1)
    assert upload.size == len(wav(3.0, channels=1))
    job = await desk.submit(cover(), "anna", Attachments(upload.id))
    assert (uploads / f"{job.id}.source").read_bytes() == wav(3.0, channels=1)
    for owner in ("bert", ""):
        with pytest.raises(InvalidRequest, match=r"source audio: .*no upload of this key"):
            await desk.submit(cover(), owner, Attachments(upload.id))
    assert len(files_in(uploads)) == 2


async def test_what_an_upload_is_kept_as_is_no_id_of_it(desk: FrontDesk, uploads: Path) -> None:
    await desk.keep_upload(sent(wav()), "anna")
    (kept,) = files_in(uploads)
    for owner in ("anna", "bert"):
        with pytest.raises(InvalidRequest, match="no finished track of this server is called"):
            await desk.submit(cover(), owner, Attachments(kept))


async def test_somebody_elses_source_is_no_track(desk: FrontDesk) -> None:
    job = await desk.submit(cover(), "anna", Attachments(sent(wav())))
    with pytest.raises(InvalidRequest, match="no finished track of this server is called"):
        await desk.submit(cover(), "bert", Attachments(f"{job.id}.source"))


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (b"this is a text about a song", InvalidAudio, "^the file begins with b'this is '"),
        (wav(peak=0), InvalidAudio, "2.0 s of silence"),
        (wav(601.0, channels=1), TooLong, r"601\.0 s long; at most 600 s"),
    ],
    ids=["text", "silent", "too long"],
)
async def test_an_upload_no_song_can_be_made_from_is_refused_and_leaves_nothing(
    desk: FrontDesk, tmp_path: Path, content: bytes, error: type[AceError], said: str
) -> None:
    with pytest.raises(error, match=said):
        await desk.keep_upload(sent(content), "")
    assert files_in(tmp_path / "uploads") == files_in(tmp_path / "drafts") == []


async def test_an_upload_without_an_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1000)

    monkeypatch.setattr(intake, "AudioLimits", lambda: AudioLimits(file_bytes=10_000))
    with pytest.raises(TooLong, match="11000 bytes of audio; at most 10000"):
        await intake.Intake(LocalArtifacts(tmp_path)).upload(endless(), "")
    assert files_in(tmp_path / "drafts") == []


@pytest.mark.parametrize("error", [ConnectionError("gone"), ValueError("short"), asyncio.CancelledError()])
async def test_an_upload_that_breaks_off_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield wav()
        raise error

    with pytest.raises(type(error)):
        await intake.Intake(LocalArtifacts(tmp_path)).upload(broken(), "")
    assert files_in(tmp_path / "uploads") == files_in(tmp_path / "drafts") == []


async def test_audio_of_a_job_that_may_have_been_stored_is_kept(
    desk: FrontDesk, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_the_answer(*_: Any) -> None:
        raise StoreAway("the answer was lost")

    monkeypatch.setattr(JobStore, "submit", lose_the_answer)
    with pytest.raises(StoreAway):
        await desk.submit(cover(), "", Attachments(sent(wav())))
    assert len(files_in(uploads)) == 1
