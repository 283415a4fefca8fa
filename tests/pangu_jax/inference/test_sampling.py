"""Choosing tokens against a float64 reference that sorts, and the statistics of what is drawn."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from scipy import stats

from pangu_jax.inference import SamplingParams
from pangu_jax.inference.sampling import (
    Features,
    RowSampling,
    Seen,
    choose,
    draw,
    kept,
    log_probabilities,
    penalised,
    unpack_mask,
)

V = 37  # no multiple of 32
_kept = jax.jit(kept)
_penalised = jax.jit(penalised)
_draw = jax.jit(draw)


@functools.partial(jax.jit, static_argnames="features")
def _choose(logits, rows, index, features, seen=None, mask=None):
    return choose(logits, rows, index, features, seen, mask)


def rows_of(*params):
    return RowSampling.of(params, len(params))


def reference_kept(logits, params):
    """(tokens that must stay, tokens that may): they differ where float32 sums cannot tell."""
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, kind="stable")
    p = np.exp(logits - logits.max())
    p /= p.sum()
    must, may = np.ones(len(logits), bool), np.ones(len(logits), bool)
    if 0 < params.top_k < len(logits):
        must &= logits >= logits[order[params.top_k - 1]]
        may = must.copy()
    if params.top_p < 1:
        mass = np.where(must, p, 0)
        mass /= mass.sum()
        # The fewest values (ties together) whose mass reaches p.
        for slack, out in ((-1e-6, must), (1e-6, may)):
            edge = -np.inf
            for value in np.unique(logits[mass > 0])[::-1]:
                if mass[logits >= value].sum() >= params.top_p + slack:
                    edge = value
                    break
            out &= logits >= edge
    for slack, out in ((1e-6, must), (-1e-6, may)):
        out &= p >= p.max() * params.min_p * (1 + slack) - (slack < 0) * 1e-30
    return must, may


_values = st.one_of(
    st.floats(-8, 8, width=32),
    st.sampled_from([-np.inf, 0.0, -0.0, 1.0, 1.5, 80.0, -80.0]),
)
_logits = st.lists(_values, min_size=V, max_size=V).filter(lambda x: max(x) > -np.inf)
_params = st.builds(
    SamplingParams,
    temperature=st.just(1.0),
    top_k=st.one_of(st.just(0), st.integers(1, 2 * V)),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1.0), st.sampled_from([1e-9, 0.5])),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1), st.just(1.0)),
)


@given(logits=_logits, params=_params)
def test_filters_keep_what_sorting_keeps(logits, params):
    found = np.asarray(_kept(np.asarray([logits], np.float32), rows_of(params)))[0]
    must, may = reference_kept(logits, params)
    finite = np.asarray(logits) > -np.inf  # the others cannot be drawn whatever is said of them
    assert not (must & ~found & finite & (np.exp(np.asarray(logits) - max(logits)) > 1e-30)).any()
    assert not (found & ~may & finite).any()
    assert found[np.argmax(logits)]


@given(
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.0, 0.01, 1.0, 8.0]),
    levels=st.sampled_from([0, 3, 40]),
    params=st.builds(
        SamplingParams,
        temperature=st.just(1.0),
        top_k=st.sampled_from([0, 1, 255, 256, 257, 600, 1000, 2000]),
        top_p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    ),
)
def test_filters_reach_beyond_the_largest_logits(seed, spread, levels, params):
    logits = np.random.default_rng(seed).normal(size=1000) * spread
    if levels:  # many ties
        logits = np.round(logits * levels) / levels
    logits = logits.astype(np.float32)
    # A row beside it that needs no bisection must not change the answer, nor be changed.
    easy = np.where(np.arange(1000) == 7, 50.0, logits).astype(np.float32)
    alone = [np.asarray(_kept(row[None], rows_of(params)))[0] for row in (logits, easy)]
    found = np.asarray(_kept(np.stack([logits, easy]), rows_of(params, params)))
    for row, mine in zip((logits, easy), found, strict=True):
        must, may = reference_kept(row, params)
        assert not (must & ~mine).any()
        assert not (mine & ~may).any()
    np.testing.assert_array_equal(found, alone)


@given(
    seed=st.integers(0, 10**6), share=st.sampled_from([0.5, 0.99]), size=st.sampled_from([5, 700])
)
def test_tokens_without_probability_are_never_drawn(seed, share, size):
    random = np.random.default_rng(seed)
    logits = (random.normal(size=size) * random.choice([0.0, 1.0, 30.0])).astype(np.float32)
    closed = random.random(size) < share
    closed[random.integers(size)] = False
    logits[closed] = -np.inf
    rows = np.broadcast_to(logits, (2048, size))
    seeds = np.stack([np.full(2048, seed), np.arange(2048)], 1).astype(np.uint32)
    found = np.asarray(_draw(rows, seeds, np.zeros(2048, np.int32)))
    assert not closed[found].any()


def test_of_many_blocks_each_has_its_share():
    count, size = 4096, 1000
    logits = np.log(np.random.default_rng(0).random(size)).astype(np.float32)
    seeds = np.stack([np.zeros(count), np.arange(count)], 1).astype(np.uint32)
    found = np.asarray(
        _draw(np.broadcast_to(logits, (count, size)), seeds, np.ones(count, np.int32))
    )
    groups = np.bincount(found // 20, minlength=50)
    p = np.exp(logits.astype(np.float64)).reshape(50, 20).sum(1)
    assert stats.chisquare(groups, count * p / p.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    "logits,params,expected",
    [
        ([3, 2, 1, 0], dict(top_k=2), [1, 1, 0, 0]),
        ([3, 2, 2, 0], dict(top_k=2), [1, 1, 1, 0]),  # a tie at the edge passes whole
        ([1, 1, 1, 1], dict(top_k=1), [1, 1, 1, 1]),
        ([3, 2, 1, 0], dict(top_k=9), [1, 1, 1, 1]),
        ([3, 2, 1, 0], dict(top_k=4), [1, 1, 1, 1]),
        (np.log([0.5, 0.25, 0.15, 0.1]), dict(top_p=0.5 - 1e-3), [1, 0, 0, 0]),
        (np.log([0.5, 0.25, 0.15, 0.1]), dict(top_p=0.5 + 1e-3), [1, 1, 0, 0]),
        (np.log([0.5, 0.25, 0.15, 0.1]), dict(top_p=0.76), [1, 1, 1, 0]),
        (np.log([0.1, 0.5, 0.15, 0.25]), dict(top_p=0.76), [0, 1, 1, 1]),
        # After the two best are kept their masses are 2/3 and 1/3.
        (np.log([0.5, 0.25, 0.15, 0.1]), dict(top_k=2, top_p=0.6), [1, 0, 0, 0]),
        (np.log([0.5, 0.25, 0.15, 0.1]), dict(min_p=0.29), [1, 1, 1, 0]),
        (np.log([0.5, 0.25, 0.15, 0.1]), dict(min_p=1.0), [1, 0, 0, 0]),
        ([100, 0, -100, -1e30], dict(top_p=0.999999), [1, 0, 0, 0]),
        ([5, -np.inf, 4, -np.inf], dict(top_k=3, top_p=0.99), [1, None, 1, None]),
        (np.zeros(4), dict(top_p=0.3), [1, 1, 1, 1]),
        ([3, 2, 1, -30], dict(top_p=1.0), [1, 1, 1, 1]),
    ],
)
def test_filters_by_hand(logits, params, expected):
    rows = rows_of(SamplingParams(temperature=1, **params))
    found = np.asarray(_kept(np.asarray([logits], np.float32), rows))[0]
    for one, wanted in zip(found, expected, strict=True):
        assert wanted is None or one == bool(wanted)


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=V, max_size=V),
    seen=st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=V, max_size=V),
    repetition=st.floats(0.1, 5),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
)
def test_penalties_by_their_definitions(logits, seen, repetition, presence, frequency):
    params = SamplingParams(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency
    )
    in_prompt = np.asarray([[x for x, _ in seen]])
    generated = np.asarray([[n for _, n in seen]], np.int32)
    found = _penalised(
        np.asarray([logits], np.float32), rows_of(params), Seen(in_prompt, generated)
    )
    for token, (logit, (prompt, count)) in enumerate(zip(logits, seen, strict=True)):
        if prompt or count:
            logit = logit / repetition if logit > 0 else logit * repetition
        logit -= presence * (count > 0) + frequency * count
        np.testing.assert_allclose(found[0, token], logit, rtol=1e-5, atol=1e-5)


@given(allowed=st.sets(st.integers(0, V - 1), min_size=1), seed=st.integers(0, 99))
def test_masks_let_only_their_tokens_through(allowed, seed):
    words = np.zeros(2, np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    assert set(np.flatnonzero(np.asarray(unpack_mask(words[None], V))[0])) == allowed
    logits = np.random.default_rng(seed).normal(size=(2, V)).astype(np.float32) * 3
    params = (SamplingParams(), SamplingParams(temperature=1, seed=seed, top_p=0.9))
    features = Features(random=True, filters=True, mask=True, top_logprobs=0)
    mask = np.broadcast_to(words, (2, 2))
    done = _choose(logits, rows_of(*params), np.zeros(2, np.int32), features, mask=mask)
    assert int(done.token[0]) == max(allowed, key=lambda token: logits[0, token])
    assert int(done.token[1]) in allowed
    # Log-probabilities are the model's own, before the mask.
    full = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    np.testing.assert_allclose(done.logprob, full[[0, 1], np.asarray(done.token)], atol=1e-5)


def draws(logits, params, count, first=0):
    """Tokens of one request at steps first .. first + count - 1, each from the same logits."""
    rows = RowSampling.of([params] * count, count)
    features = dataclasses.replace(Features.of([params]), top_logprobs=-1)
    index = np.arange(first, first + count, dtype=np.int32)
    logits = np.broadcast_to(np.asarray(logits, np.float32), (count, len(logits)))
    return np.asarray(_choose(logits, rows, index, features).token)


@pytest.mark.parametrize(
    "params",
    [
        dict(temperature=1.0),
        dict(temperature=0.5),
        dict(temperature=2.0, top_k=3),
        dict(temperature=1.0, top_p=0.75),
        dict(temperature=1.3, min_p=0.2),
    ],
)
def test_frequencies_are_those_of_the_distribution(params):
    p = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
    params = SamplingParams(seed=11, **params)
    count = 6000
    found = np.bincount(draws(np.log(p), params, count), minlength=len(p))
    weights = p ** (1 / params.temperature)
    must, may = reference_kept(np.log(weights), params)
    np.testing.assert_array_equal(must, may)
    weights = np.where(must, weights, 0)
    assert found[~must].sum() == 0
    expected = count * weights[must] / weights.sum()
    assert stats.chisquare(found[must], expected).pvalue > 1e-3


def test_frequencies_over_seeds_and_independence_of_steps():
    p = np.array([0.5, 0.3, 0.2])
    count = 2000
    rows = RowSampling.of([SamplingParams(temperature=1, seed=s) for s in range(count)], count)
    logits = np.broadcast_to(np.log(p).astype(np.float32), (count, 3))
    step = [
        np.asarray(_choose(logits, rows, np.full(count, i, np.int32), Features(random=True)).token)
        for i in range(2)
    ]
    assert stats.chisquare(np.bincount(step[0], minlength=3), p * count).pvalue > 1e-3
    pairs = np.histogram2d(*step, bins=3)[0]
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_seed_and_step_are_the_whole_state():
    logits = np.zeros(V)
    a = SamplingParams(temperature=1, seed=5)
    np.testing.assert_array_equal(draws(logits, a, 40), draws(logits, a, 40))
    np.testing.assert_array_equal(draws(logits, a, 40)[8:], draws(logits, a, 32, first=8))
    assert len(set(draws(logits, a, 40).tolist())) > 10  # the step moves on
    for seed in (6, 5 + 2**32, -5, 2**63):  # all 64 bits count
        other = draws(logits, dataclasses.replace(a, seed=seed), 40)
        assert (other != draws(logits, a, 40)).mean() > 0.5


@given(order=st.permutations(range(4)), seed=st.integers(0, 50))
def test_a_row_does_not_depend_on_the_others(order, seed):
    logits = np.random.default_rng(seed).normal(size=(4, V)).astype(np.float32) * 2
    params = [
        SamplingParams(),
        SamplingParams(temperature=0.7, seed=seed, top_k=5),
        SamplingParams(temperature=1.5, seed=seed, top_p=0.7, min_p=0.01),
        SamplingParams(temperature=1.0, seed=seed + 1, repetition_penalty=1.5),
    ]
    seen = np.random.default_rng(seed + 1).integers(0, 2, (4, V))
    index = np.arange(4, dtype=np.int32)
    features = Features(random=True, filters=True, penalties=True, top_logprobs=5)

    def run(which):
        rows = RowSampling.of([params[i] for i in which], 4)
        return _choose(
            logits[which], rows, index[which], features,
            Seen(seen[which] > 0, seen[which].astype(np.int32)),
        )  # fmt: skip

    plain, moved = run([0, 1, 2, 3]), run(list(order))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x)[order], y), plain, moved)
    for row in range(4):  # beside copies of itself
        alone = run([row] * 4)
        jax.tree.map(
            lambda x, y, row=row: np.testing.assert_array_equal(np.asarray(x)[[row] * 4], y),
            plain, alone,
        )  # fmt: skip


def test_greedy_is_argmax_whatever_the_filters_and_beside_random_rows():
    logits = np.random.default_rng(0).normal(size=(3, V)).astype(np.float32)
    params = [SamplingParams(top_k=3, top_p=0.1, seed=s) for s in range(2)]
    features = Features(random=True, filters=True)
    rows = rows_of(*params, SamplingParams(temperature=5, seed=3))
    done = _choose(logits, rows, np.zeros(3, np.int32), features)
    np.testing.assert_array_equal(done.token[:2], logits[:2].argmax(-1))
    done = _choose(logits, rows_of(*params, params[0]), np.zeros(3, np.int32), Features())
    np.testing.assert_array_equal(done.token, logits.argmax(-1))


def test_temperature_towards_zero_becomes_greedy():
    logits = np.random.default_rng(4).normal(size=V)
    for temperature in (1e-3, 1e-6, 1e-30):
        found = draws(logits, SamplingParams(temperature=temperature, seed=1), 50)
        np.testing.assert_array_equal(found, np.full(50, logits.argmax()))
    flat = draws(logits, SamplingParams(temperature=1e6, seed=1), 3000)
    assert stats.chisquare(np.bincount(flat, minlength=V)).pvalue > 1e-3


def test_very_peaked_distributions_and_masked_logits():
    peaked = np.full(V, -1e4)
    peaked[7] = 1e4
    for params in (dict(), dict(top_p=0.9), dict(top_k=5), dict(min_p=0.1)):
        found = draws(peaked, SamplingParams(temperature=1, seed=2, **params), 60)
        np.testing.assert_array_equal(found, np.full(60, 7))
    holes = np.full(V, -np.inf)
    holes[[3, 30]] = [0.0, 0.0]
    for params in (dict(), dict(top_p=0.9), dict(top_k=5), dict(min_p=0.1)):
        found = draws(holes, SamplingParams(temperature=1, seed=2, **params), 60)
        assert set(found.tolist()) == {3, 30}


@given(seed=st.integers(0, 99), scale=st.sampled_from([0.01, 1.0, 30.0]), top=st.integers(0, 5))
def test_log_probabilities_and_alternatives(seed, scale, top):
    logits = (np.random.default_rng(seed).normal(size=(2, V)) * scale).astype(np.float32)
    token = np.asarray([seed % V, 3], np.int32)
    wide = logits.astype(np.float64)
    full = wide - wide.max(-1, keepdims=True)
    full -= np.log(np.exp(full).sum(-1, keepdims=True))
    logprob, ids, values = log_probabilities(logits, token, top)
    np.testing.assert_allclose(logprob, full[[0, 1], token], rtol=1e-5, atol=1e-5)
    if not top:
        assert ids is None and values is None
        return
    np.testing.assert_array_equal(ids, np.argsort(-wide, -1, kind="stable")[:, :top])
    np.testing.assert_allclose(values, -np.sort(-full, -1)[:, :top], rtol=1e-5, atol=1e-5)
    assert log_probabilities(logits, token, V + 9)[1].shape == (2, V)


def test_features_are_the_union_of_what_rows_ask():
    greedy = SamplingParams(top_k=3, top_p=0.5, min_p=0.1)  # of no effect without a temperature
    assert Features.of([greedy]) == Features()
    assert Features.of([]) == Features()
    one = SamplingParams(temperature=1, logprobs=0)
    two = SamplingParams(frequency_penalty=0.1, logprobs=6)
    assert Features.of([one]) == Features(greedy=False, random=True, top_logprobs=0)
    assert Features.of([one, two]) == Features(random=True, penalties=True, top_logprobs=20)
    for logprobs, width in ((None, -1), (0, 0), (1, 5), (5, 5), (20, 20)):
        assert Features.of([SamplingParams(logprobs=logprobs)]).top_logprobs == width
