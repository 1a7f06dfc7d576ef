from __future__ import annotations

from typing import Any

import pytest

from models.checkpoints import check_request, variant_named
from models.dit.sampling import Method, Sampling, noise_levels, resolve, schedule
from models.errors import InvalidRequest
from models.music import MusicRequest

TURBO, BASE = variant_named("acestep-v15-turbo"), variant_named("acestep-v15-base")


def request(**fields: Any) -> MusicRequest:
    return MusicRequest(model="any", seeds=(0,), **fields)


def test_turbo_takes_its_table_of_eight_without_being_asked() -> None:
    settings, remarks = resolve(request(), TURBO)

    assert settings.timesteps == schedule(8, 3.0)
    assert settings.guidance is None
    assert remarks == ()


def test_turbo_moves_a_shift_to_one_it_knows_and_says_so() -> None:
    settings, remarks = resolve(request(shift=2.6), TURBO)

    assert settings.timesteps == schedule(8, 3.0)
    assert remarks == ("shift: 3 applied instead of 2.6, the nearest this turbo model knows",)


def test_turbo_takes_another_number_of_steps_at_the_shift_asked_for() -> None:
    settings, remarks = resolve(request(inference_steps=5, shift=2.5), TURBO)

    assert settings.timesteps == schedule(5, 2.5)
    assert remarks == ()


def test_turbo_says_that_it_is_not_guided() -> None:
    settings, remarks = resolve(request(guidance_scale=7.0, use_adg=True, cfg_interval_end=0.5), TURBO)

    assert settings.guidance is None
    assert [remark.split(":")[0] for remark in remarks] == [
        "guidance_scale",
        "use_adg",
        "cfg_interval_start, cfg_interval_end",
    ]


def test_turbo_moves_timesteps_to_those_it_knows_and_says_so() -> None:
    settings, remarks = resolve(request(timesteps=(1.0, 0.6, 0.1, 0.0), shift=2.0), TURBO)

    assert settings.timesteps == pytest.approx((1.0, 0.625, 0.125, 0.0))
    assert remarks == (
        "shift: not applied, timesteps were given",
        "timesteps: moved to the nearest of the 20 this turbo model knows",
    )


def test_base_is_guided_by_its_default_and_takes_timesteps_as_they_are() -> None:
    settings, remarks = resolve(request(timesteps=(1.0, 0.6, 0.1, 0.0, 0.0)), BASE)

    assert settings.timesteps == pytest.approx((1.0, 0.6, 0.1, 0.0))
    assert settings.guidance is not None
    assert settings.guidance.scale == 7.0
    assert remarks == ()


def test_a_guidance_scale_of_one_or_less_means_no_second_row() -> None:
    assert resolve(request(guidance_scale=1.0), BASE)[0].rows == 1
    assert resolve(request(guidance_scale=7.0), BASE)[0].rows == 2
    settings, remarks = resolve(request(guidance_scale=0.5, use_adg=True), BASE)
    assert settings.guidance is None
    assert len(remarks) == 2


def test_base_goes_back_up_to_even_levels_and_turbo_along_its_schedule() -> None:
    timesteps = schedule(4, 3.0)

    assert noise_levels(timesteps, is_turbo=False) == (0.75, 0.5, 0.25, 0.0)
    assert noise_levels(timesteps, is_turbo=True) == timesteps[1:]


def test_heun_calls_twice_a_step_but_for_turbos_last() -> None:
    timesteps = schedule(8, 1.0)

    assert Sampling(timesteps).calls == 8
    assert Sampling(timesteps, Method.HEUN).calls == 16
    assert Sampling(timesteps, Method.HEUN, ends_in_one_call=True).calls == 15


def test_a_repaint_window_without_repainting_is_remarked_on() -> None:
    _, remarks = resolve(request(repainting_end=5.0), TURBO)

    assert remarks == ("repainting_start, repainting_end: not applied to task_type text2music",)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"inference_steps": 21}, "takes 1 to 20"),
        ({"timesteps": (0.0, 0.0)}, "0 are above 0"),
        ({"timesteps": (0.5, 0.9, 0.1)}, "rise"),
        ({"timesteps": (1.0,) * 21}, "21 are above 0"),
        ({"task_type": "repaint", "src_audio": "a"}, "repaint"),
        ({"reference_audio": "a"}, "reference audio"),
        ({"src_audio": "a"}, "audio"),
    ],
)
def test_what_turbo_cannot_do_is_refused_before_it_is_accepted(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check_request(request(**fields), TURBO)
