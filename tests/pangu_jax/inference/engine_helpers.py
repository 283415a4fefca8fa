"""Small engines, and what a right completion is."""

from __future__ import annotations

import dataclasses

import numpy as np
from tiny_model import log_probabilities, tiny_model

from pangu_jax.inference import Completion, Request, SamplingParams
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine

# Few shapes, so that few programs are compiled: one prompt at a time, tables of 4 or 8 pages.
CONFIG = EngineConfig(context_length=64, max_rows=4, page_size=8, prefill_tokens=16, decode_steps=3)
CLOSE = 3e-5  # of log-probabilities in float32


def engine_of(variant="pre_ln", *, adapters=(), model=None, **changes) -> Engine:
    model = tiny_model(variant) if model is None else model
    return Engine(model, dataclasses.replace(CONFIG, **changes), adapters=adapters)


def request(name, prompt_ids, adapters=(), hidden=None, **sampling) -> Request:
    sampling = {"logprobs": 5, "ignore_eos": True} | sampling
    return Request(
        id=str(name), prompt_ids=tuple(prompt_ids), sampling=SamplingParams(**sampling),
        adapters=adapters, hidden=hidden,
    )  # fmt: skip


def run_schedule(engine, requests, delays=None, news=None) -> dict[str, Completion]:
    """Completions by id; request i is added after delays[i] steps, in their order."""
    delays = [0] * len(requests) if delays is None else delays
    waiting = sorted(zip(delays, range(len(requests)), strict=True))
    turn = 0
    while waiting or not engine.idle:
        while waiting and waiting[0][0] <= turn:
            engine.add(requests[waiting.pop(0)[1]])
        for delta in engine.step():
            if news is not None:
                news.setdefault(delta.id, []).append(delta)
        turn += 1
        assert turn < 2000, "the engine makes no progress"
    return {r.id: engine.take(r.id) for r in requests}


def assert_same(found: Completion, expected: Completion) -> None:
    """The same tokens, text and end; log-probabilities and hidden states as close as float32 is."""
    assert found.token_ids == expected.token_ids
    assert found.text == expected.text
    assert (found.finish_reason, found.stop_text) == (expected.finish_reason, expected.stop_text)
    for name in ("logprobs", "prompt_logprobs"):
        a, b = getattr(found, name), getattr(expected, name)
        assert [x.token_id for x in a] == [x.token_id for x in b]
        np.testing.assert_allclose([x.logprob for x in a], [x.logprob for x in b], atol=CLOSE)
        for x, y in zip(a, b, strict=True):
            values = [v for _, v in x.top], [v for _, v in y.top]
            np.testing.assert_allclose(*values, atol=CLOSE)
    assert (found.hidden is None) == (expected.hidden is None)
    if expected.hidden is not None:
        scale = np.abs(expected.hidden).max(-1, keepdims=True)
        np.testing.assert_allclose(found.hidden / scale, expected.hidden / scale, atol=1e-5)


def assert_entry(entry, distribution, top) -> None:
    """One TokenLogprob against the reference's distribution (V,) over the token's place."""
    np.testing.assert_allclose(entry.logprob, distribution[entry.token_id], atol=CLOSE)
    assert len(entry.top) == top
    values = [value for _, value in entry.top]
    assert values == sorted(values, reverse=True)
    np.testing.assert_allclose(values, -np.sort(-distribution)[:top], atol=CLOSE)
    for token, value in entry.top:
        np.testing.assert_allclose(value, distribution[token], atol=CLOSE)


def assert_right(asked: Request, done: Completion, model) -> None:
    """Every log-probability is the reference's for the whole sequence; greedy tokens are best."""
    size, sampling = len(asked.prompt_ids), asked.sampling
    full = log_probabilities([*asked.prompt_ids, *done.token_ids], model)
    top = sampling.logprobs or 0
    assert len(done.logprobs) == (0 if sampling.logprobs is None else len(done.token_ids))
    for index, entry in enumerate(done.logprobs):
        assert entry.token_id == done.token_ids[index]
        assert_entry(entry, full[size - 1 + index], top)
        if sampling.temperature == 0 and sampling.repetition_penalty == 1:
            assert entry.logprob > full[size - 1 + index].max() - CLOSE
    start = sampling.prompt_logprobs_from
    expected = () if start is None else asked.prompt_ids[start:]
    assert tuple(x.token_id for x in done.prompt_logprobs) == tuple(expected)
    for index, entry in enumerate(done.prompt_logprobs):
        assert_entry(entry, full[start + index - 1], top)
