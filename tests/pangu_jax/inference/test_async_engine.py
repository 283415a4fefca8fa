"""The engine in its thread: concurrent requests, cancelling, refusals, and an orderly end."""

import asyncio
import threading

import pytest
from tiny_model import prompt, tiny_model

from pangu_jax.inference import Request, RequestError, SamplingParams, ServerClosed
from pangu_jax.inference.async_engine import EngineThread
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine

CONFIG = EngineConfig(context_length=64, max_rows=4, page_size=8, prefill_tokens=32)


def request(name, length=5, **sampling):
    sampling = {"max_tokens": 6, "ignore_eos": True} | sampling
    return Request(
        id=str(name), prompt_ids=prompt(length, seed=9), sampling=SamplingParams(**sampling)
    )


def run(scenario):
    """Runs a coroutine function on a fresh engine, which must end with its thread."""

    async def main():
        thread = EngineThread(Engine(tiny_model(), CONFIG))
        try:
            return await asyncio.wait_for(scenario(thread), 120)
        finally:
            await thread.close()
            assert not thread._thread.is_alive()

    return asyncio.run(main())


def test_concurrent_requests_get_what_each_gets_alone():
    requests = [request(i, 2 + i % 7, temperature=1.0, seed=i) for i in range(12)]

    async def scenario(engine):
        return await asyncio.gather(*(engine.complete(r) for r in requests))

    alone = Engine(tiny_model(), CONFIG)
    for asked, found in zip(requests, run(scenario), strict=True):
        (expected,) = alone.generate([asked])
        assert (found.id, found.token_ids, found.text) == (asked.id, expected.token_ids,
                                                           expected.text)  # fmt: skip


def test_a_stream_adds_up_to_the_completion():
    async def scenario(engine):
        news = [delta async for delta in engine.stream(request("s", max_tokens=20))]
        return news, await engine.complete(request("c", max_tokens=20))

    news, whole = run(scenario)
    assert "".join(d.text for d in news) == whole.text
    assert tuple(t for d in news for t in d.token_ids) == whole.token_ids
    assert [d.finish_reason for d in news if d.finish_reason] == ["length"] and len(news) > 1


def test_closing_a_stream_and_cancelling_a_task_free_the_engine():
    async def scenario(engine):
        stream = engine.stream(request("left", max_tokens=None))
        await anext(stream)
        await stream.aclose()
        task = asyncio.create_task(engine.complete(request("cancelled", max_tokens=None)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The ids are free again, and the next request is served.
        done = await engine.complete(request("left"))
        again = await engine.complete(request("cancelled"))
        return done, again

    done, again = run(scenario)
    assert done.finish_reason == again.finish_reason == "length"


def test_what_cannot_be_served_is_refused_before_any_news():
    async def scenario(engine):
        with pytest.raises(RequestError, match="at most 63"):
            await engine.complete(request("long", 64))
        with pytest.raises(RequestError, match="at most 63"):
            async for _ in engine.stream(request("long", 64)):
                raise AssertionError("news of a refused request")
        return await engine.complete(request("fine"))

    assert run(scenario).finish_reason == "length"


@pytest.mark.parametrize("drain,reason", [(60.0, "length"), (0.0, "cancelled")])
def test_closing_drains_or_cancels(monkeypatch, drain, reason):
    step, may_step = Engine.step, threading.Semaphore(1)

    def step_when_allowed(engine):
        # One step for the first news; the others wait until `close` has been called, or a
        # busy machine could finish the request before the order to cancel it is there.
        assert may_step.acquire(timeout=60)
        return step(engine)

    monkeypatch.setattr(Engine, "step", step_when_allowed)

    async def scenario(engine):
        stream = engine.stream(request("running", max_tokens=40))
        news = [await anext(stream)]
        closing = asyncio.create_task(engine.close(drain_seconds=drain))
        await asyncio.sleep(0)
        with pytest.raises(ServerClosed):
            await engine.complete(request("late"))
        may_step.release(100)
        news += [delta async for delta in stream]
        await closing
        return news

    news = run(scenario)
    assert news[-1].finish_reason == reason
    assert (sum(len(delta.token_ids) for delta in news) == 40) == (reason == "length")


def test_a_failing_dispatch_ends_its_requests_and_not_the_engine(monkeypatch):
    from pangu_jax.inference import programs

    original, failures = programs.decode, []

    def fail_once(*arguments, **keywords):
        if not failures:
            failures.append(1)
            raise RuntimeError("the device is on fire")
        return original(*arguments, **keywords)

    monkeypatch.setattr(programs, "decode", fail_once)

    async def scenario(engine):
        return await engine.complete(request("one")), await engine.complete(request("two"))

    one, two = run(scenario)
    assert one.finish_reason == "error" and "on fire" in one.error
    assert two.finish_reason == "length"
