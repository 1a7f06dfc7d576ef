from __future__ import annotations

import hashlib
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch

from models.lm import sampling as sampling_module
from models.lm.sampling import Order, Sampling, draw, draw_in_nucleus, penalise_, pick_, probabilities
from models.lm.vocabulary import Vocabulary

GOLDEN = Path(__file__).parents[3] / "golden" / "lm"
CASES = json.loads((GOLDEN / "sampling.json").read_text(encoding="utf-8"))["cases"]


def golden_logits(case: dict[str, Any], size: int) -> torch.Tensor:
    with np.errstate(over="ignore"):
        x = (
            np.uint64(case["seed"]) * np.uint64(0x9E3779B97F4A7C15)
            + np.uint64(case["step"]) * np.uint64(0xBF58476D1CE4E5B9)
            + np.arange(size, dtype=np.uint64) * np.uint64(0x94D049BB133111EB)
            + np.uint64(0x2545F4914F6CDD1D)
        )
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    values = ((x >> np.uint64(40)).astype(np.float64) / 2**20 - 8).astype(np.float32)
    return torch.from_numpy(values) * float(case["logit_scale"])


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_same_tokens_survive_with_the_same_chances(
    case: dict[str, Any], order: Order, vocabulary: Vocabulary
) -> None:
    golden = case["nano_vllm_order" if order is Order.TEMPERED else "pt_order"]
    columns = vocabulary.codes if case["allowed"] == "valid codes" else vocabulary.everything
    sampling = Sampling(
        temperature=case["temperature"], top_k=case["top_k"] or 0, top_p=case["top_p"] or 1.0, order=order
    )

    chances = probabilities(columns.cut(golden_logits(case, vocabulary.size))[None], sampling)[0]

    kept = columns.ids[chances > 0].tolist()
    assert abs(len(kept) - golden["n"]) <= 1
    if len(kept) == golden["n"]:
        assert hashlib.sha256(",".join(map(str, kept)).encode()).hexdigest() == golden["sha256"]
    by_id = dict(zip(columns.ids.tolist(), chances.tolist(), strict=True))
    assert [by_id.get(index, 0.0) for index, _ in golden["top"]] == pytest.approx(
        [p for _, p in golden["top"]], abs=1e-5
    )


def test_draws_follow_the_chances() -> None:
    chances = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25]).expand(1000, 5)
    draws = draw(chances, [(i + 0.5) / 1000 for i in range(1000)]).tolist()
    assert [draws.count(i) for i in range(5)] == [0, 250, 500, 0, 250]


def test_no_draw_falls_on_an_entry_without_weight() -> None:
    chances = torch.zeros(1000)
    chances[[3, 300, 301, 700]] = torch.tensor([1e-9, 1.0, 1e-9, 3.0])
    edges = [0.0, 1e-12, 0.25, 0.25 + 1e-12, float(np.nextafter(1.0, 0.0))]
    assert set(draw(chances.expand(5, 1000), edges).tolist()) <= {3, 300, 301, 700}


def test_tries_made_at_once_find_what_tries_made_in_turn_find() -> None:
    chances = torch.softmax(torch.randn(200, 3000, generator=torch.Generator().manual_seed(1)) * 3, -1)
    random = Random(3)
    uniforms = [[random.random() for _ in range(12)] for _ in chances]

    in_turn = draw_in_nucleus(chances, 0.3, uniforms, at_once=False)

    assert draw_in_nucleus(chances, 0.3, uniforms, at_once=True).tolist() == in_turn.tolist()


@pytest.mark.parametrize("top_k", [0, 40])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9])
def test_rejected_draws_follow_the_sorted_nucleus(top_k: int, top_p: float) -> None:
    logits = torch.randn(1, 600, generator=torch.Generator().manual_seed(2)) * 2
    sampling = Sampling(temperature=0.85, top_k=top_k, top_p=top_p)
    random = Random(5)

    drawn = pick_(logits.repeat(1500, 1), sampling, [random] * 1500)

    counts, chances = np.bincount(drawn.numpy(), minlength=600), probabilities(logits, sampling)[0].numpy()
    assert counts[chances == 0].sum() == 0
    # each count lies within five deviations of a binomial one
    deviations = np.sqrt(1500 * chances * (1 - chances)) + 1e-3
    assert (np.abs(counts - 1500 * chances) <= 5 * deviations + 1).all()


@pytest.mark.parametrize("at_once", [False, True])
def test_a_nucleus_that_every_try_misses_gives_the_likeliest(at_once: bool) -> None:
    assert draw_in_nucleus(torch.tensor([[1.0, 1.5, 1.0]]), 0.1, [[0.1, 0.9]], at_once).tolist() == [1]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.0), Sampling(top_p=1.0), Sampling(top_k=9)])
def test_a_row_is_drawn_as_if_it_were_alone(sampling: Sampling) -> None:
    logits = torch.randn(7, 700, generator=torch.Generator().manual_seed(4)) * 3

    together = pick_(logits.clone(), sampling, [Random(seed) for seed in range(7)]).tolist()

    assert together == [int(pick_(logits[seed : seed + 1].clone(), sampling, [Random(seed)])) for seed in range(7)]


def test_a_temperature_of_zero_takes_the_likeliest() -> None:
    assert pick_(torch.tensor([[0.0, 3.0, 2.0]]), Sampling(temperature=0.0), [Random(0)]).tolist() == [1]


def test_a_penalty_makes_each_seen_token_less_likely_once() -> None:
    logits = torch.tensor([2.0, -2.0, 2.0])
    assert penalise_(logits, torch.tensor([0, 0, 1]), 2.0).tolist() == [1.0, -4.0, 2.0]


@pytest.mark.parametrize("order", list(Order))
@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-40},
        {"temperature": 1e-320},
        {"temperature": 1e-6},
        {"temperature": 5.0, "top_p": 1.0},
        {"top_p": 1e-6},
        {"top_p": 0.999_999_999},
        {"top_k": 1_000_000},
        {"top_k": 1, "top_p": 0.5},
    ],
    ids=str,
)
def test_the_most_extreme_settings_draw_what_they_should(extreme: dict[str, float], order: Order) -> None:
    logits = torch.randn(1, 900, generator=torch.Generator().manual_seed(6)) * 4
    sampling = Sampling(order=order, **extreme)  # type: ignore[arg-type]

    drawn = int(pick_(logits.clone(), sampling, [Random(1)]))

    if (
        ("top_k" in extreme and extreme["top_k"] == 1)
        or extreme.get("temperature", 1) < 1e-3
        or extreme.get("top_p") == 1e-6
    ):
        assert drawn == int(logits.argmax())
    assert 0 <= drawn < 900


def test_many_rows_at_once_are_taken_in_parts_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    chances = torch.softmax(torch.randn(9, 500, generator=torch.Generator().manual_seed(1)) * 3, -1)
    uniforms = [[Random(row).random() for _ in range(12)] for row in range(9)]
    whole = draw_in_nucleus(chances, 0.6, uniforms, at_once=True).tolist()

    monkeypatch.setattr(sampling_module, "MOST_AT_ONCE", 2 * 12 * 500)

    assert draw_in_nucleus(chances, 0.6, uniforms, at_once=True).tolist() == whole
