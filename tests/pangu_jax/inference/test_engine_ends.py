"""How requests end: stops, limits, cancelling, refusals, and a dispatch that fails."""

from __future__ import annotations

import dataclasses
import re

import pytest
from engine_helpers import assert_right, assert_same, engine_of, request, run_schedule
from tiny_model import END_OF_TEXT, EOS, VOCAB, make_tokenizer, parameters, prompt, tiny_model
from tokenizers import AddedToken

from pangu_jax.inference import Grammar, RequestError, SamplingParams, ServerClosed, programs
from pangu_jax.inference.end_tokens import end_tokens
from pangu_jax.weights import LoadedModel, LoadedTokenizer, SpecialTokens


@pytest.fixture(scope="module")
def engine():
    return engine_of()


@pytest.fixture(scope="module")
def answer(engine):
    """A free greedy answer whose first tokens differ, to cut in several ways."""
    (done,) = engine.generate([request("free", prompt(12), max_tokens=12)])
    assert_right(request("free", prompt(12), max_tokens=12), done, tiny_model())
    return done


def ask(engine, name="r", **sampling):
    (done,) = engine.generate([request(name, prompt(12), **({"max_tokens": 12} | sampling))])
    return done


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_max_tokens(engine, answer, count):
    done = ask(engine, max_tokens=count)
    assert done.token_ids == answer.token_ids[:count] and done.finish_reason == "length"
    assert len(done.logprobs) == count


@pytest.mark.parametrize("place", range(6))
def test_stop_ids_at_every_place_of_a_dispatch(engine, answer, place):
    token = answer.token_ids[place]
    end = answer.token_ids.index(token)
    done = ask(engine, stop_token_ids=(VOCAB - 1, token))
    assert done.token_ids == answer.token_ids[: end + 1] and done.finish_reason == "stop"
    tokenizer = tiny_model().tokenizer.tokenizer
    assert done.text == tokenizer.decode(list(done.token_ids[:-1]))
    assert engine._schedule.pool.used == 0


def test_stop_texts_are_cut_off(engine, answer):
    # Tokens of the answer whose text is whole characters; a stop text over two of them.
    for first in range(1, 8):
        stop = answer.text[first : first + 2]
        done = ask(engine, stop=("never said", stop))
        assert done.text == answer.text[: answer.text.index(stop)]
        assert (done.finish_reason, done.stop_text) == ("stop", stop)
        assert done.token_ids == answer.token_ids[: len(done.token_ids)]
        assert stop in tiny_model().tokenizer.tokenizer.decode(list(done.token_ids))
        assert len(done.logprobs) == len(done.token_ids)
    done = ask(engine, stop=("never said",))
    assert (done.text, done.finish_reason, done.stop_text) == (answer.text, "length", None)


def test_end_tokens_end_unless_ignored():
    """A model that wants to end: the head's row of an end token is that of its first answer."""
    model = tiny_model("untied")
    (free,) = engine_of(model=model).generate([request("a", prompt(12), max_tokens=6)])
    head = parameters(model.config)["head"]["kernel"].copy()
    head[:, END_OF_TEXT] = head[:, free.token_ids[3]] * 1.01
    ending = LoadedModel(model.config, {**model.params, "head": {"kernel": head}}, model.tokenizer)
    engine = engine_of(model=ending)
    assert engine.end_ids == end_tokens(model.tokenizer) == (EOS, END_OF_TEXT)
    ended, ignoring = engine.generate(
        [request(x, prompt(12), max_tokens=6, ignore_eos=bool(x)) for x in range(2)]
    )
    assert END_OF_TEXT in ignoring.token_ids and ignoring.finish_reason == "length"
    size = ignoring.token_ids.index(END_OF_TEXT) + 1
    assert ended.token_ids == ignoring.token_ids[:size] and ended.finish_reason == "stop"
    assert len(ignoring.token_ids) == 6


def test_special_tokens_that_end_turns_end_completions():
    tokenizer, special = make_tokenizer()
    assert end_tokens(LoadedTokenizer(tokenizer, SpecialTokens(eos=5))) == (EOS, END_OF_TEXT, 5)
    tokenizer.add_special_tokens([AddedToken("[unused10]", special=True)])
    unused = tokenizer.token_to_id("[unused10]")
    assert unused not in end_tokens(LoadedTokenizer(tokenizer, special))
    with_template = dataclasses.replace(special, chat_template="{{ text }}[unused10]")
    assert unused in end_tokens(LoadedTokenizer(tokenizer, with_template))
    # A text that is no special token of this tokenizer ends nothing.
    tokenizer.add_tokens([AddedToken("<|end|>", special=False)])
    assert tokenizer.token_to_id("<|end|>") not in end_tokens(LoadedTokenizer(tokenizer, special))


def test_the_context_ends_a_completion_and_a_prompt_that_is_only_read_may_fill_it(engine):
    done = engine.generate(
        [
            request("none", prompt(60), max_tokens=None),
            request("many", prompt(60), max_tokens=500),
            request("one", prompt(63), max_tokens=None),
            request("read", prompt(64), max_tokens=0, prompt_logprobs_from=60),
        ]
    )
    assert [len(c.token_ids) for c in done] == [4, 4, 1, 0]
    assert {c.finish_reason for c in done} == {"length"}
    assert_right(request("read", prompt(64), prompt_logprobs_from=60), done[3], tiny_model())


@pytest.mark.parametrize(
    "asked,message",
    [
        (request("r", ()), "has an empty prompt"),
        (request("r", prompt(64)), "prompt of 64 tokens; the context holds 64, so at most 63 fit"),
        (request("r", prompt(65), max_tokens=0), "at most 64 fit"),
        (request("r", (1, VOCAB)), f"token {VOCAB} .* vocabulary is 0 to {VOCAB - 1}"),
        (request("r", (1, -1)), "least -1"),
        (request("r", prompt(4), prompt_logprobs_from=5), "prompt_logprobs_from=5 lies beyond"),
        (request("r", prompt(4), adapters=(("x", 1.0),)), r"adapter 'x'; loaded are: \(none\)"),
        (
            request("r", prompt(4), grammar=Grammar(kind="regex", source="(")),
            "regex",
        ),
    ],
)
def test_requests_that_cannot_be_served_are_refused_at_once(engine, asked, message):
    pytest.importorskip("llguidance")
    with pytest.raises(RequestError, match=message):
        engine.add(asked)
    fine = request("fine", prompt(4))
    with pytest.raises(RequestError, match=message):
        engine.generate([fine, asked])
    assert engine.idle  # nothing was run


def test_ids_are_used_once_at_a_time(engine):
    with pytest.raises(RequestError, match="Two requests have the same id"):
        engine.generate([request("same", prompt(3), max_tokens=1)] * 2)
    engine.add(request("same", prompt(3), max_tokens=1))
    with pytest.raises(RequestError, match="'same' is in use"):
        engine.add(request("same", prompt(4), max_tokens=1))
    while not engine.idle:
        engine.step()
    with pytest.raises(RequestError, match="'same' is in use"):
        engine.add(request("same", prompt(4), max_tokens=1))
    engine.take("same")
    with pytest.raises(KeyError):
        engine.take("same")
    engine.add(request("same", prompt(4), max_tokens=1))
    engine.cancel("same")
    engine.take("same")


def test_too_many_waiting_are_refused_and_generate_waits_its_turn():
    engine = engine_of(waiting_limit=1)
    requests = [request(n, prompt(3, seed=n), max_tokens=2) for n in range(7)]
    assert len(engine.generate(requests)) == 7
    engine.add(requests[0])
    with pytest.raises(RequestError, match=r"engine.waiting_limit=1\); try again later"):
        engine.add(requests[1])
    engine.step()
    engine.add(requests[1])


def test_cancelling_frees_pages_and_leaves_the_others_alone(engine, answer):
    requests = [request(f"r{n}", prompt(12), max_tokens=12) for n in range(6)]
    for asked in requests:
        engine.add(asked)
    assert engine.cancel("r5").finish_reason == "cancelled"  # waits still
    for _ in range(4):
        engine.step()
    assert engine.cancel("r0").finish_reason == "cancelled"  # runs
    assert engine.cancel("r0") is None and engine.cancel("unknown") is None
    while not engine.idle:
        engine.step()
    done = [engine.take(asked.id) for asked in requests]
    assert [c.finish_reason for c in done] == ["cancelled", *["length"] * 4, "cancelled"]
    assert 0 < len(done[0].token_ids) < 12 and done[5].token_ids == ()
    assert done[0].token_ids == answer.token_ids[: len(done[0].token_ids)]
    for completion in done[1:5]:
        assert_same(completion, answer)
    assert engine._schedule.pool.used == 0


def _breaks(program, error):
    """The program, failing after it has taken over (and lost) the pages."""

    def broken(*args, **kwargs):
        program(*args, **kwargs)
        raise error

    return broken


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_after_a_failed_dispatch_the_engine_serves_the_next_requests(name, answer, monkeypatch):
    engine = engine_of()
    requests = [request(f"r{n}", prompt(12, seed=n), max_tokens=12) for n in range(6)]
    for asked in requests:
        engine.add(asked)
    with monkeypatch.context() as patch:
        patch.setattr(programs, name, _breaks(getattr(programs, name), RuntimeError("boom")))
        failed = []
        while not failed:
            failed = [delta for delta in engine.step() if delta.finish_reason == "error"]
    assert [delta.id for delta in failed] == [f"r{n}" for n in range(4)]  # all that ran
    assert {delta.error for delta in failed} == {"RuntimeError: boom"}
    assert engine.take("r0").finish_reason == "error"
    assert engine.take("r1").error == "RuntimeError: boom"
    while not engine.idle:
        engine.step()
    for n in (4, 5):
        done = engine.take(f"r{n}")
        assert done.finish_reason == "length"
        assert_right(requests[n], done, tiny_model())
    assert_same(ask(engine), answer)  # nothing of the lost pages is taken for a known prefix


def test_an_interruption_from_the_keyboard_passes_and_leaves_a_usable_engine(answer, monkeypatch):
    engine = engine_of()
    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode", _breaks(programs.decode, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            ask(engine)
    assert engine.idle
    assert_same(ask(engine), answer)


def test_completions_come_as_they_finish_and_leaving_early_cancels_the_rest(engine, answer):
    engine.add(request("other", prompt(12), max_tokens=12))
    bad = request("bad", (1, VOCAB))
    lengths = {"long": 12, "short": 1}
    asked = [request(name, prompt(12), max_tokens=n) for name, n in lengths.items()]
    done = list(engine.completions([bad, *asked]))
    assert [c.id for c in done] == ["bad", "short", "long"]
    assert done[0].finish_reason == "error" and "vocabulary" in done[0].error
    while not engine.idle:
        engine.step()
    assert_same(engine.take("other"), answer)  # not taken by `completions`
    rest = engine.completions(asked)
    assert next(rest).id == "short"
    rest.close()
    assert engine.idle and engine._schedule.pool.used == 0
    assert_same(ask(engine, "long"), answer)


def test_close_lets_running_requests_finish():
    engine = engine_of()
    engine.add(request("r", prompt(3), max_tokens=2))
    engine.close()
    with pytest.raises(ServerClosed, match="shutting down"):
        engine.add(request("s", prompt(3)))
    while not engine.idle:
        engine.step()
    assert engine.take("r").finish_reason == "length"


def test_a_model_without_tokenizer_is_refused():
    with pytest.raises(ValueError, match="has no tokenizer"):
        engine_of(model=tiny_model()._replace(tokenizer=None))


# ------------------------------------------------------------------ grammars


def test_grammars_hold_beside_free_requests(engine, answer):
    pytest.importorskip("llguidance", reason="needs the extra 'structured'")
    pattern = "(in|th)[a-c]{2,5}(-[0-9]{2})?"
    grammar = Grammar(kind="regex", source=pattern)
    requests = [request("free", prompt(12), max_tokens=12)]
    for seed in range(5):
        temperature = dict(temperature=1.5, seed=seed) if seed else {}
        requests.append(
            request(f"g{seed}", prompt(5), max_tokens=20, grammar=grammar, **temperature)
        )
    delays = [0, 0, 1, 2, 2, 3]
    done = run_schedule(engine, requests, delays)
    assert_same(done["free"], answer)
    texts = [done[f"g{seed}"].text for seed in range(5)]
    for seed in range(5):
        assert done[f"g{seed}"].finish_reason == "stop"
        assert re.fullmatch(pattern, texts[seed]), texts[seed]
    assert len(set(texts)) > 1
    # The same beside nobody.
    (alone,) = engine.generate([requests[3]])
    assert_same(alone, done["g2"])
    (short,) = engine.generate([request("cut", prompt(5), max_tokens=2, grammar=grammar)])
    assert short.finish_reason == "length" and len(short.token_ids) == 2


def test_a_grammar_that_gets_stuck_ends_its_own_request_alone(engine, answer):
    """'ü' begins with a byte that the tokenizer has, and goes on with one that it has not."""
    pytest.importorskip("llguidance", reason="needs the extra 'structured'")
    stuck = Grammar(kind="regex", source="aü")
    done = run_schedule(
        engine,
        [
            request("free", prompt(12), max_tokens=12),
            request("stuck", prompt(5), max_tokens=8, grammar=stuck),
        ],
    )
    assert_same(done["free"], answer)
    assert done["stuck"].finish_reason == "error"
    assert done["stuck"].error and done["stuck"].text == "a"
    assert engine._schedule.pool.used == 0


def test_sampling_values_that_mean_nothing_are_refused():
    for field, value in dict(
        max_tokens=-1, temperature=-0.1, top_k=-1, top_p=0.0, min_p=1.5, repetition_penalty=0.0,
        presence_penalty=float("inf"), frequency_penalty=float("nan"), logprobs=21,
        prompt_logprobs_from=0, stop=("",),
    ).items():  # fmt: skip
        with pytest.raises(RequestError, match=f"^{field}=.* is not allowed; "):
            SamplingParams(**{field: value})
    for value in (float("nan"), float("inf")):
        with pytest.raises(RequestError, match="temperature"):
            SamplingParams(temperature=value)
