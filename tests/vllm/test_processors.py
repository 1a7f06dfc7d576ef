"""The two processor classes over simulated runners: rows that come, go, move and are shuffled, as vLLM's runners do."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from models.lm.constraints import Rules
from models.lm.decoding import Chooser, Decoding, SongDecoder
from models.lm.guidance.pairs import Half
from models.lm.guidance.processors import PairedProcessor, PairedProcessorV2, load_vocabulary
from models.lm.sampling import Sampling
from models.lm.vocabulary import Vocabulary

pytestmark = pytest.mark.vllm

CPU = torch.device("cpu")
STEPS = 21
SONGS = 6


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> Any:
    return SimpleNamespace(model_config=SimpleNamespace(tokenizer=str(checkpoint)), additional_config={"genres": None})


@pytest.fixture(scope="module")
def vocabulary(config: Any) -> Vocabulary:
    return load_vocabulary(config, CPU)


def decoding_of(song: int) -> Decoding:
    rules = Rules(begins_with_codes=True, fewest_codes=STEPS - 1, most_codes=STEPS - 1)
    return Decoding(rules, Sampling(), 2.0 if song else 1.0, seed=song)


def params_of(half: Half) -> SamplingParams:
    return SamplingParams(temperature=0.0, extra_args=half.to_extra_args())


def logits_of(half: Half, step: int, size: int) -> torch.Tensor:
    seed = 10_000 * half.decoding.seed + 10 * step + half.is_cond
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def halves_of(song: int, time: int = 0) -> list[Half]:
    decoding = decoding_of(song)
    return [
        Half(f"{song} for the {time}. time", is_cond, decoding)
        for is_cond in ((True, False) if decoding.is_guided else (True,))
    ]


def alone(song: int, vocabulary: Vocabulary) -> list[int]:
    """What a song writes with no runner and no neighbour."""
    decoder, chooser, written = SongDecoder(vocabulary, decoding_of(song)), Chooser(), []
    halves = halves_of(song)
    for step in range(STEPS):
        cond, *uncond = (logits_of(half, step, vocabulary.size) for half in halves)
        written.append(int(chooser.choose([(decoder, cond, uncond[0] if uncond else None)])[0]))
    return written


def test_the_v1_class_follows_rows_that_come_go_and_move(config: Any, vocabulary: Vocabulary) -> None:
    processor = PairedProcessor(config, CPU, False)
    chosen = random.Random(4)
    rows: list[tuple[Half, list[int]]] = []
    waiting = list(range(SONGS))
    done: dict[str, list[int]] = {}
    while waiting or rows:
        added = []
        while waiting and chosen.random() < 0.5:
            for half in halves_of(waiting.pop()):
                rows.append((half, []))
                added.append((len(rows) - 1, params_of(half), [1, 2, 3], rows[-1][1]))
        moved = []
        if len(rows) > 1 and not added:
            a, b = chosen.sample(range(len(rows)), 2)
            rows[a], rows[b] = rows[b], rows[a]
            moved.append((a, b, MoveDirectionality.SWAP))
        processor.update_state(BatchUpdate(len(rows), [], added, moved))
        if not rows:
            continue
        logits = torch.stack([logits_of(half, len(written), vocabulary.size) for half, written in rows])
        for (_, written), token in zip(rows, processor.apply(logits).argmax(-1).tolist(), strict=True):
            written.append(token)
        # who has ended leaves, and the last rows move into the gaps, as the runner condenses its batch
        removed, moves = [], []
        for row in reversed([row for row, (_, written) in enumerate(rows) if len(written) == STEPS]):
            half, written = rows[row]
            assert done.setdefault(half.uid, written) == written
            removed.append(row)
            last = rows.pop()
            if row < len(rows):
                rows[row] = last
                moves.append((len(rows), row, MoveDirectionality.UNIDIRECTIONAL))
        if removed:
            processor.update_state(BatchUpdate(len(rows), removed, [], moves))
    assert done == {halves_of(song)[0].uid: alone(song, vocabulary) for song in range(SONGS)}


class Table:
    """Requests in slots, as model runner V2 keeps them; every step takes any rows in any order."""

    def __init__(self, config: Any, slots: int) -> None:
        self.prompt_len = SimpleNamespace(np=np.zeros(slots, dtype=np.int32))
        self.device = CPU
        self.processor = PairedProcessorV2(config, self)  # as much of a runner's state as is read
        self.free = list(range(slots))
        self.slots: dict[int, tuple[Half, list[int]]] = {}

    def add(self, half: Half, prompt: int) -> None:
        slot = self.free.pop()
        self.prompt_len.np[slot] = prompt
        assert self.processor.add_request(slot, params_of(half))
        self.slots[slot] = (half, [])

    def add_foreign(self) -> None:
        """A request that is none of ours, such as the engine's own warm-up."""
        assert not self.processor.add_request(self.free[-1], SamplingParams())

    def step(self, order: list[int], size: int, reading: Collection[int] = ()) -> None:
        """One forward over these slots; of those that are still reading their prompt, what is sampled is dropped."""
        logits = torch.stack([logits_of(self.slots[slot][0], len(self.slots[slot][1]), size) for slot in order])
        lengths = [self.prompt_len.np[slot] + len(self.slots[slot][1]) - 3 * (slot in reading) for slot in order]
        context: Any = SimpleNamespace(
            idx_mapping_np=np.array(order), seq_lens_upper_bound_np=np.array(lengths, dtype=np.int32)
        )
        tokens = self.processor.apply(logits, context).argmax(-1).tolist()
        for slot, token in zip(order, tokens, strict=True):
            if slot not in reading:
                self.slots[slot][1].append(token)

    def ended(self) -> Iterator[tuple[Half, list[int]]]:
        for slot in [slot for slot, (_, written) in self.slots.items() if len(written) == STEPS]:
            self.free.append(slot)
            yield self.slots.pop(slot)


def test_the_v2_class_finds_its_rows_in_any_order_and_forgets_who_left(config: Any, vocabulary: Vocabulary) -> None:
    table = Table(config, slots=7)
    chosen = random.Random(5)
    waiting = [(song, time) for time in (1, 2) for song in range(SONGS)]  # the later in slots that others have left
    done: list[tuple[Half, list[int]]] = []
    while waiting or table.slots:
        before = set(table.slots)
        while waiting and len(halves_of(*waiting[0])) < len(table.free):
            for half in halves_of(*waiting.pop(0)):
                table.add(half, prompt=chosen.randint(5, 90))
            table.add_foreign()
        songs = sorted({half.uid for half, _ in table.slots.values()})
        stepping = chosen.sample(songs, chosen.randint(1, len(songs)))
        order = [slot for slot, (half, _) in table.slots.items() if half.uid in stepping]
        table.step(chosen.sample(order, len(order)), vocabulary.size, reading=set(order) - before)
        done += table.ended()
    expected = {song: alone(song, vocabulary) for song in range(SONGS)}
    assert len(done) == 2 * (1 + 2 * (SONGS - 1))
    assert all(written == expected[half.decoding.seed] for half, written in done)


def test_halves_at_different_steps_are_made_to_part(config: Any, vocabulary: Vocabulary) -> None:
    table = Table(config, slots=3)
    cond, uncond = halves_of(1)
    table.add(cond, prompt=10)
    table.add(uncond, prompt=20)
    slots = list(table.slots)
    table.step(slots, vocabulary.size)

    table.step(slots[:1], vocabulary.size)  # one half alone
    table.step(slots[1:], vocabulary.size)  # and the other

    (_, first), (_, second) = table.slots.values()
    assert first[0] == second[0]
    assert first[1] == vocabulary.eos
    assert second[1] == vocabulary.newline
