"""The 5 Hz language model: plans songs. Metadata once a job, then the audio codes of every song, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from models.errors import CheckpointError, UnknownModel
from models.lm.backends.backend import Backend, EngineOptions
from models.lm.constraints import Rules
from models.lm.decoding import Decoding
from models.lm.planner import Planner
from models.lm.planning import Drawing
from models.lm.prompts import Prompts, cot_text
from models.lm.sampling import Sampling
from models.lm.vocabulary import Vocabulary, read_genres
from models.lm.writing import Budget, Counts, Writer
from models.music import MusicRequest, OnProgress, SongPlan, ignore
from models.pipeline import plan_as_asked, wants_lm

__all__ = ["EngineOptions", "LmEngine", "build_backend"]


class LmEngine:
    """Implements models.pipeline.Lm over vLLM or transformers. Built, it is loaded; `warm_up` before first use."""

    def __init__(self, checkpoint: Path, options: EngineOptions | None = None, backend: Backend | None = None) -> None:
        options = options or EngineOptions()
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"the LM {checkpoint.name} has no tokenizer that can be read: {error}") from error
        self.name = checkpoint.name
        self._prompts = Prompts(tokenizer)
        self._backend = backend or build_backend(checkpoint, options)
        self._writer = Writer(
            self._backend,
            Vocabulary(tokenizer, read_genres(options.genres) if options.genres else ()),
            options.max_model_len,
        )

    async def plan(self, request: MusicRequest, on_progress: OnProgress = ignore) -> tuple[SongPlan, ...]:
        """One plan a song, in the order of the seeds. Values given by the caller come back unchanged.

        Raises UnknownModel, TooLong, BadPlan or EngineError. Cancelling it frees what its songs hold in the engine.
        """
        self._check_is_meant(request)
        if not wants_lm(request):
            return plan_as_asked(request)
        plans = await self._planner(on_progress).plan(request)
        return tuple(self._with_remarks(plan, request) for plan in plans)

    async def describe(self, request: MusicRequest) -> SongPlan:
        """The request's words and metadata, completed as its `sample_query` and `use_format` ask; neither plans codes.

        Raises as `plan` does.
        """
        self._check_is_meant(request)
        return self._with_remarks(await self._planner(ignore).describe(request), request)

    async def create_sample(
        self, query: str, is_instrumental: bool, language: str | None = None, drawing: Drawing | None = None
    ) -> SongPlan:
        """A whole song from a few words; none at all is answered too. Raises BadPlan, TooLong or EngineError."""
        return await self._planner(ignore).create_sample(query, is_instrumental, language, self._or_default(drawing))

    async def format(self, song: SongPlan, drawing: Drawing | None = None) -> SongPlan:
        """The song's words rewritten in more detail; metadata and language it has are kept as they are."""
        return await self._planner(ignore).format(song, self._or_default(drawing))

    async def understand(self, codes: tuple[int, ...], request: MusicRequest | None = None) -> SongPlan:
        """What audio codes sound like: caption, metadata, lyrics; drawn as the request says, where there is one."""
        if request is None:
            return await self._planner(ignore).understand(codes, self._or_default(None))
        self._check_is_meant(request)
        drawing = Drawing.of(request, self._writer.order, request.seeds[0])
        return self._with_remarks(await self._planner(ignore).understand(codes, drawing), request)

    async def warm_up(self) -> None:
        """A guided answer of a few codes, so that the first caller does not wait for what is made on first use."""
        prompts = self._prompts.codes("", "", cot_text({})), self._prompts.codes_unguided("", "", "")
        rules = Rules(begins_with_codes=True, fewest_codes=4, most_codes=4)
        decoding = Decoding(rules, Sampling(order=self._writer.order), scale=2.0, seed=0)
        await self._writer.write(prompts, decoding, Budget(5, 5), Counts(ignore).plan(5))

    async def check_health(self) -> None:
        """Raises EngineDied where the engine is dead or stuck."""
        await self._backend.check_health()

    def close(self) -> None:
        self._backend.close()

    def _check_is_meant(self, request: MusicRequest) -> None:
        if request.lm_model not in (None, self.name):
            raise UnknownModel(f"lm_model {request.lm_model!r} asked, this is {self.name}")

    def _with_remarks(self, plan: SongPlan, request: MusicRequest) -> SongPlan:
        if request.lm_backend in (None, self._backend.name):
            return plan
        remark = f"lm_backend: {request.lm_backend} asked, {self.name} runs on {self._backend.name}"
        return plan.model_copy(update={"remarks": (*plan.remarks, remark)})

    def _planner(self, on_progress: OnProgress) -> Planner:
        return Planner(self.name, self._writer, self._prompts, Counts(on_progress))

    def _or_default(self, drawing: Drawing | None) -> Drawing:
        return drawing or Drawing(Sampling(top_p=1.0, order=self._writer.order), seed=0)


def build_backend(checkpoint: Path, options: EngineOptions) -> Backend:
    """Loads only the libraries of the backend chosen."""
    if options.backend == "vllm":
        from models.lm.backends.vllm import VllmBackend  # noqa: PLC0415

        return VllmBackend(checkpoint, options)
    from models.lm.backends.torch import TorchBackend  # noqa: PLC0415

    return TorchBackend(checkpoint, options)
