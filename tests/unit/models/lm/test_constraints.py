from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.lm.constraints import Constraint, Rules, Then
from models.lm.parse import metadata_of
from models.lm.sampling import draw
from models.lm.vocabulary import Columns, Vocabulary, read_genres

GOLDEN = Path(__file__).parents[3] / "golden" / "lm"
TRACES = json.loads((GOLDEN / "fsm_traces.json").read_text(encoding="utf-8"))
TABLES = json.loads((GOLDEN / "fsm_tables.json").read_text(encoding="utf-8"))
NUMBER_OF_THE_DRAW = 4_294_967_295


def _hashes(seed: int, step: int, indices: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The golden set's logits are a function of seed, step and id (its README)."""
    with np.errstate(over="ignore"):
        x = (
            np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
            + np.uint64(step) * np.uint64(0xBF58476D1CE4E5B9)
            + indices.astype(np.uint64) * np.uint64(0x94D049BB133111EB)
            + np.uint64(0x2545F4914F6CDD1D)
        )
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)))


def logits_of(seed: int, step: int, size: int) -> torch.Tensor:
    values = (_hashes(seed, step, np.arange(size)) >> np.uint64(40)).astype(np.float64) / 2**20 - 8
    return torch.from_numpy(values.astype(np.float32))


def uniform_of(seed: int, step: int) -> float:
    return float((_hashes(seed, step, np.array([NUMBER_OF_THE_DRAW])) >> np.uint64(11))[0]) / 2**53


class PlainRow:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def cut(self, columns: Columns) -> torch.Tensor:
        return columns.cut(self.logits)


def rules_of(case: dict[str, Any], vocabulary: Vocabulary) -> Rules:
    config = case["config"]
    phase, target = config["phase"], config["target_duration"]
    codes = int(target * 5) if target and target > 0 else None
    is_begun = phase == "codes" and vocabulary.has_reasoning(vocabulary.encode(case["prompt"]))
    after = Then.LYRICS if phase == "understand" else Then.CODES
    return Rules(
        is_constrained=config["enabled"],
        begins_with_codes=is_begun,
        then=Then.NOTHING if config["stop_at_reasoning"] else after,
        skipped=frozenset(name for name in ("genres", "caption", "language") if config[f"skip_{name}"]),
        given={name: str(value) for name, value in (config["user_metadata"] or {}).items() if value is not None},
        longest_seconds=config["max_duration"],
        forced_seconds=None if target is None else int(target),
        fewest_codes=codes or 0,
        most_codes=codes,
    )


class Run:
    """One golden case run with our machine: what was allowed and what was chosen, step by step."""

    def __init__(self, case: dict[str, Any], vocabulary: Vocabulary, steps: int) -> None:
        constraint = Constraint(vocabulary, rules_of(case, vocabulary))
        boosts = {(step, index): delta for step, index, delta in case["boosts"]}
        self.allowed: list[list[int]] = []
        self.chosen: list[int] = []
        for step in range(steps):
            logits = logits_of(case["seed"], step, vocabulary.size)
            for (at, index), delta in boosts.items():
                if at == step:
                    logits[index] += delta
            columns = constraint.allow(PlainRow(logits))
            values = columns.cut(logits).double()
            if case["rule"]["kind"] == "greedy":
                choice = values.argmax()
            else:
                weights = ((values - values.max()) / case["rule"]["temperature"]).exp()
                choice = draw(weights[None], [uniform_of(case["seed"], step)])[0]
            token = int(columns.ids[choice])
            self.allowed.append(columns.ids.tolist())
            self.chosen.append(token)
            constraint.advance(token)
            if token == vocabulary.eos:
                break


def digest(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode("ascii")).hexdigest()


@pytest.fixture(scope="module")
def lenient(tokenizer: Any) -> Vocabulary:
    """As the reference: codes above the limit are let through everywhere but in the code phase."""
    vocabulary = Vocabulary(tokenizer, read_genres(GOLDEN / "genres_vocab.txt"))
    above = vocabulary.codes_above_limit
    for name in ("open", "prose", "caption"):
        setattr(vocabulary, name, vocabulary.columns([*getattr(vocabulary, name).ids.tolist(), *above]))
    return vocabulary


def is_golden_set(allowed: list[int], number: int) -> bool:
    golden = TRACES["sets"][number]
    return bool(digest(allowed) == golden["sha256"])


ENDING = [case for case in TRACES["cases"] if "trap" not in case]
TRAPS = [case for case in TRACES["cases"] if "trap" in case]


def test_the_golden_logits_are_computed_as_their_readme_says() -> None:
    assert float(logits_of(5, 7, 4)[0]) == -1.9830865859985352
    assert float(logits_of(5, 7, 4)[3]) == -7.841404914855957
    assert uniform_of(5, 7) == 0.979642649792701


@pytest.mark.parametrize("case", ENDING, ids=lambda case: case["id"])
def test_the_machine_walks_as_the_reference_token_by_token(case: dict[str, Any], lenient: Vocabulary) -> None:
    run = Run(case, lenient, len(case["steps"]))

    for step, (_, number, chosen, _) in enumerate(case["steps"]):
        assert is_golden_set(run.allowed[step], number), f"step {step}"
        assert run.chosen[step] == chosen, f"step {step}"
    assert len(run.chosen) == len(case["steps"])
    assert lenient.decode(run.chosen) == case["text"]


@pytest.mark.parametrize("case", ENDING, ids=lambda case: case["id"])
def test_no_code_above_the_limit_is_ever_written(case: dict[str, Any], vocabulary: Vocabulary) -> None:
    run = Run(case, vocabulary, len(case["steps"]))

    is_free = not case["config"]["enabled"]
    assert is_free or not set(run.chosen) & set(vocabulary.codes_above_limit)


# the first step at which ours leaves the reference's endless walk
LEAVES_AT = {
    "cot-trap-genres-when-skipped": 21,
    "cot-trap-no-colon": 31,
    "cot-trap-language-when-skipped": 21,
    "cot-genres-trap-space-loop": 22,
}


@pytest.mark.parametrize("case", TRAPS, ids=lambda case: case["id"])
def test_a_trap_is_walked_as_the_reference_and_then_left(case: dict[str, Any], lenient: Vocabulary) -> None:
    run = Run(case, lenient, 200)

    same = next(i for i, (_, _, chosen, _) in enumerate(case["steps"]) if run.chosen[i] != chosen)
    assert same == LEAVES_AT[case["id"]]
    assert run.chosen[-1] == lenient.eos
    written = metadata_of(lenient.decode(run.chosen))
    assert set(case["parsed"]["metadata"]) <= set(written)


def test_every_value_tree_is_the_references(vocabulary: Vocabulary) -> None:
    trees = dict(vocabulary.trees) | {
        name: vocabulary.duration_tree(int(name.split("_")[-1])) if "_" in name else vocabulary.duration_tree(600)
        for name in TABLES["value_trees"]
        if name.startswith("duration")
    }
    for name, rows in TABLES["value_trees"].items():
        golden = {tuple(prefix): frozenset(ids) for prefix, ids in rows}
        assert trees[name] == golden, name


def test_a_machine_that_is_switched_off_allows_every_token(vocabulary: Vocabulary) -> None:
    constraint = Constraint(vocabulary, Rules(is_constrained=False))
    row = PlainRow(torch.zeros(vocabulary.size))

    for token in (vocabulary.eos, vocabulary.codes_above_limit[0], vocabulary.backtick):
        assert len(constraint.allow(row)) == vocabulary.size
        constraint.advance(token)


def test_the_end_is_closed_until_the_fewest_codes_and_forced_after_the_most(vocabulary: Vocabulary) -> None:
    constraint = Constraint(vocabulary, Rules(begins_with_codes=True, fewest_codes=2, most_codes=4))
    row = PlainRow(torch.zeros(vocabulary.size))

    ends = []
    for _ in range(5):
        allowed = constraint.allow(row)
        ends.append((vocabulary.eos in allowed.ids.tolist(), len(allowed) > 1))
        constraint.advance(None)

    assert ends == [(False, True), (False, True), (True, True), (True, True), (True, False)]
