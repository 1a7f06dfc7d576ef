"""The LM: songs decoded together against one after another, and what our processor adds to a step.

    python -m benchmarks.lm                     tiny random weights, made on the spot
    python -m benchmarks.lm --checkpoint DIR    a real LM

Both figures of a pair are of one run, on one engine. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

import torch

from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.engine import EngineOptions, LmEngine
from models.lm.guidance.pairs import Half, Pairs, RowOfHalf
from models.lm.sampling import Sampling
from models.lm.vocabulary import Vocabulary
from models.music import MusicRequest
from models.tiny import LM, make_tokenizer, write_tiny

FIRST_CODE, REAL_CODES, REAL_SIZE = 151_669, 65_535, 217_204
TOGETHER = (1, 2, 4, 8)
STEPS = 300
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "top_p 1": Sampling(top_p=1.0),
    "top_p 0.9 (the default)": Sampling(),
    "top_p 0.9, top_k 50": Sampling(top_k=50),
    "top_p 0.9, penalty 1.1": Sampling(repetition_penalty=1.1),
}


class RealSize:
    """A tiny tokenizer whose audio codes stand where the real one has them."""

    def __init__(self) -> None:
        self._tiny: Any = make_tokenizer(audio_codes=0)
        self.eos_token_id = self._tiny.eos_token_id

    def __len__(self) -> int:
        return REAL_SIZE

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tiny, name)

    def get_vocab(self) -> dict[str, int]:
        return {f"<|audio_code_{code}|>": FIRST_CODE + code for code in range(REAL_CODES)}


def processor_step(vocabulary: Vocabulary, sampling: Sampling, pairs: int, exact: bool) -> list[float]:
    """Milliseconds of each step of the code phase, on one core."""
    codes = STEPS + 100
    rules = Rules(begins_with_codes=True, fewest_codes=codes if exact else 0, most_codes=codes)
    written = Pairs(vocabulary)
    halves = [
        (Half(str(song), is_cond, Decoding(rules, sampling, 2.0, song)), 2 * song + (not is_cond))
        for song in range(pairs)
        for is_cond in (True, False)
    ]
    fresh = torch.randn(2 * pairs, REAL_SIZE, generator=torch.Generator().manual_seed(0)) * 3
    taken = []
    for step in range(STEPS):
        logits = fresh.clone()
        began = time.perf_counter()
        written.write(logits, [RowOfHalf(row, step, half) for half, row in halves])
        taken.append((time.perf_counter() - began) * 1000)
    return taken


async def decode(engine: LmEngine, songs: int, seconds: float, at_once: bool) -> float:
    """Codes a second of `songs` guided songs, every one of `seconds`."""
    request = MusicRequest(
        model="any",
        prompt="a calm piano melody",
        lyrics="[Verse]\nla la la",
        bpm=90,
        key_scale="C major",
        time_signature="4",
        audio_duration=seconds,
        thinking=True,
        lm_cfg_scale=2.0,
        seeds=tuple(range(songs)),
        allow_lm_batch=at_once,
    )
    began = time.perf_counter()
    plans = await engine.plan(request)
    return sum(len(plan.codes) for plan in plans) / (time.perf_counter() - began)


async def batching(checkpoint: Path, seconds: float, eager: bool) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    engine = LmEngine(
        checkpoint, EngineOptions(device=device, enforce_eager=eager, max_num_seqs=16, max_model_len=4096)
    )
    try:
        await engine.warm_up()
        await decode(engine, 8, seconds, at_once=True)
        for songs in TOGETHER:
            apart = await decode(engine, songs, seconds, at_once=False)
            together = await decode(engine, songs, seconds, at_once=True)
            tell(songs=songs, codes_per_s=round(together), one_after_another=round(apart), ratio=together / apart)
    finally:
        engine.close()


def processor() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    vocabulary = Vocabulary(RealSize())
    for name, sampling in SAMPLINGS.items():
        for exact in (True, False):
            taken = processor_step(vocabulary, sampling, 8, exact)
            tell(
                processor=name,
                length="given" if exact else "left to the LM",
                pairs=8,
                vocabulary=REAL_SIZE,
                ms_per_step_median=statistics.median(taken),
                ms_per_step_least=min(taken),
            )
    torch.set_num_threads(threads)


def tell(**figures: Any) -> None:
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in figures.items()}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="an LM's folder; tiny random weights without it")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each song")
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model")
    parser.add_argument("--only", choices=["processor", "batching"])
    asked = parser.parse_args()
    if asked.only != "batching":
        processor()
    if asked.only != "processor":
        with tempfile.TemporaryDirectory() as folder:
            if asked.checkpoint is None:
                write_tiny(Path(folder) / "tiny")
            checkpoint = asked.checkpoint or Path(folder) / "tiny" / LM
            asyncio.run(batching(checkpoint, asked.seconds, eager=not asked.compile))


if __name__ == "__main__":
    main()
