"""transformers with a static cache: one song at a time, on any device transformers knows. The API calls it `pt`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, StaticCache

from models.errors import CheckpointError, EngineDied, OutOfMemory
from models.lm.backends.backend import EngineOptions, OnToken, Pulse, Run
from models.lm.decoding import Chooser, SongDecoder
from models.lm.sampling import Order
from models.lm.vocabulary import Vocabulary, read_genres


class TorchBackend:
    name = "pt"
    order = Order.UNTEMPERED

    def __init__(self, checkpoint: Path, options: EngineOptions) -> None:
        self._device = torch.device(options.device)
        dtype = options.dtype if options.dtype != "auto" else ("bfloat16" if self._device.type == "cuda" else "float32")
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the LM {checkpoint.name} could not be read: {error}") from error
        self._model = model.to(self._device).eval()
        genres = read_genres(options.genres) if options.genres else ()
        self._vocabulary = Vocabulary(AutoTokenizer.from_pretrained(checkpoint), genres, self._device)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lm")
        self._pulse = Pulse()
        self._is_closed = False

    async def generate(self, run: Run, on_token: OnToken) -> list[int]:
        loop = asyncio.get_running_loop()
        is_cancelled = Event()

        def tell() -> None:
            self._pulse.beat()
            loop.call_soon_threadsafe(on_token)

        job = self._thread.submit(self._generate, run, tell, is_cancelled)
        work = asyncio.wrap_future(job)
        try:
            with self._pulse.run():
                return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not job.cancel():  # it has begun, and lets go at its next token
                is_cancelled.set()
                await asyncio.gather(work, return_exceptions=True)
            raise

    def _generate(self, run: Run, tell: OnToken, is_cancelled: Event) -> list[int]:
        decoder = SongDecoder(self._vocabulary, run.decoding, run.prompt)
        chooser = Chooser()
        ids: list[int] = []
        try:
            with torch.inference_mode():
                cond = self._half(run.prompt, run.max_tokens)
                uncond = self._half(run.unguided_prompt, run.max_tokens) if run.unguided_prompt is not None else None
                while len(ids) < run.max_tokens and not is_cancelled.is_set():
                    ids.append(int(chooser.choose([(decoder, cond.logits, uncond.logits if uncond else None)])[0]))
                    tell()
                    if ids[-1] == self._vocabulary.eos:
                        break
                    for half in (cond, uncond):
                        if half is not None:
                            half.read([ids[-1]])
        except torch.cuda.OutOfMemoryError as error:
            raise OutOfMemory(f"the LM ran out of memory with {len(run.prompt)} tokens of prompt") from error
        return ids

    def _half(self, prompt: tuple[int, ...], max_tokens: int) -> _Half:
        half = _Half(self._model, len(prompt) + max_tokens)
        half.read(prompt)
        return half

    async def check_health(self) -> None:
        if self._is_closed:
            raise EngineDied("the LM is closed")
        self._pulse.check()

    def close(self) -> None:
        self._is_closed = True
        self._thread.shutdown(cancel_futures=True)


class _Half:
    """One sequence with its own cache, at its own length."""

    def __init__(self, model: Any, longest: int) -> None:
        self._model = model
        self._cache = StaticCache(config=model.config, max_cache_len=longest)
        self._length = 0
        self.logits = torch.empty(0)  # (vocabulary), of the last token read

    def read(self, ids: Any) -> None:
        device = self._model.device
        tokens: Tensor = torch.tensor([list(ids)], device=device)
        positions = torch.arange(self._length, self._length + tokens.shape[1], device=device)
        output = self._model(
            input_ids=tokens,
            past_key_values=self._cache,
            position_ids=positions[None],
            use_cache=True,
            logits_to_keep=1,
        )
        self._length += tokens.shape[1]
        self.logits = output.logits[0, -1]
