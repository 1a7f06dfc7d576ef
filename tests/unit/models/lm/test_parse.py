from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.lm.parse import codes_of_text, lyrics_of, metadata_of
from models.lm.prompts import codes_text

GOLDEN = Path(__file__).parents[3] / "golden" / "lm"
CASES = json.loads((GOLDEN / "parsing.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_what_the_lm_wrote_is_read_as_the_reference_reads_it(case: dict[str, Any]) -> None:
    assert metadata_of(case["text"]) == case["metadata"]
    assert lyrics_of(case["text"]) == case["lyrics"]
    assert codes_of_text(case["text"]) == codes_of_text(case["audio_codes"])


def test_codes_written_and_read_are_the_same_codes() -> None:
    assert codes_of_text(codes_text((5, 0, 63_999))) == (5, 0, 63_999)
