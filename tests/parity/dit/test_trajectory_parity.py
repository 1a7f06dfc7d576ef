from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from models.checkpoints import variant_named
from models.dit import sampling
from models.dit.refinements import retaken
from models.dit.sampling import Sampling
from models.dit.stepping import Condition, Conditions, Kept, Trajectory
from models.dit.transformer import Transformer
from models.editing import keeping_of
from models.music import MusicRequest, Task
from models.weights import DitWeights, read_dit
from tests.parity.golden import DIT, Case, names, read_case

CASES = [
    *names("turbo_", "base_", "cover_", "repaint_", "lego_"),
]


@pytest.fixture(scope="module")
def weights() -> dict[str, DitWeights]:
    return {kind: read_dit(DIT / "checkpoint" / kind, torch.float32) for kind in ("turbo", "base")}


@pytest.fixture(scope="module")
def transformers(weights: dict[str, DitWeights]) -> dict[str, Transformer]:
    return {kind: Transformer(of_kind, torch.device("cpu"), torch.float32) for kind, of_kind in weights.items()}


def sampling_of(case: Case) -> Sampling:
    """Through the same rules as a request's."""
    asked = case.parameters
    method = "heun" if asked.get("sampler_mode") == "heun" else asked.get("infer_method", "ode")
    request = MusicRequest.model_validate(
        {
            "model": f"acestep-v15-{case.checkpoint.name}",
            "seeds": (0,),
            "shift": asked.get("shift"),
            "inference_steps": asked.get("infer_steps"),
            "guidance_scale": asked.get("diffusion_guidance_scale"),
            "timesteps": case.inputs["timesteps"].tolist() if "timesteps" in case.inputs else None,
            "infer_method": method,
            "use_adg": asked.get("use_adg", False),
            "cfg_interval_start": asked.get("cfg_interval_start", 0.0),
            "cfg_interval_end": asked.get("cfg_interval_end", 1.0),
            "audio_cover_strength": asked.get("audio_cover_strength", 1.0),
            "cover_noise_strength": asked.get("cover_noise_strength", 0.0),
            "velocity_norm_threshold": asked.get("velocity_norm_threshold", 0.0),
            "velocity_ema_factor": asked.get("velocity_ema_factor", 0.0),
            "dcw_enabled": asked.get("dcw_enabled", False),
            "task_type": task_of(case),
            **repaint_mode_of(case),
        }
    )
    settings, _ = sampling.resolve(request, variant_named(request.model), has_source="src_latents" in case.inputs)
    return settings


def task_of(case: Case) -> Task:
    prefix = case.name.partition("_")[0]
    return Task(prefix) if prefix in list(Task) else Task.TEXT2MUSIC


def repaint_mode_of(case: Case) -> dict[str, Any]:
    """The mode and strength behind the numbers of the case."""
    ratio = case.parameters.get("repaint_injection_ratio", 0.0)
    asked: dict[str, Any] = {"repaint_strength": 1.0 - ratio}
    if ratio in (0.0, 1.0):
        asked["repaint_mode"] = "conservative" if ratio else "aggressive"
    keeping = keeping_of(MusicRequest(model="any", seeds=(0,), **asked))
    assert keeping.injection == ratio
    assert keeping.crossfade_frames == case.parameters.get("repaint_crossfade_frames", 0)
    return asked


def conditions_of(case: Case) -> Conditions:
    inputs = case.inputs
    then, kept = None, None
    if "context_latents_non_cover" in inputs:
        then = Condition(inputs["encoder_hidden_states_non_cover"][0], inputs["context_latents_non_cover"][0])
    if "clean_src_latents" in inputs:
        first, last = case.parameters["window_frames"]
        assert inputs["repaint_mask"][0].nonzero().flatten().tolist() == list(range(first, last))
        kept = Kept(inputs["clean_src_latents"][0], first, last)
    return Conditions(
        Condition(inputs["encoder_hidden_states"][0], inputs["context_latents"][0]),
        then,
        start=inputs["src_latents"][0] if "src_latents" in inputs else None,
        kept=kept,
    )


def trajectory_of(case: Case, weights: dict[str, DitWeights]) -> Trajectory:
    drawn = chain(noise_of(case), case.inputs.get("eps", ()))
    null = weights[case.checkpoint.name].null_condition[0]
    return Trajectory(sampling_of(case), conditions_of(case), null, drawn)


def noise_of(case: Case) -> Tensor:
    if "retake_noise" not in case.inputs:
        return case.inputs["noise"]
    return retaken(case.inputs["noise"], case.inputs["retake_noise"], case.parameters["retake_variance"])


@torch.inference_mode()
def run(transformer: Transformer, songs: list[Trajectory]) -> list[list[float]]:
    """Runs the songs side by side to their ends; for each, the t it was called at."""
    called: list[list[float]] = [[] for _ in songs]
    while running := [song for song in songs if not song.is_done]:
        asked = [song.rows() for song in running]
        velocities = iter(transformer.velocities([row for own in asked for row in own]))
        for song, own in zip(running, asked, strict=True):
            called[songs.index(song)].append(own[0].t)
            song.advance([next(velocities) for _ in own])
    return called


def result(song: Trajectory) -> Tensor:
    return song.x[None]


@pytest.mark.parametrize("name", CASES)
def test_a_song_alone_is_the_references(
    transformers: dict[str, Transformer], weights: dict[str, DitWeights], name: str
) -> None:
    case = read_case(name)
    song = trajectory_of(case, weights)

    (called,) = run(transformers[case.checkpoint.name], [song])

    wanted = torch.tensor(case.parameters["model_call_timesteps"])
    torch.testing.assert_close(torch.tensor(called), wanted, atol=1e-7, rtol=0)
    case.check("target_latents", result(song))


@pytest.mark.parametrize("kind", ["turbo", "base"])
def test_songs_of_all_lengths_schedules_and_guidances_in_one_batch_are_each_the_references(
    transformers: dict[str, Transformer], weights: dict[str, DitWeights], kind: str
) -> None:
    cases = [case for case in map(read_case, CASES) if case.checkpoint.name == kind]
    assert len(cases) > 8
    songs = [trajectory_of(case, weights) for case in cases]

    run(transformers[kind], songs)

    for case, song in zip(cases, songs, strict=True):
        case.check("target_latents", result(song))


@pytest.mark.parametrize("name", names("base_apg_interval", "base_adg_interval"))
def test_guidance_is_on_where_the_reference_has_it_on(weights: dict[str, DitWeights], name: str) -> None:
    case = read_case(name)
    song = trajectory_of(case, weights)
    seen = []

    while not song.is_done:
        rows = song.rows()
        seen.append(len(rows) == 2)
        song.advance([torch.randn_like(row.x) for row in rows])

    assert seen == case.parameters["guidance_active"]


@pytest.mark.parametrize("name", ["turbo_ode_shift3", "base_apg_n10"])
def test_a_seed_is_the_references_noise(name: str) -> None:
    case = read_case(name)
    noise = next(sampling.draws(case.parameters["seed"], case.parameters["T"]))
    assert torch.equal(noise[None], case.inputs["noise"])
