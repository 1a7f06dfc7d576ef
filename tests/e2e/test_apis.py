"""Every API's first song, over real HTTP through Serve's proxy, by a server with every part real."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import soundfile
from httpx_sse import connect_sse
from standardwebhooks import Webhook

from tests.e2e.conftest import WEBHOOK_SECRET, Client
from tests.e2e.test_editing import sound, written
from tests.receiver import receiving

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

WITHIN_S = 300
TURBO = "acestep-v15-turbo"
QUICK: dict[str, Any] = {
    "lyrics": "[Instrumental]",
    "bpm": 120,
    "key_scale": "C major",
    "time_signature": "4",
    "audio_duration": 10,
    "use_cot_caption": False,
    "use_cot_language": False,
    "audio_format": "wav",
    "inference_steps": 2,
}
TOGETHER = 50


def seconds_of(content: bytes) -> float:
    return float(soundfile.info(io.BytesIO(content)).duration)


def happened(http: httpx.Client, job: str, after: int = 0, at_most: int = 10**6) -> list[dict[str, Any]]:
    """What a job is told to have done, by number; to its end, or as much as asked for."""
    seen: list[dict[str, Any]] = []
    headers = {"last-event-id": str(after)} if after else {}
    with connect_sse(http, "GET", f"/v2/jobs/{job}/events", headers=headers) as source:
        for event in source.iter_sse():
            if event.event == "progress":
                seen.append({**json.loads(event.data), "number": int(event.id)})
            if event.event == "end":
                assert json.loads(event.data)["status"] == seen[-1]["status"] if seen else True
                return seen
            if len(seen) == at_most:
                return seen
    raise AssertionError(f"the stream of {job} broke off after {seen[-1:]}")


def ended(http: httpx.Client, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        view: dict[str, Any] = http.get(f"/v2/jobs/{job}").json()
        if view["status"] not in ("queued", "running"):
            return view
        time.sleep(0.2)
    raise AssertionError(view)


def test_a_native_job_is_watched_to_its_end_and_its_track_heard_and_seen(client: Client) -> None:
    http = client.http
    taken = http.post("/v2/jobs", json=QUICK | {"seeds": [5], "thinking": True}, headers={"idempotency-key": "once"})
    assert taken.status_code == 202, taken.text
    again = http.post("/v2/jobs", json=QUICK | {"seeds": [5], "thinking": True}, headers={"idempotency-key": "once"})
    job = taken.json()["id"]
    assert again.json()["id"] == job
    events = happened(http, job)
    assert [event["number"] for event in events] == list(range(1, len(events) + 1))
    assert [event["progress"] for event in events] == sorted(event["progress"] for event in events)
    view = ended(http, job)
    assert view["status"] == "succeeded", view
    (track,) = view["tracks"]
    content = http.get(track["url"]).content
    assert len(content) == track["size"]
    assert seconds_of(content) == pytest.approx(10, abs=0.1)
    part = http.get(track["url"], headers={"range": "bytes=0-99"})
    assert (part.status_code, part.content) == (206, content[:100])
    peaks = http.get(f"{track['url']}/peaks", params={"points": 64}).json()
    assert len(peaks["lowest"]) == len(peaks["highest"]) == 64
    assert max(peaks["highest"]) > 0.1
    assert job in [one["id"] for one in http.get("/v2/jobs", params={"status": "succeeded"}).json()["jobs"]]
    reused = http.post("/v2/jobs", json=QUICK | {"seeds": [5], "thinking": True, "reuse": True})
    assert reused.json()["id"] == job
    unchanged = http.get(f"/v2/jobs/{job}", headers={"if-none-match": http.get(f"/v2/jobs/{job}").headers["etag"]})
    assert unchanged.status_code == 304


def test_many_who_watch_while_many_songs_are_made_miss_nothing(server: Server) -> None:
    """One stream a job, each broken off once."""

    def live(number: int) -> None:
        with closing(httpx.Client(base_url=server.address, timeout=WITHIN_S)) as http:
            job = http.post("/v2/jobs", json=QUICK | {"seeds": [number]}).json()["id"]
            first = happened(http, job, at_most=2)
            rest = happened(http, job, after=first[-1]["number"])
            events = first + rest
            assert [event["number"] for event in events] == list(range(1, len(events) + 1))
            assert [event["progress"] for event in events] == sorted(event["progress"] for event in events)
            assert events[-1]["status"] == "succeeded"

    with ThreadPoolExecutor(TOGETHER) as crowd:
        for watching in [crowd.submit(live, number) for number in range(TOGETHER)]:
            watching.result()


def test_an_upload_is_worked_on_and_a_caller_who_asks_to_wait_gets_the_song(client: Client) -> None:
    upload = client.http.post("/v2/uploads", content=written(sound(), "WAV"), headers={"content-type": "audio/wav"})
    assert upload.status_code == 201, upload.text
    body = QUICK | {"task_type": "cover", "src_audio": upload.json()["id"], "seeds": [3]}
    made = client.http.post("/v2/jobs", json=body, headers={"prefer": "wait=25"})
    assert made.status_code in (200, 202), made.text
    view = ended(client.http, made.json()["id"])
    assert view["status"] == "succeeded", view


def test_a_receiver_is_told_of_the_end_and_can_tell_who_says_so(client: Client) -> None:
    with receiving() as receiver:
        job = client.http.post(
            "/v2/jobs", json=QUICK | {"seeds": [8], "webhook": {"url": f"http://127.0.0.1:{receiver.port}/told"}}
        ).json()["id"]
        deadline = time.monotonic() + WITHIN_S
        while not receiver.received and time.monotonic() < deadline:
            time.sleep(0.1)
        told = receiver.received[0]
    verified = Webhook(WEBHOOK_SECRET).verify(told.body, dict(told.headers))
    assert (verified["type"], verified["data"]["id"]) == ("job.succeeded", job)


def test_the_lm_is_asked_without_a_job(client: Client) -> None:
    """Random weights know little, so only the form of what they say can be looked at."""
    formatted = client.http.post("/format_input", json={"prompt": "jazz", "lyrics": "la la", "param_obj": {"bpm": 90}})
    assert formatted.status_code == 200, formatted.text
    assert formatted.json()["data"]["bpm"] == 90
    sample = client.http.post("/v1/create_sample", json={"query": "slow jazz", "instrumental": True})
    assert sample.status_code == 200, sample.text
    assert sample.json()["code"] == 200, sample.text
    assert {"caption", "lyrics", "keyscale", "duration"} <= sample.json()["data"].keys()


def test_what_a_recording_is_heard_as_is_told_without_a_song(client: Client) -> None:
    audio = {"src_audio": written(sound(), "WAV")}
    reply = client.http.post(
        "/release_task", data={"extract_codes_only": "true"}, files={name: ("a.wav", audio[name]) for name in audio}
    )
    view = ended(client.http, reply.json()["data"]["task_id"])
    assert view["status"] == "succeeded", view
    result = json.loads(client.look(reply.json()["data"]["task_id"])["result"])
    assert result["audio_codes"].count("<|audio_code_") == 50


def test_openais_client_gets_a_song_whole_and_streamed_and_spoken(server: Server) -> None:
    ours = {"thinking": False, "audio_config": {"duration": 10, "format": "wav"}, "inference_steps": 2}
    messages: Any = [{"role": "user", "content": "<prompt>calm piano</prompt><lyrics>[inst]</lyrics>"}]
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=WITHIN_S, max_retries=0) as api:
        whole = api.chat.completions.create(model=f"acestep/{TURBO}", messages=messages, extra_body=ours)
        audio: Any = whole.choices[0].message.audio
        url = audio[0].audio_url["url"]
        assert seconds_of(base64.b64decode(url.partition(",")[2])) == pytest.approx(10, abs=0.1)
        chunks = list(
            api.chat.completions.create(
                model=f"acestep/{TURBO}", messages=messages, stream=True, extra_body=ours | {"seed": 4}
            )
        )
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert any(getattr(chunk.choices[0].delta, "audio", None) for chunk in chunks)
        spoken = api.audio.speech.create(
            model=TURBO, voice="none", input="[inst]", instructions="calm piano", response_format="wav",
            extra_body={"duration": 10, "inference_steps": 2},
        )  # fmt: skip
        assert seconds_of(spoken.content) == pytest.approx(10, abs=0.1)


def test_the_older_apis_make_their_songs(client: Client) -> None:
    body = {name: value for name, value in QUICK.items() if name != "audio_format"} | {"batch_size": 1}
    taken = client.http.post("/v1/music/generate", json=body | {"caption": "calm piano"}).json()
    ended(client.http, taken["job_id"])
    told = client.http.get(f"/v1/jobs/{taken['job_id']}").json()
    assert told["status"] == "succeeded", told
    assert client.http.get(told["result"]["first_audio_path"]).status_code == 200
    v1 = {"audio_duration": 10.0, "prompt": "calm piano", "lyrics": "", "infer_step": 2}
    made = client.http.post("/generate_music", json=v1, timeout=WITHIN_S).json()
    assert made["success"], made
    assert seconds_of(client.http.get(made["audio_url"]).content) == pytest.approx(10, abs=0.1)


def test_who_leaves_takes_their_song_along(server: Server, client: Client) -> None:
    """Through Serve's proxy: a chat that nobody waits for any more is not made."""
    body = {
        "messages": [{"role": "user", "content": "<prompt>long</prompt><lyrics>[inst]</lyrics>"}],
        "audio_config": {"duration": 600},
        "thinking": True,
    }
    gone = threading.Event()

    def ask() -> None:
        try:
            httpx.post(f"{server.address}/v1/chat/completions", json=body, timeout=3)
        except httpx.TimeoutException:
            gone.set()

    before = {job["id"] for job in client.http.get("/v2/jobs").json()["jobs"]}
    ask()
    assert gone.is_set()
    jobs = client.http.get("/v2/jobs").json()["jobs"]
    (new,) = [job["id"] for job in jobs if job["id"] not in before]
    assert ended(client.http, new)["status"] == "cancelled"
