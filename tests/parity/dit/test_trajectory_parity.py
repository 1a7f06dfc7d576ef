from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.checkpoints import variant_named
from models.dit import sampling
from models.dit.sampling import Sampling
from models.dit.stepping import Stepper, Trajectory
from models.dit.transformer import Transformer
from models.music import MusicRequest
from models.weights import read_dit
from tests.parity.golden import DIT, Case, names, read_case

PLAIN = [
    *names("turbo_ode_", "turbo_custom_", "turbo_infer_steps_"),
    *names("base_apg_", "base_adg_", "base_no_guidance", "base_custom_"),
    *("cover_codes", "cover_codes_padded", "cover_audio", "repaint_window_only", "lego_window"),
]


@pytest.fixture(scope="module")
def steppers() -> dict[tuple[str, bool], Stepper]:
    made = {}
    for kind in ("turbo", "base"):
        weights = read_dit(DIT / "checkpoint" / kind, torch.float32)
        transformer = Transformer(weights, torch.device("cpu"), torch.float32)
        for packs in (False, True):
            made[kind, packs] = Stepper(transformer, weights.null_condition[0], kind == "turbo", packs)
    return made


def sampling_of(case: Case) -> Sampling:
    """Through the same rules as a request's."""
    asked = case.parameters
    timesteps = case.inputs["timesteps"].tolist() if "timesteps" in case.inputs else asked.get("timesteps")
    request = MusicRequest.model_validate(
        {
            "model": f"acestep-v15-{case.checkpoint.name}",
            "seeds": (0,),
            "shift": asked.get("shift"),
            "inference_steps": asked.get("infer_steps"),
            "guidance_scale": asked.get("diffusion_guidance_scale"),
            "timesteps": timesteps,
            "infer_method": asked.get("infer_method", "ode"),
            "use_adg": asked.get("use_adg", False),
            "cfg_interval_start": asked.get("cfg_interval_start", 0.0),
            "cfg_interval_end": asked.get("cfg_interval_end", 1.0),
        }
    )
    settings, _ = sampling.resolve(request, variant_named(request.model))
    return settings


def trajectory_of(case: Case) -> Trajectory:
    return Trajectory(
        sampling=sampling_of(case),
        condition=case.inputs["encoder_hidden_states"][0],
        context=case.inputs["context_latents"][0],
        x=case.inputs["noise"][0],
        generator=torch.Generator("cpu").manual_seed(0),
    )


@torch.inference_mode()
def run(stepper: Stepper, songs: list[Trajectory]) -> list[Tensor]:
    while running := [song for song in songs if not song.is_done]:
        for song, velocities in zip(running, stepper.predict(running), strict=True):
            stepper.advance(song, velocities)
    return [song.x[None] for song in songs]


@pytest.mark.parametrize("name", PLAIN)
def test_the_dit_is_called_at_the_references_timesteps(name: str) -> None:
    case = read_case(name)
    called = torch.tensor(sampling_of(case).timesteps, dtype=torch.float32)
    torch.testing.assert_close(called, torch.tensor(case.parameters["model_call_timesteps"]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", PLAIN)
def test_a_song_alone_is_the_references(steppers: dict[tuple[str, bool], Stepper], name: str) -> None:
    case = read_case(name)
    (seen,) = run(steppers[case.checkpoint.name, False], [trajectory_of(case)])
    case.check("target_latents", seen)


@pytest.mark.parametrize("kind", ["turbo", "base"])
def test_songs_of_all_lengths_schedules_and_guidances_in_one_batch_are_each_the_references(
    steppers: dict[tuple[str, bool], Stepper], kind: str
) -> None:
    cases = [case for case in map(read_case, PLAIN) if case.checkpoint.name == kind]
    assert len(cases) > 5
    for case, seen in zip(cases, run(steppers[kind, True], list(map(trajectory_of, cases))), strict=True):
        case.check("target_latents", seen)


@pytest.mark.parametrize("name", names("turbo_sde_", "base_sde_"))
def test_the_stochastic_steps_are_the_references(steppers: dict[tuple[str, bool], Stepper], name: str) -> None:
    case = read_case(name)
    song = trajectory_of(case)
    drawn = iter(case.inputs["eps"])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "randn", lambda shape, generator: next(drawn).reshape(shape))
        song.sampling = replace(song.sampling, method="sde")
        (seen,) = run(steppers[case.checkpoint.name, False], [song])
    case.check("target_latents", seen)


@pytest.mark.parametrize("name", ["turbo_ode_shift3", "base_apg_n10"])
def test_a_seed_is_the_references_noise(name: str) -> None:
    case = read_case(name)
    noise, _ = sampling.noise_of(case.parameters["seed"], case.parameters["T"])
    assert torch.equal(noise[None], case.inputs["noise"])
