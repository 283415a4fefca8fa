"""Hidden states at a prompt's last token, read over the cache, against whole texts read anew."""

from __future__ import annotations

import dataclasses

import engine_helpers
import jax.numpy as jnp
import numpy as np
import pytest
from engine_helpers import assert_right, request, run_schedule
from tiny_model import prompt, random_adapter, tiny_model

from pangu_jax.inference import RequestError, programs
from pangu_jax.inference.hidden_states import hidden_states
from pangu_jax.inference.request import HiddenStatesAt
from pangu_jax.models.lora import select

# Around pages of 8 and chunks of 16; 64 fills the context.
TEXTS = [prompt(n, seed=1) for n in (3, 16, 40, 64, 33)]
LAYERS = (0, 2, -1, 1)
SMALL = dict(num_layers=2)  # compiles faster
# Measured, as parts of the largest number: 2e-6 in float32; with int8 weights, where every product
# rounds activations by 3e-5, 1.2e-4.
CLOSE = {"float32": 1e-5, "int8": 5e-4}


def engine_of(variant="pre_ln", *, model=None, **settings):
    model = tiny_model(variant, **SMALL) if model is None else model
    return engine_helpers.engine_of(model=model, **settings)


def whole(engine, texts, layers=LAYERS, *, normed=False, adapters=()):
    """Float32 (texts, layers, D) by the function that reads every text from its beginning."""
    lora = None
    if adapters:
        mix = jnp.asarray(select(engine.adapter_names, [adapters]))
        lora = programs.Adapters(engine._adapters, mix).bound()
    every = hidden_states(  # of all layers, so that few programs are compiled
        engine.model, engine.weights, texts, layers=range(engine.model.num_layers + 1),
        positions=[-1], normed=normed, lora=lora,
    )  # fmt: skip
    return every[:, list(layers), 0]


def assert_close(found, expected, weights="float32"):
    assert found.shape == expected.shape and found.dtype == np.float32
    for mine, other in zip(np.moveaxis(found, -2, 0), np.moveaxis(expected, -2, 0), strict=True):
        np.testing.assert_allclose(mine, other, atol=CLOSE[weights] * np.abs(other).max())


def asking(name, text, layers=LAYERS, normed=False, **sampling):
    return request(name, text, hidden=HiddenStatesAt(layers=layers, normed=normed), **sampling)


# ------------------------------------------------------------------ requests


def test_requests_get_the_states_of_their_prompts_whatever_they_ask_beside():
    """Different layers in one dispatch, with tokens made or none, beside a request without."""
    engine = engine_of("dssn_qk_norm", prefill_tokens=128)
    asked = [
        asking("a", prompt(9), (1, -2), max_tokens=3),
        asking("b", prompt(17), (2,), True, max_tokens=0, prompt_logprobs_from=2),
        asking("c", prompt(30), (-1, 0), max_tokens=3),
        request("d", prompt(12), max_tokens=3),
    ]
    done = engine.generate(asked)
    assert engine.statistics.prefill_dispatches == 1
    for one, found in zip(asked, done, strict=True):
        assert_right(one, found, tiny_model("dssn_qk_norm", **SMALL))
        if one.hidden is None:
            assert found.hidden is None
        else:
            at = one.hidden
            expected = whole(engine, [one.prompt_ids], at.layers, normed=at.normed)
            assert_close(found.hidden, expected[0])


@pytest.mark.parametrize("length,cached", [(8, 0), (16, 8), (17, 16), (40, 32), (64, 56)])
def test_of_a_known_prompt_only_the_end_is_read(length, cached):
    """The last token is always computed, also where its page is full and known."""
    engine = engine_of()
    text = prompt(length)
    engine.generate([request("fill", text, max_tokens=0)])
    (done,) = engine.generate([asking("again", text, max_tokens=0)])
    assert done.cached_tokens == cached
    assert_close(done.hidden, whole(engine, [text])[0])


def test_rows_that_give_way_keep_or_find_their_states():
    """5 pages for three requests that grow to 4 each; two of them are being answered."""
    engine = engine_of(num_pages=6, context_length=32)
    asked = [asking(n, prompt(6, seed=n), max_tokens=None) for n in range(3)]
    done = run_schedule(engine, asked)
    assert engine.statistics.preemptions > 0
    for one in asked:
        assert len(done[one.id].token_ids) == 26
        assert_close(done[one.id].hidden, whole(engine, [one.prompt_ids])[0])


def test_a_row_that_gives_way_inside_its_prompt_finds_its_states():
    """The prompt needs four pages; while its second chunk waits, an older row takes the rest."""
    engine = engine_of(num_pages=9, prefill_tokens=8, decode_steps=8)
    first = request("first", prompt(8), max_tokens=50)
    late = asking("late", prompt(33), max_tokens=0)
    engine.add(first)
    while not engine._schedule.running or not engine._schedule.running[0].decoding:
        engine.step()
    engine.add(late)
    engine.step()
    row = engine._schedule.find("late")
    assert 0 < row.computed < 33
    engine._schedule._put_back(row)
    while not engine.idle:
        engine.step()
    assert engine.statistics.preemptions >= 1
    assert_close(engine.take("late").hidden, whole(engine, [late.prompt_ids])[0])
    assert engine.take("first").hidden is None


def test_a_cancelled_request_has_no_states():
    engine = engine_of()
    engine.add(asking("x", prompt(40), max_tokens=0))
    engine.step()
    engine.cancel("x")
    done = engine.take("x")
    assert done.finish_reason == "cancelled" and done.hidden is None


def test_which_layers_are_asked_for_compiles_nothing_new():
    engine = engine_of()
    for number, layers in enumerate([(0,), (1, 2), (-1,), (2, 0, 1)]):
        engine.generate([asking(number, prompt(9), layers, bool(number % 2), max_tokens=0)])
        if number == 0:
            programs_before = programs.prefill._cache_size()
    assert programs.prefill._cache_size() == programs_before


def test_who_does_not_ask_gets_the_program_as_it_was():
    engine = engine_of()
    seen = []

    def watched(*args, **kwargs):
        out = kept(*args, **kwargs)
        seen.append((kwargs, out.streams))
        return out

    kept = programs.prefill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "prefill", watched)
        engine.generate([request("plain", prompt(20), max_tokens=1)])
        engine.generate([asking("asks", prompt(20, seed=2), max_tokens=0)])
    assert [kwargs["streams"] for kwargs, _ in seen] == [False, False, False, True]  # 2 chunks each
    assert [streams is None for _, streams in seen] == [True, True, True, False]
    assert seen[-1][1].shape == (engine.model.num_layers + 2, 1, engine.model.hidden_dim)


@pytest.mark.parametrize("layers", [(), (3,), (-4,)])
def test_layers_that_are_not_there_are_named(layers):
    engine = engine_of()
    words = rf"Request 'x': layers=\[{', '.join(map(str, layers))}\] .* one of 0 to 2"
    with pytest.raises(RequestError, match=words):
        engine.generate([asking("x", prompt(5), layers)])
    assert engine.idle


# ------------------------------------------------------------------ Engine.hidden_states


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_texts_of_mixed_lengths_cold_and_warm_with_and_without_adapters(weights):
    adapter = random_adapter("a", tiny_model(**SMALL).config, seed=4)
    engine = engine_of(weights=weights, adapters=[adapter], num_pages=120)
    for normed, adapters in ((False, ()), (True, (("a", 0.5),))):
        expected = whole(engine, TEXTS, normed=normed, adapters=adapters)
        for cached in (0, 8 + 32 + 56 + 32):
            before = engine.statistics.cached_tokens
            found = engine.hidden_states(TEXTS, LAYERS, [-1], normed=normed, adapters=adapters)
            assert_close(found[:, :, 0], expected, weights)
            assert engine.statistics.cached_tokens - before == cached
        assert engine.idle and not engine._done
        by_index = [[len(text) - 1] for text in TEXTS]
        again = engine.hidden_states(TEXTS, LAYERS, by_index, normed=normed, adapters=adapters)
        np.testing.assert_array_equal(again, found)


def test_an_answer_after_a_question_reads_the_last_page_only():
    """What a probe does: one token is made, then the state at the answer is asked for."""
    engine = engine_of()
    question = prompt(50)
    (answer,) = engine.generate([request("asked", question, max_tokens=1)])
    text = (*question, *answer.token_ids)
    before = engine.statistics.prompt_tokens, engine.statistics.cached_tokens
    found = engine.hidden_states([text], [-2], [-1], normed=True)
    assert engine.statistics.prompt_tokens - before[0] == 51
    assert engine.statistics.cached_tokens - before[1] == 48
    assert_close(found[:, :, 0], whole(engine, [text], [-2], normed=True))


def _running(engine):
    engine.add(request("runs", prompt(5), max_tokens=9))
    return dict(texts=TEXTS[:2])


CASES = {
    "something runs": ({}, _running),
    "an earlier position": ({}, lambda e: dict(texts=TEXTS[:2], positions=[0])),
    "two positions": ({}, lambda e: dict(texts=TEXTS[:2], positions=[-1, 0])),
    "beyond the context": ({}, lambda e: dict(texts=[TEXTS[0], prompt(65)])),
    "a coarser cache": (dict(cache_dtype="float16"), lambda e: dict(texts=TEXTS[:2])),
    "closed": ({}, lambda e: e.close() or dict(texts=TEXTS[:2])),
}


@pytest.mark.parametrize("case", CASES)
def test_what_rows_cannot_give_is_read_whole(case):
    settings, prepare = CASES[case]
    engine = engine_of(**settings)
    ask = {"positions": [-1]} | prepare(engine)
    found = engine.hidden_states(ask["texts"], [0, 2], ask["positions"])
    assert engine.statistics.prompt_tokens == 0
    expected = hidden_states(
        engine.model, engine.weights, ask["texts"], layers=[0, 2], positions=ask["positions"],
        batch_rows=engine.config.max_rows,
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected)


def test_bfloat16_models_are_read_over_caches_of_their_own_type():
    """float16 keeps more digits, but not the range: such a cache is not used."""
    model = tiny_model(**SMALL)
    model = model._replace(config=dataclasses.replace(model.config, dtype="bfloat16"))
    for cache, used in (("bfloat16", True), ("float16", False)):
        engine = engine_of(weights="bfloat16", cache_dtype=cache, model=model)
        found = engine.hidden_states(TEXTS[1:2], [-1], [-1])
        assert bool(engine.statistics.prompt_tokens) == used
        expected = whole(engine, TEXTS[1:2], [-1])
        np.testing.assert_allclose(found[:, :, 0], expected, atol=0.05 * np.abs(expected).max())


def test_no_texts_and_what_is_refused():
    engine = engine_of()
    assert engine.hidden_states([], [0, 1], [-1]).shape == (0, 2, 0, 32)
    for texts, layers, adapters, words in (
        ([TEXTS[0], ()], [1], (), "Text 1 is empty"),
        ([TEXTS[0], (5, 110)], [1], (), "Text 1 holds token 110 .* vocabulary is 0 to 109"),
        (TEXTS, [3], (), r"^layers=\[3\] must name at least one of 0 to 2"),
        (TEXTS, [1], (("b", 1.0),), r"names adapter 'b'; loaded are: \(none\)"),
    ):
        with pytest.raises(RequestError, match=words):
            engine.hidden_states(texts, layers, [-1], adapters=adapters)
    assert engine.statistics.prompt_tokens == 0 and not engine._done


def test_an_engine_that_fails_says_at_which_text():
    engine = engine_of()

    def broken(*args, **kwargs):
        raise FloatingPointError("no memory, say")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "prefill", broken)
        with pytest.raises(RuntimeError, match="text 0.*FloatingPointError: no memory"):
            engine.hidden_states(TEXTS[:1], [1], [-1])
    assert engine.idle and not engine._done
    assert np.isfinite(engine.hidden_states(TEXTS[:1], [1], [-1])).all()
