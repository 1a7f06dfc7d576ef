import pytest
import torch

from models.editing import Span
from models.music import SAMPLE_RATE
from models.vae.samples import excerpts, lengthened, spliced


def counted(seconds: float) -> torch.Tensor:
    """Each sample is its own number."""
    return torch.arange(round(seconds * SAMPLE_RATE)).double().expand(2, -1)


@pytest.mark.parametrize("seed", range(5))
def test_a_reference_is_ten_seconds_of_each_third(seed: int) -> None:
    heard = excerpts(counted(90), torch.Generator().manual_seed(seed))
    assert heard.shape == (2, 30 * SAMPLE_RATE)
    for number, piece in enumerate(heard[0].reshape(3, -1)):
        assert torch.equal(piece.diff(), torch.ones(10 * SAMPLE_RATE - 1, dtype=torch.float64))
        assert number * 30 * SAMPLE_RATE <= piece[0]
        assert piece[-1] < (number + 1) * 30 * SAMPLE_RATE


def test_where_the_pieces_begin_is_left_to_chance() -> None:
    starts = {float(excerpts(counted(90), torch.Generator().manual_seed(seed))[0, 0]) for seed in range(5)}
    assert len(starts) == 5


@pytest.mark.parametrize("seconds", [0.5, 29.999, 30.0])
def test_a_short_reference_is_repeated_until_it_is_long_enough(seconds: float) -> None:
    heard = excerpts(counted(seconds), torch.Generator().manual_seed(0))
    assert heard.shape == (2, 30 * SAMPLE_RATE)
    assert float(heard.max()) < seconds * SAMPLE_RATE


def test_a_source_is_lengthened_by_silence() -> None:
    long = lengthened(torch.ones(2, 5), Span(before=2, after=3, first=0, last=4))
    assert long[0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0]


def test_the_ramps_of_a_splice_lie_outside_the_window() -> None:
    made, source = torch.ones(2, 10), torch.zeros(2, 12)
    seen = spliced(made, source, Span(0, 0, first=4, last=7), crossfade=1)
    assert seen[0].tolist() == [0, 0, 0, 0.5, 1, 1, 1, 0.5, 0, 0]
    assert spliced(made, source, Span(0, 0, first=1, last=9), crossfade=5)[0].tolist() == [0.5, *[1] * 8, 0.5]
    assert spliced(made, source, Span(0, 0, first=0, last=10), crossfade=5).min() == 1
    assert spliced(made, source, Span(0, 0, first=4, last=7), crossfade=0).sum() == 6


def test_what_was_made_too_loud_is_made_as_loud_as_its_source_may_be() -> None:
    seen = spliced(torch.full((2, 4), 4.0), torch.full((2, 4), 0.5), Span(0, 0, first=2, last=4), crossfade=0)
    assert seen[0].tolist() == [0.5, 0.5, 1, 1]
