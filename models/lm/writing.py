"""From two prompts to an answer: tokens in, room checked, tokens out."""

from __future__ import annotations

from dataclasses import dataclass

from models.errors import TooLong
from models.lm.backends.backend import Backend, OnToken, Run
from models.lm.decoding import Decoding
from models.lm.sampling import Order
from models.lm.vocabulary import Vocabulary
from models.music import OnProgress


@dataclass(frozen=True, slots=True)
class Budget:
    """`wanted` tokens may be written; with room for fewer than `needed` the prompt is too long."""

    needed: int
    wanted: int


class Writer:
    """Has prompts answered by a backend. `context` bounds prompt and answer, in tokens."""

    def __init__(self, backend: Backend, vocabulary: Vocabulary, context: int) -> None:
        self._backend = backend
        self._context = context
        self.vocabulary = vocabulary

    @property
    def order(self) -> Order:
        return self._backend.order

    async def write(self, prompts: tuple[str, str], decoding: Decoding, budget: Budget, on_token: OnToken) -> list[int]:
        """The answer's tokens, the end token included where there is one; the second prompt guides a guided one.

        Raises TooLong, BadPlan or EngineError.
        """
        prompt = tuple(self.vocabulary.encode(prompts[0]))
        unguided = tuple(self.vocabulary.encode(prompts[1])) if decoding.is_guided else None
        longest = max(len(prompt), len(unguided or ()))
        room = self._context - longest
        if room < budget.needed:
            raise TooLong(
                f"prompt and lyrics take {longest} tokens and the answer at least {budget.needed}; "
                f"this LM has room for {self._context}"
            )
        run = Run(prompt, unguided, decoding, min(budget.wanted, room))
        return await self._backend.generate(run, on_token)


class Counts:
    """Adds up the tokens of a job's runs. The share done never falls, whatever a run took beyond its plan."""

    def __init__(self, on_progress: OnProgress) -> None:
        self._on_progress = on_progress
        self._done: list[int] = []
        self._planned: list[int] = []
        self._expected = 0
        self._share = 0.0

    def expect(self, tokens: int) -> None:
        """About so many tokens will come of runs that are not planned yet."""
        self._expected = tokens

    def plan(self, tokens: int) -> OnToken:
        """Announces a run of about so many tokens. What is returned is called once a token."""
        index = len(self._done)
        self._done.append(0)
        self._planned.append(tokens)
        self._expected = max(0, self._expected - tokens)

        def on_token() -> None:
            self._done[index] += 1
            self._planned[index] = max(self._planned[index], self._done[index])
            self._report()

        return on_token

    def settle(self) -> None:
        """All runs so far have ended, with the tokens they took."""
        self._planned = list(self._done)

    def _report(self) -> None:
        done, planned = sum(self._done), sum(self._planned) + self._expected
        if done < self._share * planned:
            planned = int(done / self._share)
        self._share = done / planned
        self._on_progress(done, planned)
