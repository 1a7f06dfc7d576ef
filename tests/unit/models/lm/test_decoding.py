from __future__ import annotations

import random

import pytest
import torch

from models.lm.constraints import Constraint, Rules, Then
from models.lm.decoding import Chooser, Decoding, SongDecoder
from models.lm.guidance.pairs import Half, Pairs, RowOfHalf
from models.lm.sampling import Order, Sampling
from models.lm.trace import trace
from models.lm.vocabulary import Vocabulary

CODES = Rules(begins_with_codes=True, fewest_codes=40, most_codes=40)


def logits_for(vocabulary: Vocabulary, seed: int) -> torch.Tensor:
    return torch.randn(vocabulary.size, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("order", list(Order))
def test_a_penalty_counts_what_was_written_and_on_one_backend_the_prompt(order: Order, vocabulary: Vocabulary) -> None:
    first, second, third = vocabulary.codes.ids[:3].tolist()
    sampling = Sampling(temperature=0.0, repetition_penalty=2.0, order=order)
    song = SongDecoder(vocabulary, Decoding(CODES, sampling, 1.0, 0), prompt=[third])
    logits = torch.full((vocabulary.size,), -50.0)
    logits[[first, second, third]] = torch.tensor([4.0, 3.0, 5.0])

    written = [int(Chooser().choose([(song, logits, None)])[0]) for _ in range(3)]

    if order is Order.TEMPERED:
        assert written == [third, first, second]  # 5, then 4 beside 2.5, then 3 beside 2 and 2.5
    else:
        assert written == [first, second, third]  # the prompt's is 2.5 from the beginning


def test_a_decoder_remembers_more_tokens_than_it_first_has_room_for(vocabulary: Vocabulary) -> None:
    rules = Rules(begins_with_codes=True, fewest_codes=600, most_codes=600)
    song = SongDecoder(vocabulary, Decoding(rules, Sampling(temperature=0.0, repetition_penalty=5.0), 1.0, 0))
    logits = torch.zeros(vocabulary.size)
    logits[vocabulary.codes.ids] = torch.linspace(10, 9, len(vocabulary.codes))
    chooser = Chooser()
    written = [int(chooser.choose([(song, logits, None)])[0]) for _ in range(600)]
    assert written == vocabulary.codes.ids[:600].tolist()


def pair(number: int, sampling: Sampling) -> list[Half]:
    decoding = Decoding(CODES, sampling, 2.0, number)
    return [Half(str(number), is_cond, decoding) for is_cond in (True, False)]


def test_a_song_that_fails_parts_and_its_neighbours_go_on(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs, alone = Pairs(vocabulary), Pairs(vocabulary)
    rows = [RowOfHalf(2 * n + i, 0, half) for n in range(3) for i, half in enumerate(pair(n, Sampling(top_k=n + 5)))]
    fresh = torch.stack([logits_for(vocabulary, row.row) for row in rows])
    healthy = fresh.clone()
    alone.write(healthy, rows)
    look = SongDecoder.look

    def fail_for_one(self: SongDecoder, *logits: torch.Tensor) -> object:
        if self.sampling.top_k == 6:
            raise RuntimeError("a fault of this song")
        return look(self, *logits)

    monkeypatch.setattr(SongDecoder, "look", fail_for_one)
    logits = fresh.clone()
    pairs.write(logits, rows)

    tokens = logits.argmax(-1).tolist()
    assert tokens[2:4] == [vocabulary.eos, vocabulary.newline]
    assert [tokens[i] for i in (0, 1, 4, 5)] == [healthy.argmax(-1).tolist()[i] for i in (0, 1, 4, 5)]


class Row:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def cut(self, columns: object) -> torch.Tensor:
        return columns.cut(self.logits)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("seed", range(25))
def test_a_trace_tells_the_walk_that_was_walked(vocabulary: Vocabulary, seed: int) -> None:
    """Drawn tokens need not be the likeliest, and one rule looks at the likeliest."""
    rules = Rules(then=Then.LYRICS, skipped=frozenset({"genres"}))
    constraint, chosen = Constraint(vocabulary, rules), random.Random(seed)
    newline, space = vocabulary.newline, vocabulary.encode(" ")[0]
    name = [vocabulary.encode(text)[0] for text in ("key", "mood", "d")]
    walked, tokens = [], []
    for step in range(120):
        logits = logits_for(vocabulary, 1000 * seed + step)
        for token in (newline, space, *name, vocabulary.encode(":")[0]):
            logits[token] += 9 * chosen.random()
        where, columns = constraint.where, constraint.allow(Row(logits))
        weights = torch.softmax(columns.cut(logits) / 2, -1)
        token = int(columns.ids[torch.multinomial(weights, 1, generator=torch.Generator().manual_seed(step))])
        walked.append(f"{step}: {where}, {len(columns)} allowed")
        tokens.append(token)
        constraint.advance(token)
    told = [line.split(", wrote")[0] for line in trace(vocabulary, rules, tokens)]
    assert told == walked
