from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from models.lm.prompts import Prompts
from models.lm.vocabulary import Vocabulary, read_genres

GOLDEN = Path(__file__).parents[3] / "golden" / "lm"


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(GOLDEN / "tokenizer")


@pytest.fixture(scope="session")
def prompts(tokenizer: Any) -> Prompts:
    return Prompts(tokenizer)


@pytest.fixture(scope="session")
def vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, read_genres(GOLDEN / "genres_vocab.txt"))
