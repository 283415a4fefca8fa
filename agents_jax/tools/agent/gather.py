"""One batch out of what several threads ask at once, so that a local engine is not asked in turn.

The local engine answers one batch at a time; agents that run side by side each ask for one answer.
"""

from __future__ import annotations

import asyncio
import collections
from typing import Any

from agents_jax.llm import BaseModel, CallError, LanguageModel

_WAIT_S = 0.005  # for others to join a batch: little beside an answer


class GatheringModel(BaseModel):
    """A model that hands requests on in batches: all that came while the last batch ran.

    Args:
      model: answers; it is not closed with this one.
      concurrency: requests under way at once.
    """

    def __init__(self, model: LanguageModel, concurrency: int):
        super().__init__(
            model.name, model.capabilities, identity=model.identity, concurrency=concurrency
        )
        self._model = model
        self._waiting: dict[str, list[tuple[Any, asyncio.Future]]] = collections.defaultdict(list)
        self._handing: dict[str, asyncio.Task] = {}

    async def _generate(self, part):
        return await self._ask(part)

    async def _score(self, part):
        return await self._ask(part)

    async def _hidden_states(self, part):
        return await self._ask(part)

    async def _ask(self, part: Any) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._waiting[part.kind].append((part, answer))
        if part.kind not in self._handing:
            self._handing[part.kind] = asyncio.ensure_future(self._hand_on(part.kind))
        result = await answer
        if result.error is not None:
            raise CallError(
                result.error.kind, result.error.message, attempts=result.error.attempts,
                history=result.attempts,
            )  # fmt: skip
        return result

    async def _hand_on(self, kind: str) -> None:
        """Batches of one kind, until nothing waits."""
        try:
            while self._waiting[kind]:
                await asyncio.sleep(_WAIT_S)
                batch = self._waiting.pop(kind)
                batch = [(part, answer) for part, answer in batch if not answer.done()]
                if batch:
                    await self._hand_on_batch(kind, batch)
        finally:
            del self._handing[kind]

    async def _hand_on_batch(self, kind: str, batch: list[tuple[Any, asyncio.Future]]) -> None:
        ask = {
            "generate": self._model.agenerate,
            "score": self._model.ascore,
            "hidden_states": self._model.ahidden_states,
        }[kind]
        early = {id(part): answer for part, answer in batch}

        def tell(part: Any, result: Any) -> None:
            # A part that was split or copied on its way is told of at the batch's end.
            if id(part) in early and not early[id(part)].done() and result.error is None:
                early[id(part)].set_result(result)

        try:
            results = await ask([part for part, _ in batch], on_error="return", on_answer=tell)
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.done():  # told of before, or nobody waits any more
                    answer.set_result(result)
        except BaseException as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
