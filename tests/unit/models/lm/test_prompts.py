from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.lm.prompts import Prompts, codes_text, cot_text

GOLDEN = Path(__file__).parents[3] / "golden" / "lm"
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))["cases"]
COT = json.loads((GOLDEN / "cot.json").read_text(encoding="utf-8"))["cases"]


def render(prompts: Prompts, mode: str, inputs: dict[str, Any]) -> str:
    modes: dict[str, tuple[Callable[..., str], tuple[str, ...]]] = {
        "phase1_cond": (prompts.metadata, ("caption", "lyrics")),
        "phase1_uncond": (prompts.metadata_unguided, ("lyrics", "negative_prompt")),
        "phase2_cond": (prompts.codes, ("caption", "lyrics", "cot_text")),
        "phase2_uncond": (prompts.codes_unguided, ("caption", "lyrics", "negative_prompt")),
        "understand_raw": (prompts.understand, ("audio_codes",)),
        "create_sample_raw": (prompts.create_sample, ("query", "instrumental")),
        "format_raw": (prompts.format, ("caption", "lyrics")),
    }
    verb, names = modes[mode]
    return verb(*(inputs[name] for name in names))


def test_every_prompt_is_the_references_prompt_to_the_letter(prompts: Prompts) -> None:
    wrong = [
        (case["id"], rendered)
        for case in PROMPTS
        if (rendered := render(prompts, case["mode"], case["inputs"])) != case["prompt"]
    ]
    assert wrong == []


def test_every_prompt_has_the_references_number_of_tokens(tokenizer: Any) -> None:
    wrong = [
        case["id"]
        for case in PROMPTS
        if len(tokenizer.encode(case["prompt"], add_special_tokens=False)) != case["n_tokens"]
    ]
    assert wrong == []


@pytest.mark.parametrize("case", [case for case in COT if "cot_text" in case], ids=lambda case: case["id"])
def test_the_metadata_block_is_written_as_the_reference_writes_it(case: dict[str, Any]) -> None:
    assert cot_text(case["metadata"]) == case["cot_text"]


def test_a_number_for_a_time_signature_is_written_where_the_reference_crashes() -> None:
    assert cot_text({"timesignature": 4}) == "<think>\ntimesignature: 4\n</think>"


def test_a_digit_that_is_no_number_stays_text_where_the_reference_crashes() -> None:
    assert cot_text({"bpm": "²"}) == "<think>\nbpm: ²\n</think>"


def test_codes_become_the_text_the_lm_reads() -> None:
    assert codes_text((0, 63_999)) == "<|audio_code_0|><|audio_code_63999|>"
