from __future__ import annotations

from typing import Any

import pytest

from models.checkpoints import GUIDANCE_FIELDS, check_request, variant_named
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


def test_the_fields_of_guidance_are_those_turbo_says_it_cannot_apply() -> None:
    asked = request(guidance_scale=7.0, use_adg=True, cfg_interval_start=0.1, cfg_interval_end=0.5)
    _, remarks = resolve(asked, TURBO)
    assert ", ".join(remark.partition(":")[0] for remark in remarks) == ", ".join(GUIDANCE_FIELDS)


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


def edit(task: str, **fields: Any) -> MusicRequest:
    return request(task_type=task, src_audio="a", **fields)


def test_the_source_is_put_back_after_the_first_steps_of_a_repaint() -> None:
    asked = edit("repaint", repainting_end=5.0)
    assert resolve(asked, TURBO, has_source=True)[0].injected_steps == 4
    settings, remarks = resolve(edit("repaint", repaint_mode="conservative"), TURBO, has_source=True)
    assert (settings.injected_steps, settings.crossfade_frames) == (7, 25)  # turbo's last step is followed by none
    assert resolve(edit("lego", repaint_mode="conservative"), BASE, has_source=True)[0].injected_steps == 50
    assert resolve(edit("cover", repaint_mode="conservative"), TURBO, has_source=True)[0].injected_steps == 0
    assert remarks == ()


def test_a_song_that_begins_at_its_source_takes_only_the_last_steps() -> None:
    settings, _ = resolve(edit("cover", cover_noise_strength=0.35, audio_cover_strength=0.5), TURBO, has_source=True)

    assert settings.begins_at_source
    assert settings.timesteps == schedule(8, 3.0)[5:]
    assert settings.switch_step == 1  # half of the three that are left


def test_the_whole_source_leaves_one_step_to_be_made() -> None:
    settings, _ = resolve(edit("cover", cover_noise_strength=1.0), TURBO, has_source=True)
    assert settings.timesteps == schedule(8, 3.0)[-2:]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"repainting_start": 1.0, "repainting_end": 5.0}, ["repainting_start", "repainting_end"]),
        ({"repaint_mode": "aggressive", "repaint_strength": 0.1}, ["repaint_mode", "repaint_strength"]),
        ({"track_name": "drums", "track_classes": ("bass",)}, ["track_name", "track_classes"]),
        ({"src_audio": "a"}, ["src_audio"]),
        ({"cover_noise_strength": 0.5}, ["cover_noise_strength"]),
    ],
)
def test_what_another_task_would_take_is_remarked_on(fields: dict[str, Any], named: list[str]) -> None:
    _, remarks = resolve(request(**fields), TURBO)

    assert [remark.split(":")[0] for remark in remarks] == named


def test_a_task_takes_what_is_its_own_without_remark() -> None:
    for asked in (
        edit("repaint", repainting_end=5.0, repaint_mode="aggressive"),
        edit("lego", repainting_start=1.0, track_name="drums", cover_noise_strength=0.1),
        edit("extract", track_name="vocals"),
        edit("complete", track_classes=("drums", "bass")),
    ):
        assert resolve(asked, BASE, has_source=True)[1] == ()


def test_plans_of_a_length_or_by_the_lm_are_remarked_on_where_there_is_a_source() -> None:
    _, remarks = resolve(edit("cover", audio_duration=30.0, thinking=True), TURBO, has_source=True)

    assert [remark.split(":")[0] for remark in remarks] == ["thinking", "audio_duration"]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"inference_steps": 21}, "takes 1 to 20"),
        ({"timesteps": (0.0, 0.0)}, "0 are above 0"),
        ({"timesteps": (0.5, 0.9, 0.1)}, "rise"),
        ({"timesteps": (1.0,) * 21}, "21 are above 0"),
    ],
)
def test_what_turbo_cannot_do_is_refused_before_it_is_accepted(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check_request(request(**fields), TURBO)
