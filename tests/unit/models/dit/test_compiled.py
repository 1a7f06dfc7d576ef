"""A compiled forward: the answers of the plain one whatever the mix of lengths, and no compiling after the warm-up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from models.batching import BatchLimits
from models.dit import engine, transformer
from models.dit.adapters import Adapter, Blend, Pair
from models.dit.attention import Attention, Lengths, attend_opaquely, attend_packed, attend_row_by_row
from models.dit.engine import DitEngine
from models.dit.transformer import BUCKET, Row, Transformer
from models.weights import read_dit
from tests.unit.models.dit.songs import distance, song, values

pytestmark = pytest.mark.real

CPU = torch.device("cpu")
WARM_TOKENS = 2 * BUCKET
MIXES = 30


@pytest.fixture(scope="module")
def make(tiny: Path) -> Callable[..., Transformer]:
    return partial(Transformer, read_dit(tiny / "acestep-v15-turbo", torch.float32), CPU, torch.float32)


@pytest.fixture(scope="module")
def plain(make: Callable[..., Transformer]) -> Transformer:
    return make()


@pytest.fixture(scope="module")
def compiled(make: Callable[..., Transformer]) -> Transformer:
    return quickly(make)


def quickly(make: Callable[..., Transformer]) -> Transformer:
    """Graphs are made, told apart and run as they are, but not turned into C++, which takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        return make(is_compiled=True)


def row(rng: np.random.Generator, frames: int, condition_tokens: int, **fields: Any) -> Row:
    shapes = ((frames, 64), (frames, 128), (condition_tokens, 64))
    x, context, condition = (torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes)
    return Row(x, float(rng.random()), context, condition, **fields)


def some_rows(rng: np.random.Generator) -> list[Row]:
    return [row(rng, int(rng.integers(1, 300)), int(rng.integers(1, 400))) for _ in range(rng.integers(1, 9))]


def graphs_made() -> int:
    return counters["stats"]["unique_graphs"]


def furthest(answers: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    return max(float((one - other).norm() / other.norm()) for one, other in zip(answers, wanted, strict=True))


@torch.inference_mode()
def hold_against_each_other(compiled: Transformer, plain: Transformer) -> None:
    before = graphs_made()
    compiled.warm_up(WARM_TOKENS)
    assert graphs_made() - before == 2  # one for each kind of layer

    rng = np.random.default_rng(0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(MIXES):
            rows = some_rows(rng)
            assert furthest(compiled.velocities(rows), plain.velocities(rows)) <= 1e-5

    assert graphs_made() - before == 2


def test_thirty_mixes_of_lengths_need_no_graph_after_those_of_the_warm_up(
    compiled: Transformer, plain: Transformer
) -> None:
    hold_against_each_other(compiled, plain)


@pytest.mark.long
def test_as_machine_code_it_answers_the_same_and_needs_no_more_of_it(
    make: Callable[..., Transformer], plain: Transformer
) -> None:
    hold_against_each_other(make(is_compiled=True), plain)


async def test_an_engine_compiles_while_it_warms_up_and_not_again_in_its_own_thread(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(engine, "LONGEST_GUIDED", WARM_TOKENS)  # in place of a minute of attention on a CPU
    limits, name = BatchLimits(cost=WARM_TOKENS), "acestep-v15-base"
    compiled = DitEngine(tiny, name, limits, CPU, packs_rows=True, compiles=True)
    plain = DitEngine(tiny, name, limits, CPU, packs_rows=True)
    before = graphs_made()
    compiled.warm_up()
    assert graphs_made() - before == 2
    songs = [song(10.0 + number, number, inference_steps=2 + number) for number in range(3)]

    made = await asyncio.gather(*(values(compiled, own) for own in songs))

    assert graphs_made() - before == 2
    for own, wanted in zip(made, [await values(plain, own) for own in songs], strict=True):
        assert distance(own, wanted) <= 1e-5
    compiled.close()
    plain.close()


@torch.inference_mode()
def test_a_forward_is_filled_up_to_a_bucket_and_the_filler_gets_no_answer(
    make: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int, int]] = []

    def look(block: Any, hidden: Tensor, condition: Tensor, layout: Any, window: int | None) -> Tensor:
        seen.append((len(hidden), len(condition), len(layout.lengths.own)))
        return hidden

    monkeypatch.setattr(transformer, "_through_block", look)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    compiled = make(is_compiled=True)
    rng = np.random.default_rng(1)

    answers = compiled.velocities([row(rng, 2 * 255, 3), row(rng, 1, 254)])

    assert [len(answer) for answer in answers] == [2 * 255, 1]
    assert set(seen) == {(2 * BUCKET, 2 * BUCKET, 3)}  # 256 of each are theirs: a filler is never empty


@torch.inference_mode()
def test_what_a_poisoned_row_holds_reaches_no_other(compiled: Transformer, plain: Transformer) -> None:
    rng = np.random.default_rng(2)
    healthy, poisoned = row(rng, 70, 9), row(rng, 30, 5)
    poisoned.x[3] = float("nan")

    answers = compiled.velocities([healthy, poisoned])

    assert answers[1].isnan().any()
    assert furthest(answers[:1], plain.velocities([healthy])) <= 1e-5


@torch.inference_mode()
def test_adapters_are_heard_beside_compiled_rows(compiled: Transformer, plain: Transformer) -> None:
    layer = plain.model.get_submodule("layers.0.self_attn.to_q")
    assert isinstance(layer, torch.nn.Linear)
    pair = Pair(torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1))
    blend = Blend(((Adapter("loud", {"layers.0.self_attn.to_q": pair}), 1.0),))
    adapted, rng = row(np.random.default_rng(3), 40, 5, adapters=blend), np.random.default_rng(3)
    bare = row(rng, 40, 5)

    answers = compiled.velocities([bare, adapted])

    assert furthest(answers, plain.velocities([bare, adapted])) <= 1e-5
    assert furthest(answers[:1], answers[1:]) > 1e-3


@torch.inference_mode()
def test_the_warm_up_ends_at_what_fits_on_the_device(
    make: Callable[..., Transformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def run(block: Any, hidden: Tensor, *others: Any) -> Tensor:
        seen.append(len(hidden))
        if len(hidden) > 8 * BUCKET:
            raise torch.OutOfMemoryError("out of memory")
        return hidden

    monkeypatch.setattr(transformer, "_through_block", run)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)

    make(is_compiled=True).warm_up(5 * BUCKET)
    assert list(dict.fromkeys(seen)) == [BUCKET, 2 * BUCKET, 4 * BUCKET, 5 * BUCKET]

    seen.clear()
    make(is_compiled=True).warm_up(100 * BUCKET)
    assert list(dict.fromkeys(seen)) == [BUCKET << power for power in range(5)]


@pytest.fixture
def flash_on_a_cpu() -> Iterator[None]:
    """PyTorch's operator for packed attention, given a CPU kernel after its documentation. CUDA alone has one."""

    def kernel(
        query: Tensor, key: Tensor, value: Tensor, q_sums: Tensor, k_sums: Tensor, max_q: int, max_k: int, *more: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        is_causal, scale, (left, right), has_groups = more[:4]
        assert not is_causal
        assert scale is None
        assert has_groups == (query.shape[1] != key.shape[1])
        assert (q_sums.dtype, k_sums.dtype) == (torch.int32, torch.int32)
        answer = torch.empty_like(query)
        bounds = zip(q_sums[:-1], q_sums[1:], k_sums[:-1], k_sums[1:], strict=True)
        for q_first, q_last, k_first, k_last in bounds:
            q, k, v = query[q_first:q_last], key[k_first:k_last], value[k_first:k_last]
            assert len(q) <= max_q
            assert len(k) <= max_k
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
            scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
            if left >= 0:
                gap = torch.arange(len(k)) - torch.arange(len(q))[:, None]
                scores.masked_fill_((gap < -left) | (gap > right), float("-inf"))
            answer[q_first:q_last] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)
        return answer, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)

    library: Any = torch.library.Library("torch_attn", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("_varlen_attn", kernel, "CPU")
    yield
    library._destroy()


@pytest.mark.usefixtures("flash_on_a_cpu")
@pytest.mark.parametrize("attention", [attend_packed, attend_opaquely])
@pytest.mark.parametrize("window", [None, 4])
@torch.inference_mode()
def test_every_way_to_attend_gives_the_same_answer(attention: Attention, window: int | None) -> None:
    torch.manual_seed(0)
    rows, keys = (Lengths.of(own, CPU) for own in ((7, 1, 30), (3, 9, 2)))
    lengths = (rows, rows if window else keys)
    query = torch.randn(38, 4, 8)
    key, value = (torch.randn(sum(lengths[1].own), 2, 8) for _ in range(2))

    answer = attention(query, key, value, lengths, window)

    torch.testing.assert_close(answer, attend_row_by_row(query, key, value, lengths, window))


@pytest.mark.usefixtures("flash_on_a_cpu")
def test_the_kernel_of_a_gpu_fits_into_two_graphs_as_well(
    make: Callable[..., Transformer], plain: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "attention_for", lambda device, is_compiled=False: attend_packed)

    hold_against_each_other(quickly(make), plain)
