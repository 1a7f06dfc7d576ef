"""Guided decoding written a second time, as plainly as possible, over transformers: no code of ours, no batch, no mask
tables. What the engine writes is held against it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Song:
    """`codes` audio codes, then the end. `scale` above 1 is guided; `temperature` 0 is greedy; `top_k` 0 is off."""

    prompt: tuple[int, ...]
    unguided: tuple[int, ...]
    codes: int
    scale: float
    seed: int
    temperature: float = 0.85
    top_k: int = 0
    top_p: float = 0.9


class PlainLoop:
    def __init__(self, checkpoint: Path) -> None:
        tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        self._model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self._end = tokenizer.eos_token_id
        found = {token: re.fullmatch(r"<\|audio_code_(\d+)\|>", text) for text, token in tokenizer.get_vocab().items()}
        self._codes = np.array(sorted(token for token, match in found.items() if match and int(match[1]) <= 63_999))

    def write(self, song: Song) -> list[int]:
        random = Random(song.seed)
        halves = [_Half(self._model, song.prompt), _Half(self._model, song.unguided)]
        written: list[int] = []
        for _ in range(song.codes):
            cond, uncond = (half.logits[self._codes] for half in halves)
            logits = uncond + song.scale * (cond - uncond) if song.scale > 1 else cond
            written.append(int(self._codes[_choose(logits, song, random)]))
            for half in halves:
                half.read((written[-1],))
        return [*written, self._end]


class _Half:
    def __init__(self, model: Any, prompt: tuple[int, ...]) -> None:
        self._model = model
        self._past: Any = None
        self.logits: NDArray[np.float64]
        self.read(prompt)

    def read(self, ids: tuple[int, ...]) -> None:
        with torch.inference_mode():
            out = self._model(torch.tensor([ids]), past_key_values=self._past, use_cache=True)
        self._past = out.past_key_values
        self.logits = out.logits[0, -1].double().numpy()


def _choose(logits: NDArray[np.float64], song: Song, random: Random) -> int:
    """The song's first draws, of as many as make a miss of the whole nucleus unlikelier than 1e-12, that is inside."""
    if song.temperature == 0:
        return int(logits.argmax())
    chances = np.exp((logits - logits.max()) / song.temperature)
    if song.top_k:
        chances[logits < np.sort(logits)[-song.top_k]] = 0
    chances /= chances.sum()
    if song.top_p >= 1:
        return int((chances.cumsum() > random.random()).argmax())
    order = np.argsort(-chances, kind="stable")
    nucleus = set(order[chances[order].cumsum() - chances[order] <= song.top_p].tolist())
    tries = int(np.ceil(np.log(1e-12) / np.log(1 - song.top_p)))
    drawn = [int((chances.cumsum() > random.random()).argmax()) for _ in range(tries)]
    return next(index for index in drawn if index in nucleus)


WORDS = "a slow warm song with piano and rain , bright drums over deep bass in the night , voice soft like wood".split()


def songs_for(tokenizer: Any) -> list[Song]:
    """Eight guided songs and two that are not, greedy and sampled, with prompts of unequal lengths."""
    chosen = Random(1)

    def prompt(words: int) -> tuple[int, ...]:
        return tuple(tokenizer.encode(" ".join(chosen.choices(WORDS, k=words))))

    return [
        Song(
            prompt=prompt(chosen.randint(60, 180)),
            unguided=prompt(chosen.randint(20, 120)),
            codes=chosen.randint(40, 60),
            scale=chosen.choice([1.5, 2.0, 3.0]) if number < 8 else 1.0,
            seed=number,
            temperature=0.0 if number % 2 else 0.85,
            top_k=chosen.choice([0, 50]),
        )
        for number in range(10)
    ]
