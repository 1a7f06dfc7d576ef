"""The `pt` backend against the golden sequences of transformers and of the reference's own loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.errors import EngineDied
from models.lm.backends import backend as backend_module
from models.lm.backends.backend import EngineOptions
from models.lm.backends.torch import TorchBackend
from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.engine import LmEngine
from models.lm.sampling import Sampling
from tests.lm_cases import GOLDEN, GUIDED, WHOLE, request_of, run_of, write_checkpoint

ENDLESS = Rules(begins_with_codes=True, fewest_codes=3000, most_codes=3000)
OPTIONS = EngineOptions(backend="torch", dtype="float32", max_model_len=4096, genres=GOLDEN / "genres_vocab.txt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-lm")


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[LmEngine]:
    engine = LmEngine(checkpoint, OPTIONS)
    asyncio.run(engine.warm_up())
    yield engine
    engine.close()


@pytest.fixture
def backend(engine: LmEngine) -> TorchBackend:
    assert isinstance(engine._backend, TorchBackend)
    return engine._backend


@pytest.mark.parametrize("case", GUIDED, ids=lambda case: case["id"])
async def test_a_guided_answer_is_transformers_own_token_for_token(backend: TorchBackend, case: dict[str, Any]) -> None:
    assert await backend.generate(run_of(case), lambda: None) == case["guided_ids"]


@pytest.mark.parametrize("case", GUIDED, ids=lambda case: case["id"])
async def test_without_guidance_it_is_the_conditional_answer(backend: TorchBackend, case: dict[str, Any]) -> None:
    assert await backend.generate(run_of(case, scale=1.0), lambda: None) == case["cond_only_ids"]


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["id"])
async def test_a_whole_plan_is_the_references(engine: LmEngine, case: dict[str, Any]) -> None:
    metadata = case["result"]["metadata"]

    (plan,) = await engine.plan(request_of(case, lm_backend="pt"))

    assert plan.codes == tuple(map(int, re.findall(r"\d+", case["result"]["audio_codes"])))
    assert (plan.metas.bpm, plan.metas.key_scale) == (metadata["bpm"], metadata["keyscale"])
    assert plan.remarks == ()


async def test_a_cancelled_run_stops_at_its_next_token(backend: TorchBackend) -> None:
    long = replace(run_of(GUIDED[0]), max_tokens=2000, decoding=Decoding(ENDLESS, Sampling(temperature=0.0), 2.0, 0))
    tokens: list[float] = []
    heard = asyncio.Event()

    def on_token() -> None:
        tokens.append(0)
        heard.set()

    work = asyncio.ensure_future(backend.generate(long, on_token))
    await heard.wait()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

    assert work.cancelled()
    await asyncio.sleep(0.1)
    assert len(tokens) < 50


async def test_a_run_cancelled_in_the_line_does_not_wait_for_those_before_it(backend: TorchBackend) -> None:
    long = replace(run_of(GUIDED[0]), max_tokens=2000, decoding=Decoding(ENDLESS, Sampling(temperature=0.0), 2.0, 0))
    heard = asyncio.Event()
    first = asyncio.ensure_future(backend.generate(long, heard.set))
    await heard.wait()
    second = asyncio.ensure_future(backend.generate(run_of(GUIDED[0]), lambda: None))
    await asyncio.sleep(0)

    second.cancel()
    await asyncio.gather(second, return_exceptions=True)

    assert second.cancelled()
    assert not first.done()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_an_lm_that_says_nothing_for_long_is_not_well(
    backend: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "STUCK_S", -1.0)
    await backend.check_health()  # nothing is under way
    with backend._pulse.run(), pytest.raises(EngineDied, match="1 runs are under way and no token came"):
        await backend.check_health()


async def test_a_closed_lm_is_not_well(checkpoint: Path) -> None:
    engine = LmEngine(checkpoint, OPTIONS)
    await engine.check_health()
    engine.close()
    with pytest.raises(EngineDied):
        await engine.check_health()
