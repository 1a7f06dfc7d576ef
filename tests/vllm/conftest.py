"""One asynchronous engine for all tests: starting one takes half a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from models.lm.backends.backend import EngineOptions
from models.lm.engine import LmEngine
from tests.lm_cases import GOLDEN, write_checkpoint
from tests.vllm.plain_loop import PlainLoop, Song, songs_for

OPTIONS = EngineOptions(
    dtype="float32", enforce_eager=True, max_model_len=4096, max_num_seqs=12, genres=GOLDEN / "genres_vocab.txt"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-lm")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(checkpoint: Path) -> AsyncIterator[LmEngine]:
    engine = LmEngine(checkpoint, OPTIONS)
    await engine.warm_up()
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def songs(checkpoint: Path) -> list[Song]:
    return songs_for(AutoTokenizer.from_pretrained(checkpoint))


@pytest.fixture(scope="session")
def expected(checkpoint: Path, songs: list[Song]) -> list[list[int]]:
    loop = PlainLoop(checkpoint)
    return [loop.write(song) for song in songs]
