from typing import Any

import pytest

from models.editing import WHOLE, Keeping, Span, Splice, Window, keeping_of, splice_of, window_of
from models.errors import InvalidAudio, InvalidRequest, TooLong
from models.music import MusicRequest


def request(**fields: Any) -> MusicRequest:
    return MusicRequest.model_validate({"model": "any", "seeds": (0,), "src_audio": "a", **fields})


@pytest.mark.parametrize(
    ("window", "span", "frames"),
    [
        (WHOLE, Span(0, 0, 0, 96_000), (0, 50)),
        (Window(0.5, 1.0), Span(0, 0, 24_000, 48_000), (12, 25)),
        (Window(0.5), Span(0, 0, 24_000, 96_000), (12, 50)),
        (Window(-1.0, 1.0), Span(48_000, 0, 0, 96_000), (0, 50)),
        (Window(-1.0), Span(48_000, 0, 0, 144_000), (0, 75)),
        (Window(1.5, 3.0), Span(0, 48_000, 72_000, 144_000), (37, 75)),
        (Window(-1.0, 3.0), Span(48_000, 48_000, 0, 192_000), (0, 100)),
        (Window(2.5, 3.0), Span(0, 48_000, 120_000, 144_000), (62, 75)),
        (Window(0.5, 0.501), Span(0, 0, 24_000, 24_048), (12, 13)),
    ],
)
def test_a_window_is_laid_on_a_source_that_grows_to_hold_it(
    window: Window, span: Span, frames: tuple[int, int]
) -> None:
    assert window.on(96_000) == span
    assert span.frames((span.before + 96_000 + span.after) // 1920) == frames


def test_a_window_that_begins_where_the_source_ends_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="source ends at 2 s"):
        Window(2.0).on(96_000)


@pytest.mark.parametrize("window", [Window(0.5, 600.1), Window(-599.0)])
def test_a_source_that_would_grow_beyond_the_longest_song_is_refused(window: Window) -> None:
    with pytest.raises(TooLong, match=r"60\d.* s of source audio; a song is at most 600 s"):
        window.on(96_000)


def test_a_source_shorter_than_a_frame_is_refused() -> None:
    assert WHOLE.on(1920) == Span(0, 0, 0, 1920)
    with pytest.raises(InvalidAudio, match="1919 samples of audio"):
        WHOLE.on(1919)


@pytest.mark.parametrize(
    ("fields", "keeping"),
    [
        ({}, Keeping(0.5, 12, 0.025)),
        ({"repaint_strength": 0.0}, Keeping(1.0, 25, 0.05)),
        ({"repaint_strength": 1.0}, Keeping(0.0, 0, 0.0)),
        ({"repaint_mode": "conservative"}, Keeping(1.0, 25, 0.05)),
        ({"repaint_mode": "aggressive"}, Keeping(0.0, 0, None)),
    ],
)
def test_a_mode_says_how_strictly_the_source_is_kept(fields: dict[str, Any], keeping: Keeping) -> None:
    assert keeping_of(request(task_type="repaint", **fields)) == keeping


def test_only_repaint_and_lego_have_a_window() -> None:
    given = {"repainting_start": 1.0, "repainting_end": 2.0}
    assert window_of(request(task_type="repaint", **given)) == Window(1.0, 2.0)
    assert window_of(request(task_type="lego", **given)) == Window(1.0, 2.0)
    assert window_of(request(task_type="cover", **given)) == WHOLE


def test_the_sources_own_sound_is_put_back_where_there_is_a_window_and_the_mode_keeps_it() -> None:
    assert splice_of(request(task_type="repaint", repainting_end=2.0)) == Splice("a", Window(0.0, 2.0), 0.025)
    assert splice_of(request(task_type="repaint")) is None
    assert splice_of(request(task_type="repaint", repainting_end=2.0, repaint_mode="aggressive")) is None
    assert splice_of(request(task_type="cover", repainting_end=2.0)) is None
