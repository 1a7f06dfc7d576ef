from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.lm.sampling import Order, Sampling, draw, penalise, pick, probabilities
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

    chances = probabilities(columns.cut(golden_logits(case, vocabulary.size)), sampling)

    kept = columns.ids[chances > 0].tolist()
    assert abs(len(kept) - golden["n"]) <= 1
    if len(kept) == golden["n"]:
        assert hashlib.sha256(",".join(map(str, kept)).encode()).hexdigest() == golden["sha256"]
    by_id = dict(zip(columns.ids.tolist(), chances.tolist(), strict=True))
    assert [by_id.get(index, 0.0) for index, _ in golden["top"]] == pytest.approx(
        [p for _, p in golden["top"]], abs=1e-5
    )


def test_draws_follow_the_chances() -> None:
    chances = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25])
    draws = [int(draw(chances, (i + 0.5) / 1000)) for i in range(1000)]
    assert [draws.count(i) for i in range(5)] == [0, 250, 500, 0, 250]


def test_a_temperature_of_zero_takes_the_likeliest() -> None:
    assert int(pick(torch.tensor([0.0, 3.0, 2.0]), Sampling(temperature=0.0), 0.999)) == 1


def test_a_penalty_makes_each_seen_token_less_likely_once() -> None:
    logits = torch.tensor([2.0, -2.0, 2.0])
    assert penalise(logits, [0, 0, 1], 2.0).tolist() == [1.0, -4.0, 2.0]
