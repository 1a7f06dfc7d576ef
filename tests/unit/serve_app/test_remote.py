import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, ObjectLostError, RayTaskError

from models.errors import BadAudio, EngineDied
from models.music import OnProgress
from serve_app import remote
from serve_app.remote import Report, StageLost, last_of, retried, stream


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr(remote, "SECONDS_BETWEEN_REPORTS", 0.01)


class Responses:
    """What a streaming handle returns, without Ray."""

    def __init__(self, items: AsyncIterator[object]) -> None:
        self._items = items
        self.is_cancelled = False

    def __aiter__(self) -> AsyncIterator[object]:
        return self._items

    def cancel(self) -> None:
        self.is_cancelled = True


async def count_to_three(on_progress: OnProgress) -> str:
    for done in range(1, 4):
        on_progress(done, 3)
        await asyncio.sleep(0.03)
    return "three"


async def test_a_stream_ends_with_the_result_and_tells_progress_before_it() -> None:
    seen: list[tuple[int, int]] = []
    result = await last_of(Responses(stream(count_to_three)), lambda done, planned: seen.append((done, planned)))
    assert result == "three"
    assert seen == sorted(seen)
    assert seen[-1] == (3, 3)


async def test_of_many_reports_only_the_newest_is_sent() -> None:
    async def hurry(on_progress: OnProgress) -> None:
        for done in range(1000):
            on_progress(done, 1000)
        await asyncio.sleep(0.05)

    items = [item async for item in stream(hurry)]
    assert items == [Report(999, 1000), None]


async def test_closing_a_stream_cancels_the_work_behind_it() -> None:
    ended = asyncio.Event()

    async def work(on_progress: OnProgress) -> None:
        on_progress(0, 1)
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    reports = stream(work)
    await anext(reports)
    await reports.aclose()
    assert ended.is_set()


async def test_a_stages_error_leaves_the_stream_as_it_was_raised() -> None:
    async def fail(on_progress: OnProgress) -> None:
        raise BadAudio("silence")

    with pytest.raises(BadAudio, match="silence"):
        await last_of(Responses(stream(fail)), print)


async def test_an_error_is_unwrapped_from_what_ray_makes_of_it() -> None:
    async def call() -> None:
        wrapped: Any = RayTaskError  # Ray has no types for it
        raise wrapped("denoise", "a long traceback", BadAudio("silence"))

    with pytest.raises(BadAudio) as caught:
        await retried(call, "the VAE")
    assert caught.value.public_message == "silence"


async def test_a_dead_engine_is_a_lost_replica() -> None:
    tries: list[int] = []

    async def call() -> str:
        tries.append(1)
        if len(tries) < 2:
            wrapped: Any = RayTaskError
            raise wrapped("plan", "a long traceback", EngineDied("no engine"))
        return "plans"

    assert await retried(call, "the LM") == "plans"


async def test_a_lost_replica_is_called_again_with_the_same_call() -> None:
    tries: list[int] = []

    async def call() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ActorDiedError()
        return "song"

    assert await retried(call, "the DiT") == "song"
    assert len(tries) == 3


async def test_a_stage_that_dies_under_every_call_is_given_up_by_name() -> None:
    tries: list[int] = []

    async def call() -> None:
        tries.append(1)
        raise ActorDiedError()

    with pytest.raises(StageLost, match="the DiT died 4 times under one call"):
        await retried(call, "the DiT")
    assert len(tries) == 4


async def test_a_stage_that_is_away_is_waited_for_as_long_as_its_replica_takes_to_start() -> None:
    tries: list[int] = []

    async def call() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ActorDiedError()
        if len(tries) < 40:
            raise ActorUnavailableError("its node does not answer", None)
        return "song"

    assert await retried(call, "the DiT") == "song"


async def test_a_stage_that_stays_away_is_given_up_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "AWAY_AT_MOST_S", 0.02)

    async def call() -> None:
        raise ActorUnavailableError("its node does not answer", None)

    with pytest.raises(StageLost, match="the DiT was away for"):
        await retried(call, "the DiT")


@pytest.mark.parametrize("is_wrapped", [False, True])
async def test_what_went_with_its_node_is_made_again(is_wrapped: bool) -> None:
    """Latents of a long song stay on the node of the DiT until they are fetched, by the conductor or by the VAE."""
    tries: list[int] = []
    owner: Any = b""
    lost = ObjectLostError("ab", owner, "denoise")
    wrapped: Any = RayTaskError

    async def call() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise wrapped("decode", "a long traceback", lost) if is_wrapped else lost
        return "song"

    assert await retried(call, "the VAE") == "song"


async def test_a_stream_that_ends_without_a_result_is_a_replica_that_died() -> None:
    async def nothing() -> AsyncIterator[object]:
        return
        yield

    with pytest.raises(EngineDied, match="without a result"):
        await last_of(Responses(nothing()), print)
