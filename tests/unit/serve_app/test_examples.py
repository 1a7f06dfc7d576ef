"""The examples that come with the server can be sent back to it as they are."""

from __future__ import annotations

import re

import pytest

from models.music import MusicRequest
from serve_app.examples import Examples, FullExample, SimpleExample

MARK = re.compile(r"^\[[^\]\n]+\]$", re.MULTILINE)


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Examples.load()


def request_of(example: FullExample) -> MusicRequest:
    return MusicRequest(
        model="acestep-v15-turbo",
        seeds=(1,),
        prompt=example.caption,
        lyrics=example.lyrics,
        bpm=example.bpm,
        key_scale=example.keyscale,
        time_signature=example.timesignature,
        audio_duration=example.duration,
        vocal_language=example.vocal_language,
    )


def test_every_written_out_example_is_a_request_within_the_ranges(examples: Examples) -> None:
    made = [request_of(example) for example in examples.full]
    assert [(one.key_scale, one.audio_duration) for one in made] == [
        (one.keyscale, one.duration) for one in examples.full
    ]


def test_there_are_a_few_dozen_in_many_languages(examples: Examples) -> None:
    for kind in (examples.simple, examples.full):
        assert len(kind) >= 24
        assert len({one.vocal_language for one in kind} - {"unknown"}) >= 8


def test_no_example_is_there_twice(examples: Examples) -> None:
    assert len({one.description for one in examples.simple}) == len(examples.simple)
    assert len({(one.caption, one.lyrics) for one in examples.full}) == len(examples.full)


def test_sung_lyrics_are_marked_by_section_and_only_music_without_a_voice_has_no_language(examples: Examples) -> None:
    for one in examples.full:
        is_sung = not request_of(one).is_instrumental
        assert (one.vocal_language != "unknown") == is_sung
        assert len(MARK.findall(one.lyrics)) >= (2 if is_sung else 1)
    assert all((one.vocal_language == "unknown") == one.instrumental for one in examples.simple)


@pytest.mark.parametrize(("is_simple", "kind"), [(True, SimpleExample), (False, FullExample)])
def test_an_example_of_either_kind_is_drawn(examples: Examples, is_simple: bool, kind: type) -> None:
    drawn = [examples.draw(is_simple) for _ in range(40)]
    assert {type(one) for one in drawn} == {kind}
    assert len({one.model_dump_json() for one in drawn}) > 1
