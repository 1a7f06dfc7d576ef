"""Songs made from other audio, in every way and on every kind of model, by a server with every part real."""

from __future__ import annotations

import io
import json
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tests.e2e import conftest
from tests.e2e.conftest import Client
from tests.unit.models.dit import loras

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.e2e.conftest import Server

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

Sound = NDArray[np.float64]  # (sample, channel)

TURBO, BASE, XL = "acestep-v15-turbo", "acestep-v15-base", "acestep-v15-xl-turbo"
RATE = 48_000
SECONDS = 10
WITHIN_S = 600  # the tiny encoder takes more than a second of CPU for one of audio, and the jobs wait for each other
SETTLED = conftest.SETTLED | {"prompt": "calm piano", "seed": 5}


def sound(seconds: float = SECONDS, rate: int = RATE, channels: int = 2) -> Sound:
    """Tones under noise, the same each time."""
    time = np.arange(round(seconds * rate)) / rate
    tones = np.stack([np.sin(2 * np.pi * 220 * (channel + 1) * time) for channel in range(channels)], axis=1)
    noise: Sound = np.random.default_rng(0).uniform(-1, 1, tones.shape)
    return 0.3 * tones + 0.1 * noise


def written(samples: Sound, kind: str, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def read(content: bytes) -> Sound:
    samples, rate = soundfile.read(io.BytesIO(content), always_2d=True)
    assert rate == RATE
    return np.asarray(samples)


def likeness(one: Sound, other: Sound, first_s: float, last_s: float) -> float:
    """Correlation of a stretch of time; 1 for the same sound at any volume."""
    part = slice(round(first_s * RATE), round(last_s * RATE))
    return float(np.corrcoef(one[part].ravel(), other[part].ravel())[0, 1])


def differ(one: Sound, other: Sound) -> bool:
    """By ten times what 16 bit can tell. The tiny decoder hums one hum to all latents, so that songs are much alike."""
    return float(np.abs(one - other).max()) > 3e-4


@dataclass(frozen=True, eq=False)
class Case:
    """One job; `kind` is the format its source is uploaded in."""

    model: str
    task: str
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.task} on {self.model} from {self.kind}"

    @property
    def source(self) -> bytes:
        return written(sound(), self.kind)

    def ask(self, client: Client) -> str:
        return client.upload(
            {"src_audio": self.source},
            **SETTLED,
            model=self.model,
            task_type=self.task,
            inference_steps=4,
            **self.fields,
        )


WINDOW = {"repainting_start": 3, "repainting_end": 6}
CASES = (
    Case(TURBO, "cover", "WAV", {"audio_cover_strength": 0.5, "cover_noise_strength": 0.2}),
    Case(TURBO, "repaint", "MP3", WINDOW),
    Case(BASE, "lego", "FLAC", {**WINDOW, "track_name": "drums"}),
    Case(BASE, "extract", "WAV", {"track_name": "vocals"}),
    Case(BASE, "complete", "WAV", {"track_classes": "drums | bass"}),
    Case(XL, "cover", "FLAC"),
    Case(XL, "repaint", "WAV", {"repainting_start": 8, "repainting_end": 12, "repaint_mode": "conservative"}),
)
Made = dict[Case, tuple[str, dict[str, Any], Sound]]


@pytest.fixture(scope="module")
def made(server: Server) -> Made:
    """Every case's task id, item and sound. All are asked for at once, and share the server as strangers do."""
    with closing(Client(server.address)) as client:
        tasks = {case: case.ask(client) for case in CASES}
        items = {case: client.wait(task, WITHIN_S)[0] for case, task in tasks.items()}
        return {case: (tasks[case], item, read(client.fetch(item))) for case, item in items.items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_task_makes_a_song_as_long_as_what_it_is_made_from(made: Made, case: Case) -> None:
    _, item, samples = made[case]
    seconds = max(SECONDS, case.fields.get("repainting_end", 0))
    assert item["dit_model"] == case.model
    assert abs(len(samples) / RATE - seconds) < 0.1
    assert np.abs(samples).max() > 0.1


def test_the_same_source_and_seed_is_another_song_for_each_task(made: Made) -> None:
    songs = [samples for _, _, samples in made.values()]
    whole = [song[: SECONDS * RATE - 4000] for song in songs]  # a song of latents ends with its last whole one
    alike = [(one, other) for one in range(len(songs)) for other in range(one) if not differ(whole[one], whole[other])]
    assert alike == []


@pytest.mark.parametrize("case", [case for case in CASES if "repainting_start" in case.fields], ids=str)
def test_outside_its_window_a_song_is_its_source_and_inside_it_is_not(made: Made, case: Case) -> None:
    source, (_, _, samples) = read(case.source), made[case]
    start, end = case.fields["repainting_start"], min(SECONDS, case.fields["repainting_end"])
    assert likeness(samples, source, 0, start - 0.1) > 0.98
    assert likeness(samples, source, start, end) < 0.9
    if end < SECONDS:
        assert likeness(samples, source, end + 0.1, SECONDS - 0.1) > 0.98


def test_a_source_is_kept_with_its_job(made: Made, server: Server) -> None:
    kept = {path.name for path in (server.folder / "data" / "uploads").iterdir()}
    assert {f"{task}.source" for task, _, _ in made.values()} <= kept


def test_a_finished_track_can_be_worked_on(made: Made, client: Client) -> None:
    _, item, first = made[CASES[1]]
    fields = {"task_type": "repaint", "repainting_start": 7, "repainting_end": 9}
    address = str(client.http.base_url.join(item["file"]))
    (again,) = client.wait(client.ask(**SETTLED, **fields, src_audio_path=address), WITHIN_S)
    second = read(client.fetch(again))
    assert likeness(first, second, 0, 6.9) > 0.999
    assert likeness(first, second, 7, 9) < 0.9
    assert likeness(first, second, 9.1, SECONDS - 0.1) > 0.999


def test_a_song_sounds_like_its_reference_in_that_it_is_another_one_with_it(client: Client) -> None:
    plain = client.ask(**SETTLED, audio_duration=SECONDS)
    styled = client.upload({"ref_audio": written(sound(), "MP3")}, **SETTLED, audio_duration=SECONDS)
    one, other = (read(client.fetch(client.wait(task, WITHIN_S)[0])) for task in (plain, styled))
    assert len(one) == len(other)
    assert differ(one, other)


@pytest.mark.parametrize("model", [TURBO, BASE, XL])
def test_each_way_of_sampling_makes_another_song_of_the_same_noise(client: Client, model: str) -> None:
    ways: list[dict[str, Any]] = [
        {"infer_method": "ode"},
        {"infer_method": "sde"},
        {"sampler_mode": "heun"},
        {"timesteps": "0.9,0.6,0.3,0"},
        {"velocity_norm_threshold": 0.5, "velocity_ema_factor": 0.3},
        {"dcw_enabled": True},
        {"retake_variance": 0.5, "retake_seed": 9},
    ]
    if model == BASE:
        ways += [{"use_adg": True}, {"guidance_scale": 1}, {"cfg_interval_start": 0.4, "cfg_interval_end": 0.9}]
    asked = partial(client.ask, **SETTLED, model=model, inference_steps=4, audio_duration=SECONDS)
    songs = [read(client.fetch(client.wait(task, WITHIN_S)[0])) for task in [asked(**way) for way in ways]]
    alike = [
        (ways[one], ways[other])
        for one in range(len(ways))
        for other in range(one)
        if not differ(songs[one], songs[other])
    ]
    assert alike == []


def test_a_lora_changes_a_song_as_strongly_as_it_is_asked_to(client: Client, server: Server) -> None:
    loras.peft(server.folder / "adapters", "warm")
    asked = partial(client.ask, **SETTLED, audio_duration=SECONDS)
    tasks = [
        asked(),
        asked(loras=[{"name": "warm", "scale": 0}]),
        asked(loras="warm"),
        asked(loras=json.dumps(["warm"])),
    ]
    plain, silent, warm, again = (read(client.fetch(client.wait(task)[0])) for task in tasks)
    assert np.array_equal(plain, silent)
    assert differ(plain, warm)
    assert np.array_equal(warm, again)

    reply = client.http.post("/release_task", json={"loras": "cold"})
    assert reply.status_code == 400
    assert "'cold'; known are warm" in reply.json()["detail"]


NO_SOURCES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a text": (lambda: b"Dear Sir or Madam", "begins with b'Dear Sir'"),
    "nothing": (lambda: b"", "the file is empty"),
    "too long": (lambda: written(sound(601, 8000, 1), "WAV", 8000), "601.0 s long; at most 600 s"),
    "nine channels": (lambda: written(sound(2, 8000, 9), "WAV", 8000), "9 channels; allowed: 1 to 8"),
    "silence": (lambda: written(np.zeros((RATE, 2)), "FLAC"), "1.0 s of silence"),
    "half a file": (lambda: written(sound(), "FLAC")[:100_000], "flac"),
}


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("kind", NO_SOURCES)
@pytest.mark.parametrize("name", ["src_audio", "ref_audio"])
def test_a_file_no_song_can_be_made_from_is_refused_and_leaves_nothing(
    client: Client, server: Server, kind: str, name: str
) -> None:
    make, told = NO_SOURCES[kind]
    folder, queue = server.folder / "data" / "uploads", client.http.get("/v1/stats").json()["data"]["jobs"]
    before = files_in(folder)
    files = {"src_audio": ("a.wav", written(sound(1), "WAV")), name: ("song.mp3", make())}
    reply = client.http.post("/release_task", data={"task_type": "cover"}, files=files)
    assert reply.status_code == 400, reply.text
    assert reply.json()["detail"].startswith("source audio: " if name == "src_audio" else "reference audio: ")
    assert told in reply.json()["detail"]
    assert files_in(folder) == before
    assert client.http.get("/v1/stats").json()["data"]["jobs"]["total"] == queue["total"]


def test_each_model_says_which_tasks_it_does_and_is_asked_for_no_other(client: Client) -> None:
    models = {model["name"]: model for model in client.http.get("/v1/models").json()["data"]["models"]}
    assert models[XL]["supported_task_types"] == ["text2music", "cover", "repaint"]
    assert models[BASE]["supported_task_types"] == ["text2music", "cover", "repaint", "lego", "extract", "complete"]
    files = {"src_audio": ("a.wav", written(sound(1), "WAV"))}
    reply = client.http.post("/release_task", data={"task_type": "lego", "model": XL}, files=files)
    assert reply.status_code == 400
    assert f"'lego' is not one of {XL}'s" in reply.json()["detail"]
