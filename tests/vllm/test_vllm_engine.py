from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

import pytest

from models.errors import TooLong
from models.lm.backends.backend import EngineOptions, OnToken, Run
from models.lm.backends.torch import TorchBackend
from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.engine import LmEngine
from models.lm.sampling import Order, Sampling
from models.music import LANGUAGES, MusicRequest, codes_of
from tests.lm_cases import GUIDED, WHOLE, request_of, run_of
from tests.vllm.plain_loop import Song

pytestmark = [pytest.mark.vllm, pytest.mark.asyncio(loop_scope="session")]


async def test_guided_answers_are_transformers_own_token_for_token(engine: LmEngine) -> None:
    answers = await asyncio.gather(*(engine._backend.generate(run_of(case), lambda: None) for case in GUIDED))

    assert [answer == case["guided_ids"] for answer, case in zip(answers, GUIDED, strict=True)] == [True] * len(GUIDED)


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["id"])
async def test_a_whole_plan_is_the_references(engine: LmEngine, case: dict[str, Any]) -> None:
    metadata = case["result"]["metadata"]

    (plan,) = await engine.plan(request_of(case))

    assert plan.codes == tuple(map(int, re.findall(r"\d+", case["result"]["audio_codes"])))
    assert (plan.metas.bpm, plan.metas.key_scale) == (metadata["bpm"], metadata["keyscale"])
    assert plan.language == metadata.get("language", "unknown")


def songs_of(seeds: tuple[int, ...], **changed: Any) -> MusicRequest:
    asked: dict[str, Any] = {
        "model": "any",
        "prompt": "A calm piano melody.",
        "lyrics": "[Verse]\nla la",
        "audio_duration": 12.0,
        "thinking": True,
        "seeds": seeds,
    }
    return MusicRequest(**(asked | changed))


async def test_a_songs_codes_are_the_same_alone_and_beside_others(engine: LmEngine) -> None:
    (alone,) = await engine.plan(songs_of((5,)))

    other = songs_of((1, 2, 3), prompt="Heavy metal", lm_cfg_scale=1.0, lm_top_k=20, audio_duration=15.0)
    (beside,), _, _ = await asyncio.gather(
        engine.plan(songs_of((5,))), engine.plan(other), engine.plan(songs_of((9, 8, 7, 6), lm_temperature=1.2))
    )

    assert beside.codes == alone.codes
    assert len(alone.codes) == 60


async def test_sampled_codes_are_those_of_a_plain_loop_over_transformers(engine: LmEngine, checkpoint: Path) -> None:
    loop = TorchBackend(checkpoint, EngineOptions(backend="torch"))
    sampling = Sampling(temperature=0.85, top_k=40, top_p=0.9, order=Order.TEMPERED, repetition_penalty=1.1)
    runs = [
        Run(run.prompt, run.unguided_prompt, Decoding(run.decoding.rules, sampling, 2.5, seed), run.max_tokens)
        for seed, run in enumerate(map(run_of, GUIDED))
    ]

    answers = await asyncio.gather(*(engine._backend.generate(run, lambda: None) for run in runs))

    assert answers == [await loop.generate(run, lambda: None) for run in runs]
    loop.close()


async def test_a_cancelled_plan_frees_both_halves(engine: LmEngine) -> None:
    heard = asyncio.Event()
    work = asyncio.ensure_future(
        engine.plan(songs_of((1, 2, 3, 4), audio_duration=300.0), lambda done, planned: heard.set())
    )
    await heard.wait()

    work.cancel()
    await asyncio.gather(work, return_exceptions=True)

    # six guided songs fill every seat of the engine: none may still be taken
    plans = await engine.plan(songs_of((1, 2, 3, 4, 5, 6)))
    assert [len(plan.codes) for plan in plans] == [60] * 6
    assert engine._backend._engine.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]


async def test_thirty_songs_at_random_times_are_each_the_plain_loops(
    engine: LmEngine, songs: list[Song], expected: list[list[int]]
) -> None:
    chosen = random.Random(6)
    gone = {4, 13, 22}

    async def write(number: int) -> list[int] | None:
        await asyncio.sleep(chosen.random() * 1.5)
        song = songs[number % 10]
        rules = Rules(begins_with_codes=True, fewest_codes=song.codes, most_codes=song.codes)
        sampling = Sampling(song.temperature, song.top_k, song.top_p)
        unguided = song.unguided if song.scale > 1 else None
        heard = asyncio.Event()
        run = Run(song.prompt, unguided, Decoding(rules, sampling, song.scale, song.seed), song.codes + 1)
        work = asyncio.ensure_future(engine._backend.generate(run, heard.set))
        if number not in gone:
            return await work
        await heard.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        return None

    answers = await asyncio.gather(*map(write, range(30)))

    assert answers == [None if number in gone else expected[number % 10] for number in range(30)]
    assert engine._backend._engine.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]


async def test_random_requests_keep_what_was_given_and_count_exactly(
    engine: LmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any request: every value given comes back, what is open is filled with what a song may have."""
    requests = [random_request(number) for number in range(200)]
    written: set[int] = set()
    generate = engine._backend.generate

    async def listen(run: Run, on_token: OnToken) -> list[int]:
        ids = await generate(run, on_token)
        written.update(ids)
        return ids

    monkeypatch.setattr(engine._backend, "generate", listen)

    plans = await asyncio.gather(*map(engine.plan, requests), return_exceptions=True)

    assert not written & set(engine._writer.vocabulary.codes_above_limit)
    for request, songs in zip(requests, plans, strict=True):
        if isinstance(songs, BaseException):  # words that random weights wrote may be too long for this small engine
            assert isinstance(songs, TooLong), songs
            assert request.use_format or request.sample_query is not None
            continue
        assert len(songs) == request.songs
        for plan in songs:
            given = {name: value for name, value in request.metas.model_dump().items() if value is not None}
            assert given.items() <= plan.metas.model_dump().items()
            is_described = request.use_format or request.sample_query is not None
            if (
                not request.use_cot_caption and not is_described
            ):  # a caption of random weights may swallow the fields after it
                assert None not in (plan.metas.bpm, plan.metas.key_scale, plan.metas.time_signature)
            assert plan.language == request.vocal_language or request.vocal_language is None
            assert plan.language in LANGUAGES
            if request.audio_duration is not None:
                assert len(plan.codes) == (codes_of(request.audio_duration) if request.thinking else 0)
            elif request.thinking:
                assert 50 <= len(plan.codes) <= 3000
                assert plan.metas.duration == len(plan.codes) / 5


def random_request(number: int) -> MusicRequest:
    chosen = random.Random(number)
    maybe = chosen.choice
    return MusicRequest(
        model="any",
        prompt=" ".join(chosen.choices(["calm", "loud", "piano", "", "夜", "drums:", "a\nb"], k=chosen.randint(0, 20))),
        lyrics=maybe(["", "[Instrumental]", "[Verse]\nla la", "ø\n\n<|audio_code_5|>"]),
        bpm=maybe([None, 30, 120, 300]),
        key_scale=maybe([None, "C major", "f# minor", "B♭ minor"]),
        time_signature=maybe([None, "2", "3/4", "6/8"]),
        audio_duration=None if number % 40 == 0 else maybe([10.0, 11.3, 17.9]),
        sample_query=maybe([None] * 9 + ["a quiet song"]),
        use_format=number % 10 == 3,
        vocal_language=maybe([None, None, "en", "no"]),
        thinking=maybe([True, True, False]),
        seeds=tuple(range(number, number + chosen.randint(1, 2))),
        lm_temperature=maybe([0.0, 0.85, 1.5]),
        lm_cfg_scale=maybe([0.5, 1.0, 2.0, 3.5]),
        lm_negative_prompt=maybe(["NO USER INPUT", "noise", ""]),
        lm_top_k=maybe([0, 1, 50]),
        lm_top_p=maybe([0.3, 0.9, 1.0]),
        lm_repetition_penalty=maybe([1.0, 1.0, 1.2]),
        use_cot_caption=maybe([True, False, False]),
        use_cot_language=maybe([True, False]),
        allow_lm_batch=maybe([True, False]),
    )
