"""Guided songs in every situation that parts the halves of a pair under vLLM's own scheduler: one engine each, in this
process, step by step, so that a situation is the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import TokensPrompt
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.request import RequestStatus

from models.errors import EngineError
from models.lm.backends.vllm import PROCESSORS, SCHEDULER
from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.guidance import scheduler as scheduler_module
from models.lm.guidance.pairs import Half
from models.lm.sampling import Sampling
from tests.vllm.plain_loop import Song

# vLLM works in this process here, and its warnings are its own
pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op`:FutureWarning")]

LONGEST = 512  # tokens of one half
SEATS = 12
BLOCK = 128  # tokens; the CPU build's
STOCK = "vllm.v1.core.sched.async_scheduler.AsyncScheduler"


@dataclass(frozen=True)
class Situation:
    """`lag`: steps between the arrivals of a song's halves. `withdrawn`: songs by the step at which they go."""

    tokens_a_step: int = 2 * LONGEST + SEATS
    seats: int = SEATS
    blocks: int = 200
    lag: int = 0
    withdrawn: dict[int, int] = field(default_factory=dict)


SITUATIONS = {
    "all at once": Situation(tokens_a_step=4096),
    "halves that arrive five steps apart": Situation(tokens_a_step=4096, lag=5),
    "a step that takes one pair's prompts and no more": Situation(),
    "memory for one pair and a bit": Situation(blocks=12),
    "songs withdrawn in the middle": Situation(withdrawn={0: 10, 3: 25, 8: 3}),
}


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")


@contextmanager
def an_engine(checkpoint: Path, situation: Situation, scheduler: str) -> Iterator[LLMEngine]:
    arguments = EngineArgs(
        model=str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        max_model_len=LONGEST,
        max_num_seqs=situation.seats,
        max_num_batched_tokens=situation.tokens_a_step,
        num_gpu_blocks_override=situation.blocks,
        block_size=BLOCK,
        scheduler_cls=scheduler,
        logits_processors=[f"{PROCESSORS}:PairedProcessor"],
        disable_log_stats=True,
        generation_config="vllm",
    )
    engine = LLMEngine.from_engine_args(arguments)
    try:
        yield engine
    finally:
        engine.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def written_by(engine: LLMEngine, songs: list[Song], situation: Situation) -> list[list[list[int]]]:
    """What each half of each song wrote; nothing for songs that were withdrawn."""
    arrivals = {
        (number, is_cond): situation.lag * (number + (not is_cond))
        for number, song in enumerate(songs)
        for is_cond in ((True, False) if song.scale > 1 else (True,))
    }
    written: dict[str, list[int]] = {}
    step = 0
    while arrivals or engine.has_unfinished_requests():
        for number, is_cond in [half for half, arrives in arrivals.items() if arrives <= step]:
            del arrivals[number, is_cond]
            _add(engine, number, is_cond, songs[number])
        gone = [number for number, leaves in situation.withdrawn.items() if leaves == step]
        engine.abort_request([_name(number, is_cond) for number in gone for is_cond in (True, False)])
        for output in engine.step():
            if output.finished:
                written[output.request_id] = list(output.outputs[0].token_ids)
        step += 1
        assert step < 5000, "the engine does not come to an end"
    return [
        [written[_name(number, is_cond)] for is_cond in (True, False) if _name(number, is_cond) in written]
        for number in range(len(songs))
    ]


def _add(engine: LLMEngine, number: int, is_cond: bool, song: Song) -> None:
    rules = Rules(begins_with_codes=True, fewest_codes=song.codes, most_codes=song.codes)
    sampling = Sampling(song.temperature, song.top_k, song.top_p)
    half = Half(f"song-{number}", is_cond, Decoding(rules, sampling, song.scale, song.seed))
    params = SamplingParams(
        temperature=0.0, max_tokens=song.codes + 1, detokenize=False, extra_args=half.to_extra_args()
    )
    prompt = song.prompt if is_cond else song.unguided
    engine.add_request(_name(number, is_cond), TokensPrompt(prompt_token_ids=list(prompt)), params)


def _name(number: int, is_cond: bool) -> str:
    return f"song-{number}-{'cond' if is_cond else 'uncond'}"


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
def test_every_song_is_the_plain_loops_token_for_token(
    checkpoint: Path, songs: list[Song], expected: list[list[int]], situation: Situation
) -> None:
    with an_engine(checkpoint, situation, SCHEDULER) as engine:
        written = written_by(engine, songs, situation)

        halves = [2 if song.scale > 1 else 1 for song in songs]
        staying = [number for number in range(len(songs)) if number not in situation.withdrawn]
        assert {n: written[n] for n in staying} == {n: [expected[n]] * halves[n] for n in staying}
        scheduler = engine.engine_core.engine_core.scheduler
        assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == situation.blocks - 1


@pytest.mark.xfail(strict=True, raises=AssertionError, reason="vLLM's own scheduler parts the halves: why ours exists")
def test_the_stock_scheduler_writes_the_same(checkpoint: Path, songs: list[Song], expected: list[list[int]]) -> None:
    situation = SITUATIONS["halves that arrive five steps apart"]
    with an_engine(checkpoint, situation, STOCK) as engine:
        written = written_by(engine, songs, situation)

    assert [halves[0] for halves in written] == expected


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        (Situation(tokens_a_step=2 * LONGEST + SEATS - 1), "max_num_batched_tokens is 1035.* needs 1036"),
        (Situation(blocks=8), "the KV cache has 7 blocks.* needs 8"),
        (Situation(seats=1), "max_num_seqs is 1; a pair needs 2"),
    ],
    ids=["tokens", "blocks", "seats"],
)
def test_an_engine_that_could_never_admit_a_pair_does_not_start(
    checkpoint: Path, situation: Situation, message: str
) -> None:
    with pytest.raises(EngineError, match=message), an_engine(checkpoint, situation, SCHEDULER):
        pass
    cleanup_dist_env_and_memory()


def test_a_half_whose_partner_never_comes_is_ended(
    checkpoint: Path, songs: list[Song], expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with an_engine(checkpoint, Situation(), SCHEDULER) as engine:
        _add(engine, 0, True, songs[0])
        _add(engine, 9, True, songs[9])
        for _ in range(songs[9].codes + 5):
            ended = [output for output in engine.step() if output.finished]
            assert [output.request_id for output in ended] in ([], [_name(9, True)])
        assert engine.has_unfinished_requests()

        monkeypatch.setattr(scheduler_module, "LONE_HALF_TIMEOUT_S", 0.0)
        (ended,) = engine.step()

        assert (ended.request_id, ended.finished, ended.outputs[0].token_ids) == (_name(0, True), True, [])
        assert ended.outputs[0].finish_reason == "abort"
        assert not engine.has_unfinished_requests()


def running_pair(engine: LLMEngine, song: Song) -> None:
    _add(engine, 0, True, song)
    _add(engine, 0, False, song)
    for _ in range(5):
        engine.step()


def test_ending_one_half_ends_both_and_frees_their_memory(checkpoint: Path, songs: list[Song]) -> None:
    with an_engine(checkpoint, Situation(), SCHEDULER) as engine:
        running_pair(engine, songs[0])
        scheduler = engine.engine_core.engine_core.scheduler
        assert len(scheduler.requests) == 2

        scheduler.finish_requests(next(iter(scheduler.requests)), RequestStatus.FINISHED_ABORTED)

        assert scheduler.requests == {}
        assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == Situation().blocks - 1


def test_halves_that_are_not_scheduled_together_end_their_song(checkpoint: Path, songs: list[Song]) -> None:
    with an_engine(checkpoint, Situation(), SCHEDULER) as engine:
        running_pair(engine, songs[0])
        scheduler = engine.engine_core.engine_core.scheduler

        scheduler._end_parted_pairs(SimpleNamespace(num_scheduled_tokens={next(iter(scheduler.requests)): 1}))
        ended = [output for _ in range(3) for output in engine.step() if output.finished]

        assert [output.outputs[0].finish_reason for output in ended] == ["abort", "abort"]
        assert scheduler.requests == {}
