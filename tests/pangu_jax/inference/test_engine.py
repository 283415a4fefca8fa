"""What the engine answers is what the model says, whoever runs beside a request and whenever."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis.strategies as st
import numpy as np
import pytest
from engine_helpers import assert_right, assert_same, engine_of, request, run_schedule
from hypothesis import given, settings
from tiny_model import log_probabilities, log_softmax, prompt, tiny_model

from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.request import HiddenStatesAt
from pangu_jax.inference.sampling import Features

LENGTHS = (1, 7, 8, 9, 15, 16, 17, 31, 33, 50)  # around pages of 8 and chunks of 16


@pytest.mark.parametrize("variant", ["pre_ln", "dssn_qk_norm"])
def test_completions_equal_the_full_forward_pass(variant):
    """Prompts around page and chunk boundaries, more of them than run at once."""
    requests = [request(n, prompt(n), max_tokens=14) for n in LENGTHS]
    requests += [request("scored", prompt(29), max_tokens=3, prompt_logprobs_from=5)]
    done = engine_of(variant).generate(requests)
    for asked, completion in zip(requests, done, strict=True):
        assert completion.id == asked.id
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == min(
            asked.sampling.max_tokens, 64 - completion.prompt_tokens
        )
        assert_right(asked, completion, tiny_model(variant))


@pytest.mark.parametrize("budget", [1, 5, 128])
def test_chunks_of_any_size_and_prompts_read_together(budget):
    engine = engine_of(prefill_tokens=budget, page_size=4)
    requests = [
        request(n, prompt(n), max_tokens=4, prompt_logprobs_from=1) for n in (3, 11, 14, 16)
    ]
    done = engine.generate(requests)
    for asked, completion in zip(requests, done, strict=True):
        assert_right(asked, completion, tiny_model())
    # 128 tokens hold all four prompts, 32 wide each.
    expected = {1: 3 + 11 + 14 + 16, 5: 1 + 3 + 3 + 4, 128: 1}
    assert engine.statistics.prefill_dispatches == expected[budget]


# ------------------------------------------------------------------ schedules

_FILTERED = dict(temperature=0.8, top_k=20, top_p=0.95, min_p=0.01)
_SHARED = prompt(17, seed=3)
_NEXT = HiddenStatesAt(layers=(-1,), normed=True)  # times the embedding: the next token
POOL = [
    request("greedy", _SHARED, max_tokens=13),
    request("seeded", _SHARED, max_tokens=12, seed=1, **_FILTERED),
    request("other seed", _SHARED, max_tokens=12, seed=2, **_FILTERED),
    request("longer", (*_SHARED, 5, 6, 7, 8, 9), max_tokens=None, hidden=_NEXT),
    request("boundary", _SHARED[:16], max_tokens=5, prompt_logprobs_from=9,
            hidden=HiddenStatesAt(layers=(1, 0, -1))),
    request("scored", (*_SHARED[:9], *prompt(12, seed=4)), max_tokens=0, prompt_logprobs_from=1),
    request("short", prompt(2, seed=5), max_tokens=20, ignore_eos=False, seed=9, **_FILTERED),
    request("penalised", prompt(10, seed=6), max_tokens=15, seed=4, repetition_penalty=1.3,
            presence_penalty=0.2, frequency_penalty=0.1, **_FILTERED),
]  # fmt: skip
SMALL = tiny_model(num_layers=2)  # compiles faster
_SCHEDULED = dict(context_length=32, model=SMALL)
ALL_FEATURES = Features(random=True, filters=True, penalties=True, top_logprobs=5)


@functools.cache
def alone():
    """Each request of POOL by itself, without a cache of prefixes."""
    engine = engine_of(prefix_caching=False, **_SCHEDULED)
    return [engine.generate([asked])[0] for asked in POOL]


def test_requests_alone_are_right():
    for asked, done in zip(POOL, alone(), strict=True):
        assert_right(asked, done, SMALL)
    tokens = [done.token_ids for done in alone()]
    assert len(set(tokens[:3])) == 3  # greedy and two seeds
    assert alone()[3].finish_reason == "length" and len(tokens[3]) == 32 - 22
    logits = alone()[3].hidden[0] @ SMALL.params["embed"]["embedding"].T.astype(np.float64)
    expected = log_probabilities(POOL[3].prompt_ids, SMALL)[-1]
    np.testing.assert_allclose(log_softmax(logits), expected, atol=3e-5)
    assert [done.hidden is None for done in alone()] == [True] * 3 + [False] * 2 + [True] * 3


@settings(max_examples=25, deadline=None)
@given(
    schedule=st.lists(
        st.tuples(st.integers(0, len(POOL) - 1), st.integers(0, 6)), min_size=1, max_size=8
    ),
    caching=st.booleans(),
    withheld=st.sampled_from([0, 0, 6, 10, 12]),
)
def test_any_schedule_gives_what_each_request_gives_alone(schedule, caching, withheld):
    """Joined late, in any order, with prefixes shared or not, and with pages for one request only.

    withheld: of 16 pages; a request of full length needs 4. Every program has all the features of
    sampling here, so that few are compiled; alone, each request had only its own.
    """
    engine = engine_of(prefix_caching=caching, **_SCHEDULED)
    held = engine._schedule.pool.take(withheld)
    requests = [
        dataclasses.replace(POOL[which], id=f"{number}")
        for number, (which, _) in enumerate(schedule)
    ]
    news = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Features, "of", lambda rows: ALL_FEATURES)
        done = run_schedule(engine, requests, [delay for _, delay in schedule], news)
    for number, (which, _) in enumerate(schedule):
        completion = done[f"{number}"]
        assert_same(completion, alone()[which])
        deltas = news[f"{number}"]
        assert "".join(delta.text for delta in deltas) == completion.text
        assert tuple(t for d in deltas for t in d.token_ids) == completion.token_ids
        assert tuple(x for d in deltas for x in d.logprobs) == completion.logprobs
        assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == completion.finish_reason
        assert max(d.cached_tokens for d in deltas) == completion.cached_tokens
        assert caching or completion.cached_tokens == 0
    statistics = engine.statistics
    assert statistics.prompt_tokens == sum(len(r.prompt_ids) for r in requests)
    assert statistics.cached_tokens == sum(c.cached_tokens for c in done.values())
    assert statistics.generated_tokens == sum(len(c.token_ids) for c in done.values())
    assert engine.idle and engine._schedule.pool.used == len(held)


def test_requests_give_way_when_pages_run_out_and_start_anew():
    """5 pages for two requests that grow to 4 each."""
    engine = engine_of(num_pages=6, **_SCHEDULED)
    requests = [
        request(n, prompt(6, seed=n), max_tokens=None, prompt_logprobs_from=2, temperature=0.5,
                seed=n) for n in range(3)
    ]  # fmt: skip
    done = engine.generate(requests)
    assert engine.statistics.preemptions > 0
    single = engine_of(**_SCHEDULED)
    for asked, completion in zip(requests, done, strict=True):
        assert len(completion.token_ids) == 26
        assert_right(asked, completion, SMALL)
        assert_same(completion, single.generate([asked])[0])


# ------------------------------------------------------------------ prefixes


def test_a_shared_prompt_is_read_once():
    engine = engine_of()
    shared = prompt(40)
    requests = [request(n, (*shared, n + 5), max_tokens=3) for n in range(4)]
    done = engine.generate(requests)  # together: three wait for the first one's pages
    assert [c.cached_tokens for c in done] == [0, 40, 40, 40]
    assert engine.statistics.cached_tokens == 120
    assert engine.statistics.prefill_dispatches == 3 + 3
    for asked, completion in zip(requests, done, strict=True):
        assert_right(asked, completion, tiny_model())
    # Of a whole prompt the last token is computed anew: its successor is wanted.
    (again,) = engine.generate([request("again", shared, max_tokens=2)])
    assert again.cached_tokens == 32
    assert_right(request("again", shared, max_tokens=2), again, tiny_model())
    # The answer's pages are known too, as far as they were filled before its last step.
    (first,) = engine.generate([request("first", shared, max_tokens=12)])
    following = request("next", (*shared, *first.token_ids, 9, 9), max_tokens=2)
    (turn,) = engine.generate([following])
    assert turn.cached_tokens == 48
    assert_right(following, turn, tiny_model())


def test_without_prefix_caching_every_prompt_is_read():
    engine = engine_of(prefix_caching=False)
    done = engine.generate([request(n, prompt(40), max_tokens=1) for n in range(2)])
    assert [c.cached_tokens for c in done] == [0, 0]
    assert engine.statistics.prefill_dispatches == 6


def test_answers_are_right_after_pages_were_evicted():
    """9 pages: two prompts of 6 pages do not stay side by side."""
    engine = engine_of(num_pages=10)
    a, b = (request(n, prompt(44, seed=n), max_tokens=2) for n in range(2))
    cached = []
    for asked in (a, b, a, a, b):
        (done,) = engine.generate([asked])
        cached.append(done.cached_tokens)
        assert_right(asked, done, tiny_model())
    # The beginning of a prompt outlives its end; what is left of it is used.
    assert cached[:2] == [0, 0] and cached[3] == 40
    assert 0 < cached[2] < 40 and 0 < cached[4] < 40


@pytest.mark.parametrize("start,cached", [(1, 0), (8, 0), (9, 8), (20, 16), (40, 32)])
def test_scored_tokens_are_computed_although_their_pages_are_known(start, cached):
    engine = engine_of()
    shared = prompt(40)
    engine.generate([request("fill", shared, max_tokens=1)])
    asked = request("scored", shared, max_tokens=0, prompt_logprobs_from=start)
    (done,) = engine.generate([asked])
    assert done.cached_tokens == cached
    assert len(done.prompt_logprobs) == 40 - start
    assert_right(asked, done, tiny_model())


def test_the_score_of_a_continuation_is_the_sum_of_its_log_probabilities():
    context, options = prompt(18), [prompt(n, seed=n) for n in (1, 3, 7)]
    done = engine_of().generate(
        request(n, (*context, *option), max_tokens=0, prompt_logprobs_from=18)
        for n, option in enumerate(options)
    )
    for option, completion in zip(options, done, strict=True):
        full = log_probabilities([*context, *option], tiny_model())
        expected = sum(full[17 + i, token] for i, token in enumerate(option))
        np.testing.assert_allclose(
            sum(x.logprob for x in completion.prompt_logprobs), expected, atol=1e-4
        )
        assert completion.token_ids == () and completion.finish_reason == "length"


def test_sizes_that_cannot_hold_a_request_are_refused():
    with pytest.raises(ValueError, match="at least 9 pages of 8 tokens"):
        EngineConfig(context_length=64, page_size=8, num_pages=8)
    assert EngineConfig(context_length=64, page_size=8, num_pages=9).pages == 9
    for field in ("context_length", "max_rows", "page_size", "prefill_tokens", "decode_steps"):
        with pytest.raises(ValueError, match=f"engine.{field}=0 must be at least 1"):
            EngineConfig(**{field: 0})
    with pytest.raises(ValueError, match="engine.weights='int4' is unknown; allowed: float32"):
        EngineConfig(weights="int4")
    with pytest.raises(ValueError, match="engine.cache_dtype='int8' is unknown; allowed: auto"):
        EngineConfig(cache_dtype="int8")
