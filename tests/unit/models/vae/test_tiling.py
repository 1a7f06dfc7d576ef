import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.vae.tiling import OVERLAP, tiles

REACH = 9  # latent frames to either side that a sample depends on


@given(st.integers(1, 20_000), st.integers(2 * OVERLAP + 1, 1024))
def test_every_frame_is_kept_once_with_all_it_depends_on_decoded_beside_it(frames: int, window: int) -> None:
    kept = 0
    for tile in tiles(frames, window):
        assert tile.keep_first == kept
        kept = tile.keep_last
        assert tile.first <= max(0, tile.keep_first - REACH)
        assert tile.last >= min(frames, tile.keep_last + REACH)
        assert tile.last - tile.first <= window
    assert kept == frames


def test_little_is_decoded_twice() -> None:
    frames = 240 * 25
    decoded = sum(tile.last - tile.first for tile in tiles(frames))
    assert decoded / frames <= 1.05


def test_a_window_without_a_middle_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing"):
        list(tiles(100, 2 * OVERLAP))
