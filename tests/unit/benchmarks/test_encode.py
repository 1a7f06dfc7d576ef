"""The benchmark encodes what it says it does; how long that takes is no matter of a test."""

from __future__ import annotations

import numpy as np

from benchmarks import encode
from models.music import AudioFormat


def test_every_format_and_its_peer_have_a_figure() -> None:
    found = encode.cpu_s_per_minute(seconds=1.0, rounds=1)

    assert {name.split()[0] for name in found} == {"libsndfile's", *AudioFormat}
    assert all(own > 0 for own in found.values())


def test_the_music_is_as_long_as_asked_and_of_full_level_in_two_ears() -> None:
    pcm = encode.music(2.0)

    assert pcm.shape == (96_000, 2)
    assert 28_000 < np.abs(pcm).max() <= 32_767
    assert not np.array_equal(pcm[:, 0], pcm[:, 1])
