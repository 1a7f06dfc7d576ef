"""Chat completions and speech over real HTTP, asked for by OpenAI's own client."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from httpx_sse import connect_sse

from serve_app.edge import EdgeOptions
from serve_app.keys import Keyring
from tests.contract.conftest import CONTENT, TURBO
from tests.contract.studio import Studio, serving

pytestmark = pytest.mark.real

URL = f"data:audio/mpeg;base64,{base64.b64encode(CONTENT).decode()}"
ASK: dict[str, Any] = {"model": "acestep/" + TURBO, "messages": [{"role": "user", "content": "calm piano"}]}

Serve = Callable[..., str]


@pytest.fixture
def studio() -> Studio:
    return Studio()


@pytest.fixture
def serve(studio: Studio) -> Iterator[Serve]:
    """Starts the server with these options; its address."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(studio, EdgeOptions(**options)))


@pytest.fixture
def client(serve: Serve) -> Iterator[openai.OpenAI]:
    with connect(serve()) as client:
        yield client


def urls_of(message: Any) -> list[str]:
    """OpenAI's client reads each item of ours as an object of its own class, with our fields beside its own."""
    return [item.audio_url["url"] for item in message.audio]


def connect(url: str, key: str = "any") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


def test_a_completion_has_words_and_audio(client: openai.OpenAI, studio: Studio) -> None:
    answer = client.chat.completions.create(**ASK)
    message: Any = answer.choices[0].message
    assert urls_of(message) == [URL]
    assert message.content.startswith("## Metadata\n**Caption:** calm piano\n**BPM:** 120\n**Duration:** 30s\n")
    assert (answer.id, answer.model, answer.object) == ("chatcmpl-job-0", "acestep/" + TURBO, "chat.completion")
    assert answer.choices[0].finish_reason == "stop"
    assert not studio.was_cancelled.is_set()


async def test_the_asynchronous_client_gets_the_same(serve: Serve) -> None:
    async with openai.AsyncOpenAI(base_url=f"{serve()}/v1", api_key="any") as client:
        answer = await client.chat.completions.create(**ASK)
        message: Any = answer.choices[0].message
        stream = await client.chat.completions.create(**ASK, stream=True)
        deltas: list[Any] = [chunk.choices[0].delta async for chunk in stream]
    assert urls_of(message) == [URL]
    assert [urls_of(delta) for delta in deltas if delta.audio] == [[URL]]


def test_all_songs_of_a_batch_are_sent(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, extra_body={"batch_size": 3})
    message: Any = answer.choices[0].message
    assert urls_of(message) == [URL] * 3


def test_a_stream_begins_at_once_shows_progress_and_ends_with_audio(client: openai.OpenAI, studio: Studio) -> None:
    studio.steps = 2
    studio.codes = (7, 8)
    with client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}) as stream:
        chunks: list[Any] = list(stream)
    *told, usage = chunks
    deltas = [chunk.choices[0].delta for chunk in told]
    words = [delta.content for delta in deltas]
    assert (deltas[0].role, words[:3]) == ("assistant", ["", ".", "."])
    assert told[1].progress == {"stage": "denoise", "progress": 0.5, "queue_position": 0}
    assert words[3].startswith("\n\n## Metadata\n**Caption:** calm piano")
    assert words[4:] == ["\n\n[audio_codes]<|audio_code_7|><|audio_code_8|>[/audio_codes]", None, None]
    assert urls_of(deltas[5]) == [URL]
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * 6 + ["stop"]
    assert (usage.choices, usage.usage.completion_tokens) == ([], 2)


def test_a_stream_is_server_sent_events_up_to_done(serve: Serve) -> None:
    with (
        httpx.Client() as client,
        connect_sse(client, "POST", f"{serve()}/v1/chat/completions", json={**ASK, "stream": True}) as source,
    ):
        events = [event.data for event in source.iter_sse()]
    assert events[-1] == "[DONE]"
    assert {json.loads(event)["object"] for event in events[:-1]} == {"chat.completion.chunk"}
    assert source.response.headers["cache-control"] == "no-cache"


def test_a_stream_tells_what_went_wrong_and_ends(client: openai.OpenAI, studio: Studio) -> None:
    studio.fails_with = ("bad_audio", "the song is silent")
    chunks: list[Any] = list(client.chat.completions.create(**ASK, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "\n\nError: the song is silent", None]
    assert chunks[-1].choices[0].finish_reason == "error"


def test_what_is_not_used_is_told(client: openai.OpenAI, studio: Studio) -> None:
    studio.remarks = ("shift: not used",)
    answer: Any = client.chat.completions.create(**ASK, max_tokens=5, extra_body={"colour": "blue"})
    assert answer.warnings == [
        "colour: not known here, not used",
        "max_tokens: not used, a song is as long as audio_config.duration says",
        "shift: not used",
    ]


@pytest.mark.parametrize(
    ("code", "error", "status"),
    [
        ("too_long", openai.BadRequestError, 400),
        ("cancelled", openai.ConflictError, 409),
        ("out_of_memory", openai.InternalServerError, 500),
        ("deadline_exceeded", openai.InternalServerError, 504),
    ],
)
def test_a_job_that_fails_raises_what_fits_and_is_not_tried_again(
    serve: Serve, studio: Studio, code: str, error: type[openai.APIStatusError], status: int
) -> None:
    studio.fails_with = (code, "this is why")
    client = openai.OpenAI(base_url=f"{serve()}/v1", api_key="any", max_retries=2)
    with client, pytest.raises(error, match="Generation timeout" if status == 504 else "this is why") as caught:
        client.chat.completions.create(**ASK)
    assert caught.value.status_code == status
    assert len(studio.jobs) == 1


def test_a_mistake_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"Invalid request format: temperature: .* less than or equal to 2"
    ):
        client.chat.completions.create(**ASK, temperature=3)


def test_a_wrong_key_is_an_authentication_error(serve: Serve) -> None:
    url = serve(keyring=Keyring(["right"]))
    with connect(url, "wrong") as client, pytest.raises(openai.AuthenticationError, match="Invalid API key"):
        client.chat.completions.create(**ASK)
    with connect(url, "right") as client:
        assert client.chat.completions.create(**ASK).choices


def test_a_full_queue_is_a_rate_limit_with_a_time_to_come_back(client: openai.OpenAI, studio: Studio) -> None:
    studio.is_full = True
    with pytest.raises(openai.RateLimitError, match="queue is full") as caught:
        client.chat.completions.create(**ASK, stream=True)
    assert caught.value.response.headers["retry-after"] == "7"


@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_who_leaves_takes_the_job_along(client: openai.OpenAI, studio: Studio, stream: bool) -> None:
    studio.never_ends = True
    if stream:
        chunks = client.chat.completions.create(**ASK, stream=True)
        next(iter(chunks))
        chunks.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(**ASK, timeout=0.3)
    assert studio.was_cancelled.wait(30)


def test_when_the_time_is_over_the_job_is_cancelled(serve: Serve, studio: Studio) -> None:
    studio.never_ends = True
    with connect(serve(generation_timeout_s=0.05)) as client:
        with pytest.raises(openai.InternalServerError, match="Generation timeout") as caught:
            client.chat.completions.create(**ASK)
        assert (caught.value.status_code, studio.was_cancelled.is_set()) == (504, True)
        studio.was_cancelled.clear()
        chunks: list[Any] = list(client.chat.completions.create(**ASK, stream=True))
    assert chunks[-2].choices[0].delta.content == "\n\nError: Generation timeout"
    assert studio.was_cancelled.is_set()


def test_models_are_listed_as_openrouter_lists_them(serve: Serve) -> None:
    with openai.OpenAI(base_url=f"{serve()}/api/v1", api_key="any") as client:
        first: Any = client.models.list().data[0]
    assert (first.id, first.name) == ("acestep/" + TURBO, f"ACE-Step {TURBO}")
    assert (first.output_modalities, first.max_output_length) == (["audio", "text"], 600)


SONG: dict[str, Any] = {"model": TURBO, "input": "[verse]\nla la", "voice": "alloy", "instructions": "a waltz"}


def test_speech_is_one_song_with_its_seed(client: openai.OpenAI, studio: Studio) -> None:
    answer = client.audio.speech.create(**SONG, extra_body={"seed": 5, "duration": 20, "bpm": 90})
    assert answer.content == CONTENT
    assert answer.response.headers["content-type"] == "audio/mpeg"
    assert answer.response.headers["x-seed"] == "5"
    assert json.loads(answer.response.headers["x-warnings"]) == [
        "voice: not used; instructions tell who sings, and how"
    ]
    asked = studio.jobs[0].request
    assert (asked.prompt, asked.lyrics, asked.seeds) == ("a waltz", "[verse]\nla la", (5,))
    assert (asked.audio_duration, asked.bpm) == (20, 90)


def test_speech_can_be_streamed_to_a_file(client: openai.OpenAI, tmp_path: Any) -> None:
    with client.audio.speech.with_streaming_response.create(**SONG, response_format="flac") as answer:
        answer.stream_to_file(tmp_path / "song")
    assert (tmp_path / "song").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"response_format": "pcm"}, "response_format: Input should be .*'mp3'"),
        ({"speed": 1.5}, "speed: Input should be less than or equal to 1"),
        ({"stream_format": "sse"}, "stream_format 'sse': allowed is audio"),
        ({"input": "", "instructions": ""}, "neither input"),
        ({"extra_body": {"duration": 5}}, "duration: Input should be greater than or equal to 10"),
        ({"model": "tts-1"}, "does not run model 'tts-1'"),
    ],
)
def test_speech_refuses_by_name_what_it_cannot_do(client: openai.OpenAI, change: dict[str, Any], said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.audio.speech.create(**SONG | change)


def test_a_voice_that_is_no_speaker_is_a_style(client: openai.OpenAI, studio: Studio) -> None:
    answer = client.audio.speech.create(model=TURBO, input="", voice="a rough tenor")
    assert "x-warnings" not in answer.response.headers
    assert (studio.jobs[0].request.prompt, studio.jobs[0].request.is_instrumental) == ("a rough tenor", True)


def test_a_caller_of_speech_who_leaves_takes_the_job_along(client: openai.OpenAI, studio: Studio) -> None:
    studio.never_ends = True
    with pytest.raises(openai.APITimeoutError):
        client.audio.speech.create(**SONG, timeout=0.3)
    assert studio.was_cancelled.wait(30)
