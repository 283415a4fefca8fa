"""An engine that says what a test tells it to, and a server around it on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from pangu_jax.inference import Completion, Delta, Request, ServerClosed, TokenLogprob
from pangu_jax.inference.server import Stop, serve_async
from pangu_jax.weights.tokenizer_import import LoadedTokenizer, SpecialTokens

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str | None = CHATML) -> LoadedTokenizer:
    """Ids 0-255 are bytes in the order of byte-level BPE's letters; then the marks of ChatML."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ("<|im_start|>", "<|im_end|>")
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    return LoadedTokenizer(tokenizer, SpecialTokens(bos=256, eos=257, chat_template=template))


@dataclasses.dataclass
class Script:
    """What a request gets: pieces of text, `delay` seconds before each, and how it ends."""

    pieces: Iterable[str] = ("Hello", ", ", "world")
    delay: float = 0.0
    finish: str = "stop"
    refuse: Exception | None = None
    fail_at: int | None = None
    cached: int = 0


def logprob(token_id: int, n: int) -> TokenLogprob:
    """A made-up log-probability, known to tests."""
    top = tuple((token_id + i, -0.25 * (token_id % 7 + 1) - i) for i in range(n))
    return TokenLogprob(token_id, -0.25 * (token_id % 7 + 1), top)


class ScriptedEngine:
    """Implements `AsyncEngine`; records what happened to requests."""

    def __init__(
        self,
        loaded: LoadedTokenizer,
        reply: Callable[[Request], Script] | None = None,
        *,
        context_length: int = 4096,
        ignores_close: bool = False,
    ):
        self.model_name, self.context_length = "tiny", context_length
        self.reply = reply or (lambda request: Script())
        self.requests: list[Request] = []
        self.finished: list[str] = []
        self.cancelled: list[str] = []
        self.produced = self.running = self.most_running = 0
        self.closed = self.ended = False
        self._tokenizer, self._ignores_close = loaded.tokenizer, ignores_close

    def text(self, request: Request) -> str:
        """The prompt of a request, special tokens included."""
        return self._tokenizer.decode(list(request.prompt_ids), skip_special_tokens=False)

    async def stream(self, request: Request):
        if self.closed:
            raise ServerClosed("closed")
        self.requests.append(request)
        script = self.reply(request)
        if script.refuse is not None:
            raise script.refuse
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        done, cached = False, script.cached
        n, left = request.sampling.logprobs, request.sampling.max_tokens
        finish = script.finish
        try:
            for index, piece in enumerate(script.pieces):
                if script.delay:
                    await asyncio.sleep(script.delay)
                if self.ended:
                    finish = "cancelled"
                    break
                if index == script.fail_at:
                    raise RuntimeError("scripted failure with sk-secret inside")
                ids = self._tokenizer.encode(piece, add_special_tokens=False).ids
                if left is not None and len(ids) > left:
                    ids, piece = ids[:left], piece[:left]
                    finish = "length"
                left = None if left is None else left - len(ids)
                yield Delta(
                    id=request.id,
                    text=piece,
                    token_ids=tuple(ids),
                    logprobs=() if n is None else tuple(logprob(i, n) for i in ids),
                    cached_tokens=cached,
                )
                self.produced += 1
                cached = 0
                if left == 0 and finish == "length":
                    break
            done = True
            if finish != "cancelled":
                self.finished.append(request.id)
            yield Delta(id=request.id, finish_reason=finish)
        finally:
            self.running -= 1
            if not done:
                self.cancelled.append(request.id)

    async def complete(self, request: Request) -> Completion:
        text, ids, tokens, cached, finish = "", [], [], 0, None
        async with contextlib.aclosing(self.stream(request)) as stream:
            async for delta in stream:
                text += delta.text
                ids += delta.token_ids
                tokens += delta.logprobs
                cached += delta.cached_tokens
                finish = delta.finish_reason
        start, n = request.sampling.prompt_logprobs_from, request.sampling.logprobs
        prompt = () if start is None else request.prompt_ids[start:]
        return Completion(
            id=request.id,
            text=text,
            token_ids=tuple(ids),
            finish_reason=finish,
            prompt_tokens=len(request.prompt_ids),
            cached_tokens=cached,
            logprobs=tuple(tokens),
            prompt_logprobs=tuple(logprob(i, n) for i in prompt),
        )

    async def close(self, *, drain_seconds: float = 0.0) -> None:
        self.closed = True
        if self._ignores_close:
            await asyncio.sleep(3600)
        end = time.monotonic() + drain_seconds
        while self.running and time.monotonic() < end:
            await asyncio.sleep(0.01)
        self.ended = True


class RunningServer:
    """A server in a thread of its own."""

    def __init__(self, engine: Any, loaded: LoadedTokenizer, **settings: Any):
        self.engine = engine
        self._settings = {"port": 0, "drain_seconds": 0.0, **settings}
        self._loaded, self._ready, self.url = loaded, threading.Event(), ""
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._main, daemon=True)

    def _main(self) -> None:
        async def main():
            self._stop, self._loop = Stop(), asyncio.get_running_loop()
            await serve_async(
                self.engine,
                self._loaded,
                stop=self._stop,
                on_ready=self._on_ready,
                **self._settings,
            )

        try:
            asyncio.run(main())
        except BaseException as error:
            self._error = error
        finally:
            self._ready.set()

    def _on_ready(self, url: str) -> None:
        self.url = url
        self._ready.set()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").removesuffix("/v1").rsplit(":", 1)
        return host, int(port)

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop)

    def join(self, seconds: float = 20.0) -> None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the server did not end"
        if self._error is not None:
            raise self._error

    def __enter__(self) -> RunningServer:
        self._thread.start()
        assert self._ready.wait(20), "the server did not start"
        if self._error is not None:
            raise self._error
        return self

    def __exit__(self, *_) -> None:
        if self._thread.is_alive():
            self.stop()
            self.stop()
        self.join()

    def client(self, **settings: Any):
        """The official client, without retries."""
        import openai

        return openai.OpenAI(
            base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": 20, **settings}
        )

    def async_client(self, **settings: Any):
        import openai

        return openai.AsyncOpenAI(
            base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": 20, **settings}
        )


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Returns once the condition holds; fails where it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
