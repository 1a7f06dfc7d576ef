"""vLLM: many songs at once, a guided one as two requests in lockstep, the engine in a process of its own.

vLLM reads its settings from the environment while it is imported; whoever imports this sets them before:
VLLM_CPU_KVCACHE_SPACE (CPU build, GiB), VLLM_NO_USAGE_STATS, DO_NOT_TRACK, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE.
"""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from models.errors import BadPlan, EngineDied, EngineError
from models.lm.backends.backend import EngineOptions, OnToken, Pulse, Run
from models.lm.guidance.pairs import Half
from models.lm.sampling import Order

SCHEDULER = "models.lm.guidance.scheduler.PairScheduler"
PROCESSORS = "models.lm.guidance.processors"
HALF_LAG_S = 10.0  # how long after its other half a half may end


class VllmBackend:
    name = "vllm"
    order = Order.TEMPERED

    def __init__(self, checkpoint: Path, options: EngineOptions) -> None:
        config = _engine_args(checkpoint, options).create_engine_config()
        name = "PairedProcessorV2" if config.use_v2_model_runner else "PairedProcessor"
        config.model_config.logits_processors = [f"{PROCESSORS}:{name}"]
        try:
            self._engine = AsyncLLM.from_vllm_config(config, disable_log_stats=True)
        except RuntimeError as error:
            raise EngineError(f"vLLM did not start for {checkpoint.name}: {error}; its own log says why") from error
        self._pulse = Pulse()

    async def generate(self, run: Run, on_token: OnToken) -> list[int]:
        uid = uuid.uuid4().hex
        works = [asyncio.ensure_future(self._half(run.prompt, Half(uid, True, run.decoding), run.max_tokens, on_token))]
        if run.unguided_prompt is not None:
            half = Half(uid, False, run.decoding)
            works.append(asyncio.ensure_future(self._half(run.unguided_prompt, half, run.max_tokens, _ignore)))
        try:
            # a half that ended alone would leave the other waiting for ever
            _, late = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            if late:
                _, late = await asyncio.wait(late, timeout=HALF_LAG_S)
            if late:
                raise BadPlan("one half of a guided song ended without the other")
            answers = [work.result() for work in works]
        finally:
            # the engine frees a request only when its own reader goes: both must
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
        if any(answer != answers[0] for answer in answers):
            raise BadPlan("the two halves of a guided song parted")
        return answers[0]

    async def _half(self, prompt: tuple[int, ...], half: Half, max_tokens: int, on_token: OnToken) -> list[int]:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=half.to_extra_args(),
        )
        name = f"{half.uid}-{'cond' if half.is_cond else 'uncond'}"
        ids: list[int] = []
        reason: str | None = None
        try:
            with self._pulse.run():
                async for output in self._engine.generate(TokensPrompt(prompt_token_ids=list(prompt)), params, name):
                    self._pulse.beat()
                    reason = output.outputs[0].finish_reason
                    for token in output.outputs[0].token_ids:
                        ids.append(token)
                        on_token()
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine is dead: {error}") from error
        except EngineGenerateError as error:
            raise EngineError(f"vLLM's engine failed: {error}") from error
        if reason not in ("stop", "length"):
            raise BadPlan(f"the engine ended a half of a song ({reason})")
        return ids

    async def check_health(self) -> None:
        try:
            await self._engine.check_health()
        except EngineDeadError as error:
            raise EngineDied(f"vLLM's engine is dead: {error}") from error
        self._pulse.check()

    def close(self) -> None:
        self._engine.shutdown()
        del self._engine  # its finaliser fails where it runs as late as the interpreter's end


def _engine_args(checkpoint: Path, options: EngineOptions) -> AsyncEngineArgs:
    return AsyncEngineArgs(
        model=str(checkpoint),
        dtype=options.dtype,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.batched_tokens,
        kv_cache_memory_bytes=options.kv_cache_memory_bytes,
        enforce_eager=options.enforce_eager,
        scheduler_cls=SCHEDULER,
        additional_config={"genres": str(options.genres) if options.genres else None},
        generation_config="vllm",  # a checkpoint's own sampling defaults would act beside ours
        enable_log_requests=False,
        disable_log_stats=True,
    )


def _ignore() -> None:
    """The halves write the same tokens; one of them is counted."""
