"""What a run at full length shows, at a length for every day."""

from __future__ import annotations

from pathlib import Path

from benchmarks import vae


def test_a_song_of_four_minutes_is_decoded_little_more_than_once() -> None:
    assert 1.0 < vae.redundancy(240) <= 1.05


def test_the_engine_decodes_as_diffusers_own_class_does(tiny: Path) -> None:
    assert vae.furthest(tiny / "vae", 2.0) <= 1e-5
