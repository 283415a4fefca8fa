"""Continuous batching: requests join and leave between dispatches of the compiled programs.

Each `step` admits waiting requests, then either reads one chunk of the prompts that are not read
yet or lets every row that is ready decode a few tokens. The engine is not safe to share between
threads; see `pangu_jax.inference.async_engine`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.inference import programs
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.detokenize import IncrementalText
from pangu_jax.inference.end_tokens import end_tokens
from pangu_jax.inference.errors import EngineBusy, RequestError, ServerClosed
from pangu_jax.inference.forward import Chunk, create_pages
from pangu_jax.inference.hidden_states import hidden_states
from pangu_jax.inference.page_pool import OutOfPages, PagePool
from pangu_jax.inference.request import Completion, Delta, FinishReason, Request, TokenLogprob
from pangu_jax.inference.row import Row
from pangu_jax.inference.sampling import Chosen, Features, RowSampling, Seen
from pangu_jax.inference.weights import prepare_weights
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.lora import Adapter, fingerprint, layer_slice, select, stack
from pangu_jax.weights import LoadedModel
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_CHUNKS_IN_A_ROW = 4


@dataclasses.dataclass
class Statistics:
    """What an engine has done so far, in tokens and dispatches."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prefill_dispatches: int = 0
    decode_dispatches: int = 0
    preemptions: int = 0


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
        self.statistics = Statistics()
        self._grammars: Any = None
        self._waiting: collections.deque[Row] = collections.deque()
        self._running: list[Row] = []  # in order of arrival
        self._done: dict[str, Completion] = {}
        self._closed = False
        self._chunks_in_a_row = 0
        self._reset_cache()

    def _reset_cache(self) -> None:
        config = self.config
        dtype = None if config.cache_dtype == "auto" else config.cache_dtype
        self._pages = create_pages(self.model, config.pages, config.page_size, dtype)
        self._pool = PagePool(config.pages, config.page_size, prefix_caching=config.prefix_caching)

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
        return not self._running and not self._waiting

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
        self._waiting.append(
            Row(
                request=request, limit=limit, page_size=self.config.page_size,
                text=IncrementalText(self.tokenizer.tokenizer, sampling.stop),
                grammar=self._grammar(sampling.grammar),
            )
        )  # fmt: skip

    def cancel(self, request_id: str) -> Delta | None:
        """Ends a request; its last news, or None where it is not here (any more)."""
        for rows in (self._running, self._waiting):
            for row in rows:
                if row.request.id == request_id:
                    return self._finish(row, Delta(id=request_id, finish_reason="cancelled"))
        return None

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
                while queue and len(self._waiting) < ahead:
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
        """Float32 (texts, layers, positions, D); see `pangu_jax.inference.hidden_states`."""
        lora = None
        if adapters:
            mix = jnp.asarray(select(self.adapter_names, [adapters]))
            lora = programs.Adapters(self._adapters, mix).bound()
        return hidden_states(
            self.model, self.weights, prompts, layers=layers, positions=positions, normed=normed,
            batch_rows=self.config.max_rows, lora=lora,
        )  # fmt: skip

    def _check(self, request: Request) -> None:
        prompt = request.prompt_ids
        if not prompt:
            raise RequestError(f"Request {request.id!r} has an empty prompt; give it a token.")
        if min(prompt) < 0 or max(prompt) >= self.model.vocab_size:
            raise RequestError(
                f"Request {request.id!r} holds token {max(prompt)} (least {min(prompt)}), but the "
                f"vocabulary is 0 to {self.model.vocab_size - 1}: it was made by another tokenizer."
            )
        # A prompt that is only read may fill the context.
        most = self.context_length - (request.sampling.max_tokens != 0)
        if len(prompt) > most:
            raise RequestError(
                f"Request {request.id!r} has a prompt of {len(prompt)} tokens; the context holds "
                f"{self.context_length}, so at most {most} fit. Shorten it, or raise "
                "engine.context_length."
            )
        start = request.sampling.prompt_logprobs_from
        if start is not None and start > len(prompt):
            raise RequestError(
                f"Request {request.id!r}: prompt_logprobs_from={start} lies beyond its prompt of "
                f"{len(prompt)} tokens."
            )
        unknown = [name for name, _ in request.adapters if name not in self.adapter_names]
        if unknown:
            raise RequestError(
                f"Request {request.id!r} names adapter {unknown[0]!r}; loaded are: "
                f"{', '.join(self.adapter_names) or '(none)'}."
            )
        odd = [weight for _, weight in request.adapters if not math.isfinite(weight)]
        if odd:
            raise RequestError(
                f"Request {request.id!r} gives an adapter the weight {odd[0]!r}; a finite number "
                "is needed."
            )
        ids = (row.request.id for rows in (self._running, self._waiting) for row in rows)
        if request.id in self._done or request.id in ids:
            raise RequestError(f"Request id {request.id!r} is in use; give it another.")
        if self.config.waiting_limit and len(self._waiting) >= self.config.waiting_limit:
            raise EngineBusy(
                f"{len(self._waiting)} requests wait already (engine.waiting_limit="
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
        self._admit()
        news: list[Delta] = []
        try:
            news += self._find_masks()
            reading = [row for row in self._running if not row.decoding]
            ready = [row for row in self._running if row.decoding]
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
        for row in list(self._running):
            if row.grammar is not None and row.mask is None:
                try:
                    row.mask = row.grammar.mask()
                except RequestError as error:
                    news.append(self._finish(row, _error(row, error)))
        return news

    def _fail(self, error: Exception) -> list[Delta]:
        text = f"{type(error).__name__}: {error}"
        rows, self._running = self._running, []
        for row in rows:
            row.pages = []
            self._done[row.request.id] = row.completion("error", text)
        self._reset_cache()
        if not rows:
            raise error
        return [Delta(id=row.request.id, finish_reason="error", error=text) for row in rows]

    def _admit(self) -> None:
        reading = {
            key for row in self._running if not row.decoding for key in row.keys()[row.published :]
        }
        passed_over = []
        while self._waiting and len(self._running) < self.config.max_rows:
            row = self._waiting.popleft()
            keys = row.reusable() if self.config.prefix_caching else []
            pages = self._pool.match(keys)
            if len(pages) < len(keys) and keys[len(pages)] in reading:
                # Another request is just computing this very prefix: wait for its pages.
                self._pool.release(pages)
                passed_over.append(row)
                continue
            # Room for all of the prompt: half-read prompts that wait for each other are no use.
            missing = self._pool.pages_for(row.length) - len(pages)
            if missing > self._pool.available:
                self._pool.release(pages)
                self._waiting.appendleft(row)
                break
            row.pages = pages + self._pool.take(missing)
            row.computed = len(pages) * self.config.page_size
            row.published = len(pages)
            if row.cached is None:
                row.cached = row.computed
                self.statistics.cached_tokens += row.computed
                self.statistics.prompt_tokens += len(row.request.prompt_ids)
                row.started = row.started or _now()
            self._running.append(row)
            reading |= set(row.keys()[row.published :])
        self._waiting.extendleft(reversed(passed_over))

    def _prefill(self, rows: list[Row]) -> list[Delta]:
        budget = self.config.prefill_tokens
        longest = max(row.length - row.computed for row in rows)
        width = min(_at_least(longest, 16), budget)
        rows = rows[: max(budget // width, 1)]
        size = _at_least(len(rows), 1)
        counts = [min(row.length - row.computed, width) for row in rows]
        tokens = np.zeros((size, width), np.int32)
        targets = np.zeros((size, width), np.int32)
        scored = [row.request.sampling.prompt_logprobs_from is not None for row in rows]
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            tokens[index, :count] = row.tokens(row.computed, row.computed + count)
            following = row.tokens(row.computed + 1, row.computed + 1 + count)
            targets[index, : len(following)] = following
        chunk = Chunk(
            tokens,
            _column([row.computed for row in rows], size),
            _column(counts, size),
            self._tables(rows, size, [r.computed + width for r in rows]),
        )
        # Only rows whose prompt ends here choose a token.
        features, choice = self._choice(rows, size)
        top = -1
        if any(scored):
            asked = [r.request.sampling for r, s in zip(rows, scored, strict=True) if s]
            top = max(Features.of(asked).top_logprobs, 0)
        done = programs.prefill(
            self.model, features, max(top, 0), self.weights, self._pages, chunk, choice,
            targets if any(scored) else None, self._bound(rows, size),
        )  # fmt: skip
        self._pages = done.pages
        self.statistics.prefill_dispatches += 1
        chosen, found = jax.device_get((done.chosen, done.targets))
        news = []
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            if scored[index]:
                _keep_prompt_logprobs(row, found, index, count)
            row.computed += count
            self._publish(row)
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
        rows = self._make_room(rows, steps)
        if not rows:
            return []
        size = _at_least(len(rows), 1)
        stops = [self._stop_ids(row) for row in rows]
        stop_ids = np.full((size, _at_least(max(map(len, stops)), 1)), -1, np.int32)
        for index, ids in enumerate(stops):
            stop_ids[index, : len(ids)] = ids
        features, choice = self._choice(rows, size)
        done = programs.decode(
            self.model, features, steps, self.weights, self._pages,
            programs.Rows(
                _column([row.tokens(row.computed, row.length)[0] for row in rows], size),
                _column([row.computed for row in rows], size),
                _column([row.remaining for row in rows], size),
                stop_ids,
                self._tables(rows, size, [r.computed + steps for r in rows]),
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
                self._publish(row)
            news.append(_joined(deltas))
        return news

    # ------------------------------------------------------------------ parts of a turn

    def _take_token(self, row: Row, chosen: Chosen, at: tuple[int, ...]) -> Delta:
        token = int(chosen.token[at])
        logprob = None
        if row.request.sampling.logprobs is not None:
            logprob = _logprob(chosen, at, row.request.sampling.logprobs)
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
        self._pool.release(row.pages)
        row.pages = []
        # By identity: rows are compared field by field otherwise.
        self._running = [other for other in self._running if other is not row]
        self._waiting = collections.deque(other for other in self._waiting if other is not row)
        self._done[row.request.id] = row.completion(reason, delta.error)
        return delta

    def _publish(self, row: Row) -> None:
        full = row.computed // self.config.page_size
        if full > row.published:
            keys = row.keys()
            for index in range(row.published, full):
                self._pool.publish(row.pages[index], keys[index])
            row.published = full

    def _make_room(self, rows: list[Row], steps: int) -> list[Row]:
        """Rows with pages for their next tokens; where there are none, the youngest give way."""
        kept = []
        for row in rows:
            if not any(row is other for other in self._running):
                continue  # gave way to an older one
            wanted = self._pool.pages_for(row.computed + min(steps, row.remaining))
            while True:
                try:
                    row.pages += self._pool.take(max(wanted - len(row.pages), 0))
                    kept.append(row)
                    break
                except OutOfPages:
                    youngest = self._running[-1]
                    self._put_back(youngest)
                    if youngest is row:
                        break
        return kept

    def _put_back(self, row: Row) -> None:
        self.statistics.preemptions += 1
        self._pool.release(row.pages)
        row.pages, row.computed, row.published = [], 0, 0
        self._running = [other for other in self._running if other is not row]
        self._waiting.appendleft(row)

    def _tables(self, rows: list[Row], size: int, ends: list[int]) -> np.ndarray:
        """Block tables, as wide as the longest of `ends` needs; what a row lacks is page 0."""
        wide = min(_at_least(self._pool.pages_for(max(ends)), 4), self.config.pages_per_row)
        tables = np.zeros((size, wide), np.int32)
        for index, row in enumerate(rows):
            tables[index, : len(row.pages)] = row.pages[:wide]
        return tables

    def _choice(self, rows: list[Row], size: int) -> tuple[Features, programs.Choice]:
        asked = [row.request.sampling for row in rows]
        features = Features.of(asked)
        seen = mask = None
        vocabulary = self.model.vocab_size
        if features.penalties:
            prompts = np.zeros((size, vocabulary), bool)
            counts = np.zeros((size, vocabulary), np.int32)
            for index, row in enumerate(rows):
                found = row.seen(vocabulary)
                if found is not None:
                    prompts[index], counts[index] = found
            seen = Seen(prompts, counts)
        if features.mask:
            mask = np.full((size, -(-vocabulary // 32)), 0xFFFFFFFF, np.uint32)
            for index, row in enumerate(rows):
                if row.mask is not None:
                    mask[index] = row.mask
        generated = _column([len(row.generated) for row in rows], size)
        return features, programs.Choice(RowSampling.of(asked, size), generated, seen, mask)

    def _bound(self, rows: list[Row], size: int) -> programs.Adapters | None:
        if not any(weight for row in rows for _, weight in row.request.adapters):
            return None
        mix = select(self.adapter_names, [row.request.adapters for row in rows])
        return programs.Adapters(
            self._adapters, jnp.asarray(np.pad(mix, ((0, size - len(rows)), (0, 0))))
        )


def _now() -> float:
    import time

    return time.perf_counter()


def _at_least(value: int, least: int) -> int:
    """The least power of two times `least` that is not below `value`."""
    while least < value:
        least *= 2
    return least


def _column(values: list[int], size: int) -> np.ndarray:
    return np.asarray([*values, *[0] * (size - len(values))], np.int32)


def _logprob(chosen: Chosen, at: tuple[int, ...], top: int) -> TokenLogprob:
    best = ()
    if top and chosen.top_ids is not None:
        best = tuple(
            (int(i), float(x))
            for i, x in zip(chosen.top_ids[at][:top], chosen.top_logprobs[at][:top], strict=True)
        )
    return TokenLogprob(int(chosen.token[at]), float(chosen.logprob[at]), best)


def _keep_prompt_logprobs(row: Row, found: Chosen, index: int, count: int) -> None:
    sampling = row.request.sampling
    for position in range(count):
        token = row.computed + position + 1  # whose log-probability stands at this position
        expected = sampling.prompt_logprobs_from + len(row.prompt_logprobs)
        if token == expected and token < len(row.request.prompt_ids):
            row.prompt_logprobs.append(_logprob(found, (index, position), sampling.logprobs or 0))


def _error(row: Row, error: Exception) -> Delta:
    return Delta(id=row.request.id, finish_reason="error", error=str(error))


def _joined(deltas: list[Delta]) -> Delta:
    last = deltas[-1]
    return dataclasses.replace(
        last,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(t for delta in deltas for t in delta.token_ids),
        logprobs=tuple(x for delta in deltas for x in delta.logprobs),
        cached_tokens=max(delta.cached_tokens for delta in deltas),
    )
