from pathlib import Path

import pytest

from models.checkpoints import LMS, VARIANTS, check_request, download, locate, variant_named
from models.errors import CheckpointError, InvalidRequest, UnknownModel
from models.music import MusicRequest, Task


def request(**fields: object) -> MusicRequest:
    return MusicRequest.model_validate({"model": "acestep-v15-turbo", "seeds": (1,), **fields})


def test_the_table_knows_nine_variants_and_three_lms() -> None:
    assert {name.removeprefix("acestep-v15-") for name in VARIANTS} == {
        *("turbo", "turbo-shift1", "turbo-shift3", "turbo-continuous", "base", "sft"),
        *("xl-turbo", "xl-base", "xl-sft"),
    }
    assert {name.removeprefix("acestep-5Hz-lm-") for name in LMS} == {"0.6B", "1.7B", "4B"}


def test_turbo_takes_eight_steps_unguided_and_the_others_fifty_guided() -> None:
    for variant in VARIANTS.values():
        dial = (variant.default_steps, variant.max_steps, variant.default_guidance)
        assert dial == ((8, 20, 1.0) if variant.is_turbo else (50, 200, 7.0))
    assert [name for name, variant in VARIANTS.items() if Task.EXTRACT in variant.tasks] == [
        "acestep-v15-base",
        "acestep-v15-xl-base",
    ]


def test_an_unknown_variant_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnknownModel, match=r"'acestep-v16'.*acestep-v15-turbo"):
        variant_named("acestep-v16")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"inference_steps": 21}, "takes 1 to 20"),
        ({"task_type": "extract", "src_audio": "a"}, "'extract' is not one of acestep-v15-turbo's: text2music"),
        ({"task_type": "cover"}, "'cover' works on source audio, and there is none"),
        ({"analysis": "codes"}, "analysis 'codes' is made of source audio, and there is none"),
        ({"analysis": "codes", "audio_codes": ((1,),)}, "is made of source audio"),
        ({"analysis": "song"}, "analysis 'song' is made of source audio"),
        ({"analysis": "plan", "seeds": (1, 2)}, r"'plan' of 2 songs .* allowed: of one"),
        ({"analysis": "song", "src_audio": "a", "task_type": "cover"}, "with task_type 'cover'; allowed: of one"),
        ({"task_type": "repaint", "src_audio": "a", "audio_codes": ((1,),)}, "text2music or cover, not for 'repaint'"),
    ],
)
def test_what_a_variant_cannot_do_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        check_request(request(**fields), variant_named("acestep-v15-turbo"))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("task", Task)
def test_base_takes_all_tasks_and_the_others_no_stems(name: str, task: Task) -> None:
    is_stem = task in (Task.LEGO, Task.EXTRACT, Task.COMPLETE)
    asked, variant = request(task_type=task, src_audio="a"), variant_named(name)
    if is_stem and not name.endswith("base"):
        with pytest.raises(InvalidRequest, match="is not one of"):
            check_request(asked, variant)
    else:
        check_request(asked, variant)


def test_audio_codes_are_source_enough_for_a_cover() -> None:
    check_request(request(task_type="cover", audio_codes=((1,),)), variant_named("acestep-v15-turbo"))


def test_what_a_variant_can_do_is_let_through() -> None:
    check_request(request(inference_steps=20), variant_named("acestep-v15-turbo"))
    check_request(request(inference_steps=200), variant_named("acestep-v15-base"))


def test_a_checkpoint_is_found_by_name_or_said_to_be_missing(tiny: Path, tmp_path: Path) -> None:
    assert locate("vae", tiny) == tiny / "vae"
    with pytest.raises(CheckpointError, match="no checkpoint vae in"):
        locate("vae", tmp_path)


def test_a_download_without_a_network_says_what_and_where_to(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"could not fetch acestep-v15-base from ACE-Step/acestep-v15-base into"):
        download("acestep-v15-base", tmp_path)
