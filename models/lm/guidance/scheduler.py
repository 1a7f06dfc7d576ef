"""Pairs stay whole in vLLM's scheduler: admitted in one step with whole prompts and reserved memory, ended together.

The stock scheduler is silently wrong for guided songs: halves that arrive apart, prompts cut in chunks and preemption
all part them. vLLM declares this interface non-public, so its version is pinned and tests hold the contract.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from models.errors import EngineError
from models.lm.guidance.lifetime import die_with_parent
from models.lm.guidance.pairs import SONG

logger = logging.getLogger(__name__)

LONE_HALF_TIMEOUT_S = 10.0


class PairScheduler(AsyncScheduler):
    """Requests wait here in groups, one (unguided) or two (a pair), until a whole group fits; first come, first served.

    A group is admitted when its whole prompts fit the step's token budget, its seats are free, and the blocks for
    prompts and all tokens they may write fit beside every other reservation: so no half is ever cut or preempted.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        die_with_parent()
        self._halves: dict[str, tuple[Request, float]] = {}  # by song, with the time of arrival
        self._groups: deque[list[Request]] = deque()  # complete, not yet admitted
        self._partners: dict[str, list[Request]] = {}  # by song, from the second half's arrival to the first's end
        self._reserved: dict[str, int] = {}  # blocks, by request
        self._failures: list[Request] = []  # ended here, the caller not yet told
        self._refuse_what_never_fits()

    def _refuse_what_never_fits(self) -> None:
        longest = self.max_model_len
        if self.max_num_scheduled_tokens < 2 * longest + self.max_num_running_reqs:
            raise EngineError(
                f"max_num_batched_tokens is {self.max_num_scheduled_tokens}; a pair of {longest} tokens a half beside "
                f"{self.max_num_running_reqs} running requests needs {2 * longest + self.max_num_running_reqs}"
            )
        if self._blocks < 2 * self._blocks_of(longest):
            raise EngineError(
                f"the KV cache has {self._blocks} blocks of {self.block_size} tokens; "
                f"one pair of {longest} tokens a half needs {2 * self._blocks_of(longest)}"
            )
        if self.max_num_running_reqs < 2:
            raise EngineError(f"max_num_seqs is {self.max_num_running_reqs}; a pair needs 2")

    @property
    def _blocks(self) -> int:
        return self.kv_cache_manager.block_pool.num_gpu_blocks - 1  # one is vLLM's null block

    def _blocks_of(self, tokens: int) -> int:
        return -(-min(tokens, self.max_model_len) // self.block_size)

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        song = _song_of(request)
        if song is None or song["decoding"]["scale"] <= 1.0:
            self._groups.append([request])
            return
        first = self._halves.pop(song["uid"], None)
        if first is None:
            self._halves[song["uid"]] = (request, time.monotonic())
        else:
            self._partners[song["uid"]] = [first[0], request]
            self._groups.append([first[0], request])

    def get_request_counts(self) -> tuple[int, int]:
        # the engine stops stepping at zero, and held requests are not yet in the base class's queues
        running, waiting = super().get_request_counts()
        return running, waiting + len(self._halves) + sum(map(len, self._groups)) + len(self._failures)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self._end_lone_halves()
        self._admit()
        output = super().schedule(throttle_prefills)
        self._end_parted_pairs(output)
        return output

    def _admit(self) -> None:
        self._reserved = {name: blocks for name, blocks in self._reserved.items() if name in self.requests}
        free_blocks = self._blocks - sum(self._reserved.values())
        free_seats = self.max_num_running_reqs - len(self.running) - len(self.waiting)
        free_tokens = self.max_num_scheduled_tokens - len(self.running) - sum(r.num_tokens for r in self.waiting)
        while self._groups:
            group = self._groups[0]
            blocks = [self._blocks_of(request.num_prompt_tokens + request.max_tokens) for request in group]
            tokens = sum(request.num_tokens for request in group)
            if sum(blocks) > free_blocks or tokens > free_tokens or len(group) > free_seats:
                return  # a blocked head blocks the rest, so that nothing starves
            self._groups.popleft()
            for request, needed in zip(group, blocks, strict=True):
                self._reserved[request.request_id] = needed
                del self.requests[request.request_id]
                super().add_request(request)
            free_blocks, free_tokens, free_seats = (
                free_blocks - sum(blocks),
                free_tokens - tokens,
                free_seats - len(group),
            )

    def _end_lone_halves(self) -> None:
        now = time.monotonic()
        for uid, (request, since) in list(self._halves.items()):
            if now - since > LONE_HALF_TIMEOUT_S:
                logger.error("the other half of song %s did not arrive within %g s", uid, LONE_HALF_TIMEOUT_S)
                self._fail([request])

    def _end_parted_pairs(self, output: SchedulerOutput) -> None:
        scheduled = output.num_scheduled_tokens
        for uid, halves in list(self._partners.items()):
            if len({half.request_id in scheduled for half in halves}) > 1:
                logger.error("the halves of song %s were not scheduled together", uid)
                self._fail(halves)

    def _fail(self, requests: list[Request]) -> None:
        self._failures += requests
        self.finish_requests([request.request_id for request in requests], RequestStatus.FINISHED_ABORTED)

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self._failures:
            told = outputs.setdefault(request.client_index, EngineCoreOutputs())
            told.outputs.append(
                EngineCoreOutput(request_id=request.request_id, new_token_ids=[], finish_reason=FinishReason.ABORT)
            )
        self._failures.clear()
        return outputs

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        if request_ids is not None:
            request_ids = self._with_partners([request_ids] if isinstance(request_ids, str) else request_ids)
            self._forget(request_ids)
        return super().finish_requests(request_ids, finished_status)

    def _with_partners(self, request_ids: Iterable[str]) -> set[str]:
        ids = set(request_ids)
        for halves in self._partners.values():
            if any(half.request_id in ids for half in halves):
                ids |= {half.request_id for half in halves}
        return ids

    def _forget(self, ids: set[str]) -> None:
        self._halves = {uid: held for uid, held in self._halves.items() if held[0].request_id not in ids}
        self._groups = deque(group for group in self._groups if not any(r.request_id in ids for r in group))

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        if (song := _song_of(request)) is not None:
            self._partners.pop(song["uid"], None)
        return super()._free_request(request, *args, **kwargs)


def _song_of(request: Request) -> dict[str, Any] | None:
    params = request.sampling_params
    return (params.extra_args or {}).get(SONG) if params is not None else None
