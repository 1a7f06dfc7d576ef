from __future__ import annotations

from typing import Any

import pytest

from models.dit.prompts import instruction_of, lyric_prompt, text_prompt
from models.music import Metas, MusicRequest, SongPlan


def instruction(codes: tuple[int, ...] = (), **fields: Any) -> str:
    plan = SongPlan(caption="", lyrics="", language="en", metas=Metas(), codes=codes)
    return instruction_of(MusicRequest(model="any", seeds=(0,), **fields), plan)


def test_a_prompt_holds_instruction_caption_and_metadata_to_the_letter() -> None:
    metas = Metas(bpm=120, key_scale="C major", time_signature="4", duration=30.7)

    assert text_prompt("Do this", "a song", metas) == (
        "# Instruction\nDo this:\n\n# Caption\na song\n\n# Metas\n"
        "- bpm: 120\n- timesignature: 4\n- keyscale: C major\n- duration: 30 seconds\n<|endoftext|>\n"
    )


def test_what_is_not_known_is_not_available() -> None:
    assert "- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: N/A\n" in text_prompt("x:", "", Metas())


def test_lyrics_come_with_their_language() -> None:
    assert lyric_prompt("de", "La la") == "# Languages\nde\n\n# Lyric\nLa la<|endoftext|>"


def test_no_lyrics_are_an_instrumental() -> None:
    assert (
        lyric_prompt("en", " [inst] ")
        == lyric_prompt("en", "")
        == ("# Languages\nen\n\n# Lyric\n[Instrumental]<|endoftext|>")
    )


def test_a_song_with_audio_codes_is_a_cover_of_them() -> None:
    assert instruction() == "Fill the audio semantic mask based on the given conditions:"
    assert instruction(codes=(1, 2)) == "Generate audio semantic tokens based on the given conditions:"


def test_a_given_instruction_is_taken_and_a_blank_one_is_not() -> None:
    assert instruction(instruction="Play it") == "Play it"
    assert instruction(instruction="  ") == instruction()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"task_type": "cover"}, "Generate audio semantic tokens based on the given conditions:"),
        ({"task_type": "repaint"}, "Repaint the mask area based on the given conditions:"),
        ({"task_type": "lego", "track_name": "drums"}, "Generate the DRUMS track based on the audio context:"),
        ({"task_type": "lego"}, "Generate the track based on the audio context:"),
        ({"task_type": "extract", "track_name": "vocals"}, "Extract the VOCALS track from the audio:"),
        ({"task_type": "extract"}, "Extract the track from the audio:"),
        ({"task_type": "complete", "track_classes": ("drums", "bass")}, "Complete the input track with DRUMS | BASS:"),
        ({"task_type": "complete"}, "Complete the input track:"),
    ],
)
def test_an_instruction_is_made_from_the_task_and_its_tracks(fields: dict[str, Any], said: str) -> None:
    assert instruction(**fields) == said
