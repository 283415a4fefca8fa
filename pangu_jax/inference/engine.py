"""Continuous batching: requests join and leave between dispatches of the compiled programs.

Each `step` admits waiting requests, then either reads one chunk of the prompts that are not read
yet or lets every row that is ready decode a few tokens. The engine is not safe to share between
threads; see `pangu_jax.inference.async_engine`.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.inference import programs
from pangu_jax.inference.batch import (
    at_least,
    block_tables,
    choice_of,
    chunk_of,
    chunk_width,
    column,
    joined,
    keep_hidden,
    keep_prompt_logprobs,
    logprob_at,
)
from pangu_jax.inference.checks import check_adapters, check_request
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.detokenize import IncrementalText
from pangu_jax.inference.end_tokens import end_tokens
from pangu_jax.inference.errors import EngineBusy, RequestError, ServerClosed
from pangu_jax.inference.forward import create_pages
from pangu_jax.inference.hidden_states import counted, hidden_states
from pangu_jax.inference.last_states import last_states
from pangu_jax.inference.request import Completion, Delta, FinishReason, HiddenStatesAt, Request
from pangu_jax.inference.row import Row
from pangu_jax.inference.sampling import Chosen, Features
from pangu_jax.inference.schedule import Schedule
from pangu_jax.inference.weights import prepare_weights
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.lora import Adapter, fingerprint, layer_slice, select, stack
from pangu_jax.weights import LoadedModel
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_CHUNKS_IN_A_ROW = 4


class Engine:
    """A model that answers many requests at once.

    Args:
      model: configuration, parameters and tokenizer, as `load_weights` returns them.
      config: sizes and types.
      adapters: LoRA adapters that requests may name.
      model_name: for people and protocols.

    Raises:
      ValueError: no tokenizer, or adapters for another base.
    """

    def __init__(
        self,
        model: LoadedModel,
        config: EngineConfig = EngineConfig(),  # noqa: B008 (frozen)
        *,
        adapters: Sequence[Adapter] = (),
        model_name: str = "model",
    ):
        if model.tokenizer is None:
            raise ValueError("The model has no tokenizer; an engine needs one to make text.")
        self.model: DecoderConfig = dataclasses.replace(model.config, remat="none")
        self.config = config
        self.model_name = model_name
        self.tokenizer: LoadedTokenizer = model.tokenizer
        self.end_ids = end_tokens(model.tokenizer)
        self.weights = prepare_weights(model.config, model.params, config.weights)
        self.adapter_names = tuple(adapter.name for adapter in adapters)
        self._adapters = None
        if adapters:
            base = fingerprint(model.config, model.params)
            stacked = stack(adapters, config=model.config, base_fingerprint=base)
            self._adapters = tuple(
                layer_slice(stacked, layer) for layer in range(model.config.num_layers)
            )
        self._schedule = Schedule(config)
        self.statistics = self._schedule.statistics
        self._grammars: Any = None
        self._done: dict[str, Completion] = {}
        self._closed = False
        self._chunks_in_a_row = 0
        self._reset_cache()

    def _reset_cache(self) -> None:
        config = self.config
        dtype = config.cache_dtype
        if dtype == "auto":
            dtype = self.model.dtype
            if dtype == "bfloat16" and jax.default_backend() == "cpu":
                dtype = "float32"  # XLA on CPU would convert whole pools in every layer
        self._pages = create_pages(self.model, config.pages, config.page_size, dtype)
        self._schedule.clear_pages()

    # ------------------------------------------------------------------ requests in and out

    @property
    def context_length(self) -> int:
        return self.config.context_length

    @property
    def cache_itemsize(self) -> int:
        """Bytes of one number in the cache."""
        return self._pages[0][0].dtype.itemsize

    @property
    def idle(self) -> bool:
        """Whether nothing runs or waits."""
        return self._schedule.idle

    def add(self, request: Request) -> None:
        """Queues a request.

        Raises:
          RequestError: it can never be served: an empty prompt, ids beyond the vocabulary, a prompt
            that fills the context, an unknown adapter, a grammar that cannot be compiled, an id in
            use, or too many waiting.
          ServerClosed: `close` was called.
        """
        if self._closed:
            raise ServerClosed("The engine is shutting down and takes no more requests.")
        self._check(request)
        sampling = request.sampling
        room = self.context_length - len(request.prompt_ids)
        limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        self._schedule.waiting.append(
            Row(
                request=request, limit=limit, page_size=self.config.page_size,
                text=IncrementalText(self.tokenizer.tokenizer, sampling.stop),
                grammar=self._grammar(sampling.grammar),
            )
        )  # fmt: skip

    def cancel(self, request_id: str) -> Delta | None:
        """Ends a request; its last news, or None where it is not here (any more)."""
        row = self._schedule.find(request_id)
        if row is None:
            return None
        return self._finish(row, Delta(id=request_id, finish_reason="cancelled"))

    def take(self, request_id: str) -> Completion:
        """The completion of a finished request, which the engine then forgets.

        Raises:
          KeyError: not finished, or taken before.
        """
        return self._done.pop(request_id)

    def close(self) -> None:
        """Takes no more requests; running ones go on while `step` is called."""
        self._closed = True

    def generate(
        self, requests: Iterable[Request], *, on_delta: Callable[[Delta], None] | None = None
    ) -> list[Completion]:
        """All requests, answered together; completions in their order.

        Raises:
          RequestError: one of them cannot be served; nothing is run then.
        """
        requests = list(requests)
        for request in requests:
            self._check(request)
            self._grammar(request.sampling.grammar)
        if len({request.id for request in requests}) < len(requests):
            raise RequestError("Two requests have the same id; ids must differ.")
        done = {c.id: c for c in self.completions(requests, on_delta=on_delta)}
        return [done[request.id] for request in requests]

    def completions(
        self, requests: Iterable[Request], *, on_delta: Callable[[Delta], None] | None = None
    ) -> Iterator[Completion]:
        """Completions as they finish; a request that cannot be served is one with an error.

        Leaving early cancels the rest.
        """
        queue = collections.deque(requests)
        ahead = min(self.config.max_rows, self.config.waiting_limit or self.config.max_rows)
        mine: set[str] = set()
        try:
            while queue or mine:
                while queue and len(self._schedule.waiting) < ahead:
                    request = queue.popleft()
                    try:
                        self.add(request)
                        mine.add(request.id)
                    except RequestError as error:
                        yield Completion(
                            id=request.id, text="", token_ids=(), finish_reason="error",
                            prompt_tokens=len(request.prompt_ids), error=str(error),
                        )  # fmt: skip
                for delta in self.step():
                    if on_delta is not None:
                        on_delta(delta)
                    if delta.finish_reason is not None and delta.id in mine:
                        mine.remove(delta.id)
                        yield self.take(delta.id)
        finally:
            for name in mine:
                self.cancel(name)
                self._done.pop(name, None)

    def hidden_states(
        self, prompts: Sequence[Sequence[int]], layers: Sequence[int],
        positions: Sequence[Sequence[int]] | Sequence[int], *, normed: bool = False,
        adapters: Sequence[tuple[str, float]] = (),
    ) -> np.ndarray:  # fmt: skip
        """Float32 (texts, layers, positions, D); see `pangu_jax.inference.hidden_states`.

        Where only the last token of each text is asked for, nothing else runs, and nothing is lost
        by it, texts are read like prompts: in chunks, and not where they are in the cache.

        Raises:
          RequestError: as there, and an adapter that is not loaded.
        """
        check_adapters("This call", adapters, self.adapter_names)
        wanted, places = counted(self.model, prompts, layers, positions)
        if self._may_read(prompts, places):
            at = HiddenStatesAt(layers=wanted, normed=normed)
            return last_states(self.completions, prompts, at, adapters)[:, :, None]
        lora = None
        if adapters:
            mix = jnp.asarray(select(self.adapter_names, [adapters]))
            lora = programs.Adapters(self._adapters, mix).bound()
        return hidden_states(
            self.model, self.weights, prompts, layers=wanted, positions=places, normed=normed,
            batch_rows=self.config.max_rows, lora=lora,
        )  # fmt: skip

    def _may_read(self, texts: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> bool:
        """Whether rows give the hidden states at these places, as exact as the model's own type."""
        cache = self._pages[0][0].dtype
        return (
            bool(texts) and self.idle and not self._closed
            and all(list(at) == [len(text) - 1] for text, at in zip(texts, places, strict=True))
            and max(map(len, texts)) <= self.context_length
            and jnp.promote_types(cache, self.model.dtype) == cache
        )  # fmt: skip

    def _check(self, request: Request) -> None:
        check_request(
            request, vocab_size=self.model.vocab_size, context_length=self.context_length,
            num_layers=self.model.num_layers, adapters=self.adapter_names,
        )  # fmt: skip
        if request.id in self._done or self._schedule.find(request.id) is not None:
            raise RequestError(f"Request id {request.id!r} is in use; give it another.")
        waiting = len(self._schedule.waiting)
        if self.config.waiting_limit and waiting >= self.config.waiting_limit:
            raise EngineBusy(
                f"{waiting} requests wait already (engine.waiting_limit="
                f"{self.config.waiting_limit}); try again later."
            )

    def _grammar(self, grammar):
        if grammar is None:
            return None
        if self._grammars is None:
            from pangu_jax.inference.structured import GrammarCompiler

            self._grammars = GrammarCompiler(self.tokenizer, self.model.vocab_size, self.end_ids)
        return self._grammars.compile(grammar)

    # ------------------------------------------------------------------ one turn

    def step(self) -> list[Delta]:
        """One turn: a chunk of prompts is read, or rows that are ready decode; the news.

        Prompts go first, so that many rows decode together, but only so often in a row that
        requests which are being answered are not kept waiting.
        """
        self._schedule.admit()
        news: list[Delta] = []
        try:
            news += self._find_masks()
            reading = [row for row in self._schedule.running if not row.decoding]
            ready = [row for row in self._schedule.running if row.decoding]
            if reading and (not ready or self._chunks_in_a_row < _CHUNKS_IN_A_ROW):
                self._chunks_in_a_row += 1
                news += self._prefill(reading)
            elif ready:
                self._chunks_in_a_row = 0
                news += self._decode(ready)
        except Exception as error:  # the donated pages are gone, and with them all running rows
            news += self._fail(error)
        except BaseException as error:  # from the keyboard, say
            self._fail(error)
            raise
        return news

    def _find_masks(self) -> list[Delta]:
        """Asks every grammar that moved on what may come next; ends the rows whose cannot say."""
        news = []
        for row in list(self._schedule.running):
            if row.grammar is not None and row.mask is None:
                try:
                    row.mask = row.grammar.mask()
                except RequestError as error:
                    news.append(self._finish(row, _error(row, error)))
        return news

    def _fail(self, error: Exception) -> list[Delta]:
        text = f"{type(error).__name__}: {error}"
        rows, self._schedule.running = self._schedule.running, []
        for row in rows:
            row.pages = []
            self._done[row.request.id] = row.completion("error", text)
        self._reset_cache()
        if not rows:
            raise error
        return [Delta(id=row.request.id, finish_reason="error", error=text) for row in rows]

    def _prefill(self, rows: list[Row]) -> list[Delta]:
        budget = self.config.prefill_tokens
        longest = max(row.length - row.computed for row in rows)
        width = chunk_width(longest, budget)
        rows = rows[: max(budget // width, 1)]
        size = at_least(len(rows), 1)
        counts = [min(row.length - row.computed, width) for row in rows]
        chunk, targets = chunk_of(rows, counts, size, width, self.config.pages_per_row)
        scored = [row.request.sampling.prompt_logprobs_from is not None for row in rows]
        looked = [row.ends_for_hidden(count) for row, count in zip(rows, counts, strict=True)]
        # Only rows whose prompt ends here choose a token.
        features, choice = choice_of(rows, size, self.model.vocab_size)
        top = -1
        if any(scored):
            asked = [r.request.sampling for r, s in zip(rows, scored, strict=True) if s]
            top = max(Features.of(asked).top_logprobs, 0)
        done = programs.prefill(
            self.model, features, max(top, 0), self.weights, self._pages, chunk, choice,
            targets if any(scored) else None, self._bound(rows, size), streams=any(looked),
        )  # fmt: skip
        self._pages = done.pages
        self.statistics.prefill_dispatches += 1
        chosen, found, streams = jax.device_get((done.chosen, done.targets, done.streams))
        news = []
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            if scored[index]:
                keep_prompt_logprobs(row, found, index, count)
            if looked[index]:
                keep_hidden(row, streams, index)
            row.computed += count
            self._schedule.publish(row)
            if row.computed < row.length:
                continue
            if row.remaining <= 0:
                read = Delta(
                    id=row.request.id, finish_reason="length", cached_tokens=row.cached or 0
                )
                news.append(self._finish(row, read))
            else:
                news.append(self._take_token(row, chosen, (index,)))
        return news

    def _decode(self, rows: list[Row]) -> list[Delta]:
        steps = 1 if any(row.grammar is not None for row in rows) else self.config.decode_steps
        rows = self._schedule.make_room(rows, steps)
        if not rows:
            return []
        size = at_least(len(rows), 1)
        stops = [self._stop_ids(row) for row in rows]
        stop_ids = np.full((size, at_least(max(map(len, stops)), 1)), -1, np.int32)
        for index, ids in enumerate(stops):
            stop_ids[index, : len(ids)] = ids
        features, choice = choice_of(rows, size, self.model.vocab_size)
        done = programs.decode(
            self.model, features, steps, self.weights, self._pages,
            programs.Rows(
                column([row.tokens(row.computed, row.length)[0] for row in rows], size),
                column([row.computed for row in rows], size),
                column([row.remaining for row in rows], size),
                stop_ids,
                block_tables(rows, size, self._width(rows, steps)),
            ),
            choice, self._bound(rows, size),
        )  # fmt: skip
        self._pages = done.pages
        self.statistics.decode_dispatches += 1
        chosen, valid = jax.device_get((done.chosen, done.valid))
        news = []
        for index, row in enumerate(rows):
            deltas = []
            for number in range(steps):
                if not valid[number, index]:
                    break
                row.computed += 1
                deltas.append(self._take_token(row, chosen, (number, index)))
                if deltas[-1].finish_reason is not None:
                    break
            else:
                self._schedule.publish(row)
            news.append(joined(deltas))
        return news

    # ------------------------------------------------------------------ parts of a turn

    def _take_token(self, row: Row, chosen: Chosen, at: tuple[int, ...]) -> Delta:
        token = int(chosen.token[at])
        logprob = None
        if row.request.sampling.logprobs is not None:
            logprob = logprob_at(chosen, at, row.request.sampling.logprobs)
        if row.grammar is not None:
            row.mask = None
            try:
                row.grammar.accept(token)
            except RequestError as error:  # it outgrew its limits
                return self._finish(row, _error(row, error))
        self.statistics.generated_tokens += 1
        first = not row.generated
        delta = row.add(token, logprob, token in self._stop_ids(row))
        if first:
            delta = dataclasses.replace(delta, cached_tokens=row.cached or 0)
        return delta if delta.finish_reason is None else self._finish(row, delta)

    def _stop_ids(self, row: Row) -> tuple[int, ...]:
        sampling = row.request.sampling
        own = () if sampling.ignore_eos and row.grammar is None else self.end_ids
        return (*own, *sampling.stop_token_ids)

    def _finish(self, row: Row, delta: Delta) -> Delta:
        reason: FinishReason = delta.finish_reason
        self._schedule.publish(row)
        self._schedule.remove(row)
        self._done[row.request.id] = row.completion(reason, delta.error)
        return delta

    def _width(self, rows: list[Row], steps: int) -> int:
        """Pages of the tables of a decoding dispatch: one of a few, each a program of its own.

        A short table spares attention its loop over groups of pages.
        """
        end = max(row.computed for row in rows) + steps
        wide = 4
        while wide < self._schedule.pool.pages_for(end):
            wide *= 4
        return min(wide, self.config.pages_per_row)

    def _bound(self, rows: list[Row], size: int) -> programs.Adapters | None:
        if not any(weight for row in rows for _, weight in row.request.adapters):
            return None
        mix = select(self.adapter_names, [row.request.adapters for row in rows])
        return programs.Adapters(
            self._adapters, jnp.asarray(np.pad(mix, ((0, size - len(rows)), (0, 0))))
        )


def _error(row: Row, error: Exception) -> Delta:
    return Delta(id=row.request.id, finish_reason="error", error=str(error))
