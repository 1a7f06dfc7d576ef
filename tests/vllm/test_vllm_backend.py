"""What our side of the engine makes of engines that go wrong; the engine is played by a generator."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from models.errors import AceError, BadPlan, EngineDied, EngineError
from models.lm.backends import backend as backend_module
from models.lm.backends import vllm as vllm_module
from models.lm.backends.backend import Pulse, Run
from models.lm.backends.vllm import VllmBackend
from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.sampling import Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio]

GUIDED = Run((1, 2), (3,), Decoding(Rules(), Sampling(), 2.0, 0), 4)


class PlayedEngine:
    """`play(is_cond)` yields (token ids, reason or None) for one half."""

    def __init__(self, play: Callable[[bool], AsyncIterator[tuple[list[int], str | None]]]) -> None:
        self._play = play
        self.left: list[str] = []

    async def generate(self, prompt: object, params: object, name: str) -> AsyncIterator[Any]:
        try:
            async for ids, reason in self._play(name.endswith("-cond")):
                yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason=reason)])
        finally:
            self.left.append(name.rpartition("-")[2])

    async def check_health(self) -> None:
        pass


def backend_over(play: Callable[[bool], AsyncIterator[tuple[list[int], str | None]]]) -> VllmBackend:
    backend = VllmBackend.__new__(VllmBackend)  # without starting an engine
    backend._engine = PlayedEngine(play)
    backend._pulse = Pulse()
    return backend


async def test_halves_that_write_the_same_are_one_answer() -> None:
    async def play(is_cond: bool) -> AsyncIterator[tuple[list[int], str | None]]:
        yield [5, 6], None
        yield [7], "stop"

    assert await backend_over(play).generate(GUIDED, lambda: None) == [5, 6, 7]


async def test_halves_that_part_are_no_answer() -> None:
    async def play(is_cond: bool) -> AsyncIterator[tuple[list[int], str | None]]:
        yield [5, 6 if is_cond else 7], "stop"

    with pytest.raises(BadPlan, match="parted"):
        await backend_over(play).generate(GUIDED, lambda: None)


async def test_a_half_that_ends_alone_ends_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_module, "HALF_LAG_S", 0.05)

    async def play(is_cond: bool) -> AsyncIterator[tuple[list[int], str | None]]:
        yield [5], "stop" if is_cond else None
        if not is_cond:
            await asyncio.sleep(60)

    backend = backend_over(play)
    with pytest.raises(BadPlan, match="without the other"):
        await backend.generate(GUIDED, lambda: None)
    assert sorted(backend._engine.left) == ["cond", "uncond"]


async def test_a_half_that_the_engine_ended_fails_the_song() -> None:
    async def play(is_cond: bool) -> AsyncIterator[tuple[list[int], str | None]]:
        yield [5], "abort"

    with pytest.raises(BadPlan, match="abort"):
        await backend_over(play).generate(GUIDED, lambda: None)


@pytest.mark.parametrize(
    ("raised", "expected"), [(EngineDeadError(), EngineDied), (EngineGenerateError(), EngineError)], ids=repr
)
async def test_an_engines_own_errors_come_out_as_ours(raised: Exception, expected: type[AceError]) -> None:
    async def play(is_cond: bool) -> AsyncIterator[tuple[list[int], str | None]]:
        yield [5], None
        raise raised

    with pytest.raises(expected) as caught:
        await backend_over(play).generate(GUIDED, lambda: None)
    assert type(caught.value) is expected


async def test_an_engine_that_says_nothing_for_long_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(is_cond: bool) -> AsyncIterator[tuple[list[int], str | None]]:
        await asyncio.sleep(60)
        yield [], None

    backend = backend_over(play)
    work = asyncio.ensure_future(backend.generate(GUIDED, lambda: None))
    await asyncio.sleep(0.01)
    await backend.check_health()

    monkeypatch.setattr(backend_module, "STUCK_S", 0.0)

    with pytest.raises(EngineDied, match="2 runs are under way"):
        await backend.check_health()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    await backend.check_health()
