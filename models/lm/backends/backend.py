"""What the LM engine asks of whatever runs the model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from models.errors import EngineDied
from models.lm.decoding import Decoding
from models.lm.sampling import Order

OnToken = Callable[[], None]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine is built. `max_model_len` bounds prompt and answer of one half, in tokens.

    `kv_cache_memory_bytes` is for GPUs; vLLM's CPU build reads VLLM_CPU_KVCACHE_SPACE instead. `genres` is a file with
    one genre a line; without it the LM writes none.
    """

    backend: Literal["vllm", "torch"] = "vllm"
    device: str = "cpu"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    max_num_seqs: int = 16
    max_model_len: int = 8192
    max_num_batched_tokens: int | None = None  # None: as many as the largest pair needs
    kv_cache_memory_bytes: int | None = None
    enforce_eager: bool = False
    genres: Path | None = None

    @property
    def batched_tokens(self) -> int:
        return self.max_num_batched_tokens or 2 * self.max_model_len + self.max_num_seqs


@dataclass(frozen=True, slots=True)
class Run:
    """One answer to write: a prompt, and for a guided one the prompt of the half that guides it."""

    prompt: tuple[int, ...]
    unguided_prompt: tuple[int, ...] | None
    decoding: Decoding
    max_tokens: int


STUCK_S = 120.0  # runs are under way and no token came


class Pulse:
    """Notices an engine that is stuck: runs are under way, and none of them was heard of for long."""

    def __init__(self) -> None:
        self._under_way = 0
        self._heard_at = 0.0

    @contextmanager
    def run(self) -> Iterator[None]:
        if self._under_way == 0:
            self.beat()
        self._under_way += 1
        try:
            yield
        finally:
            self._under_way -= 1

    def beat(self) -> None:
        """Something was heard."""
        self._heard_at = time.monotonic()

    def check(self) -> None:
        """Raises EngineDied."""
        silent_s = time.monotonic() - self._heard_at
        if self._under_way and silent_s > STUCK_S:
            raise EngineDied(f"{self._under_way} runs are under way and no token came for {silent_s:.0f} s")


class Backend(Protocol):
    @property
    def name(self) -> str:
        """As the API calls it."""
        ...

    @property
    def order(self) -> Order:
        """The order of sampling this backend's users know."""
        ...

    async def generate(self, run: Run, on_token: OnToken) -> list[int]:
        """The answer's tokens, the end token included; cancelling frees its memory.

        Raises BadPlan, EngineDied or EngineError.
        """
        ...

    async def check_health(self) -> None:
        """Raises EngineDied where nothing more will come of this engine."""
        ...

    def close(self) -> None: ...
