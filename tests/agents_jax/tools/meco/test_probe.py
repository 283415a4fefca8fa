"""The saved probe, and the policy of the agent loop that uses it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from meco_made import LAYERS, WIDTH, example, example_set, model, states_of

from agents_jax.llm import MissingCapability
from agents_jax.tools.agent.plugins import make_policy
from agents_jax.tools.agent.policy import State
from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.meco import DualThreshold, MecoError, Probe, ProbeMismatch, Threshold
from agents_jax.tools.meco.identity import reference_state
from agents_jax.tools.meco.prompts import messages
from agents_jax.tools.meco.report import _overhead_lines

TOOL = ToolDefinition("add", "Adds numbers.", {"type": "object", "properties": {}})


def probe(**changes):
    """Reads dimension 0 of the layer asked for, where `states_of` puts the label."""
    direction = np.zeros(WIDTH, np.float32)
    direction[0] = 1
    values = {
        "direction": direction, "center": np.zeros(WIDTH, np.float32), "layer": -3,
        "position": "first_token", "offset": 0.5, "scale": 2.0, "template": "no_tools",
        "rule": DualThreshold(l_yes=-0.25, l_no=-0.25), "instructions": ("strong", "weak"),
        "model": "made", "reference": reference_state(model()), "about": "by hand",
    }  # fmt: skip
    return Probe(**(values | changes))


@pytest.mark.parametrize("rule", [DualThreshold(l_yes=-0.25, orientation="A"), Threshold(0.125)])
def test_a_probe_comes_back_as_it_was_saved(tmp_path, rule):
    saved = probe(rule=rule)
    saved.save(tmp_path / "probes" / "p.npz")
    found = Probe.load(tmp_path / "probes" / "p.npz")
    for name in ("direction", "center", "reference"):
        np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))
    for name in ("layer", "position", "offset", "scale", "template", "instructions", "model"):
        assert getattr(found, name) == getattr(saved, name)
    assert repr(found.rule) == repr(saved.rule)
    assert (tmp_path / "probes" / "p.npz").stat().st_size < 20_000


def test_decisions_follow_the_hidden_state_and_not_the_answer():
    made = probe()
    asked = model()
    made.check(asked)
    for one in example_set(12).examples:
        found = made.decide(asked, one.query)
        assert found.call == one.needed
        assert found.yes == (int(one.id[1:]) % 3 != 0)
        assert 0 < found.p_yes < 1 and found.usage.completion_tokens == 1


def test_pre_token_reads_before_any_answer():
    asked = model()
    probe(position="pre_token").decide(asked, "question number 2")
    (request,) = [r for r in asked.asked if r.kind == "hidden_states"]
    assert request.continuation == "" and request.positions == (-1,)


@pytest.mark.parametrize("position", ["first_token", "pre_token"])
def test_on_an_engine_the_second_request_reads_the_end_of_the_prompt_only(position, monkeypatch):
    """Answers of one token each, as real tokenizers have them."""
    from engine_helpers import engine_of
    from tiny_model import tiny_model

    from agents_jax.llm.local import LocalModel
    from agents_jax.tools.meco import answers
    from agents_jax.tools.meco import probe as module
    from pangu_jax.inference.hidden_states import hidden_states

    for name, text in (("YES", ("Y",)), ("NO", ("N",))):
        monkeypatch.setattr(answers, name, text)
        monkeypatch.setattr(module, name, text)
    tiny = tiny_model(num_layers=2)
    special = dataclasses.replace(
        tiny.tokenizer.special, chat_template="{{ messages[-1]['content'] }}"
    )
    loaded = tiny._replace(tokenizer=tiny.tokenizer._replace(special=special))
    engine = engine_of(model=loaded, context_length=512, page_size=32, prefill_tokens=64)
    made = probe(
        position=position, layer=-2, direction=np.eye(32, dtype=np.float32)[0],
        center=np.zeros(32, np.float32), offset=0.0, scale=1.0,
    )  # fmt: skip
    with LocalModel(engine) as asked:
        found = made.decide(asked, "what is it?")
    question = messages(example(0, False, query="what is it?"))[-1]["content"]
    ids = tiny.tokenizer.tokenizer.encode(question, add_special_tokens=False).ids
    answer = tiny.tokenizer.tokenizer.encode("Y" if found.yes else "N").ids
    text = [*ids, *answer] if position == "first_token" else ids
    expected = hidden_states(engine.model, engine.weights, [text], layers=[-2], positions=[-1])
    np.testing.assert_allclose(found.score, expected[0, 0, 0, 0], rtol=1e-4, atol=1e-5)
    assert found.usage.prompt_tokens == len(ids) + len(text)
    read = engine.statistics.prompt_tokens - engine.statistics.cached_tokens
    assert len(ids) > 128 and read - len(ids) <= 3 * 33  # both answers may have been scored apart


def test_what_deciding_costs_is_measured_on_prompts_as_new_or_as_known_as_said():
    """The scripted model sees in which order chats come."""
    from agents_jax.tools.meco import overhead

    data = example_set(3).examples
    states = np.zeros((3, len(LAYERS), WIDTH))
    observed = SimpleNamespace(layers=LAYERS, first_token=states)
    reader = SimpleNamespace(
        directions=np.zeros((len(LAYERS), WIDTH)), centers=np.zeros((len(LAYERS), WIDTH))
    )
    asked = model()
    found = overhead.measure(asked, data, reader, observed)
    assert found.pop("queries") == 3
    assert set(found) == {
        "first_token_ms", "first_token_cached_ms", "hidden_state_ms", "hidden_state_cached_ms",
        "probe_ms",
    }  # fmt: skip
    assert all(value > 0 for value in found.values())
    log = [(r.kind, tuple(m["content"] for m in r.messages)) for r in asked.asked]
    half = len(log) // 2  # which compiles
    earlier = {text for _, text in log[:half]}
    log = log[half:]
    new, again, unread, after = log[:3], log[3:9], log[9:12], log[12:]
    assert len({text for _, text in new}) == 3 and not earlier & {text for _, text in new}
    assert again == [entry for entry in new for _ in range(2)]
    known = earlier | {text for _, text in new}
    assert {kind for kind, _ in unread} == {"hidden_states"}
    assert not known & {text for _, text in unread}
    assert after[::2] == new and [text for _, text in after[1::2]] == [text for _, text in new]
    assert {kind for kind, _ in after[1::2]} == {"hidden_states"}
    text = "\n".join(_overhead_lines({"data_set": "made", "queries": 3, **found}))
    assert f"{found['hidden_state_ms']:.1f} ms (right after the first token: " in text


def test_another_model_and_an_endpoint_are_refused():
    other = model(hidden=lambda r: states_of(r) * -1, name="other")
    with pytest.raises(ProbeMismatch, match="made with 'made'.*'other'"):
        probe().check(other)
    with pytest.raises(ProbeMismatch, match="width 9"):
        probe().check(model(hidden=lambda r: np.zeros((1, 1, 9))))
    with pytest.raises(MissingCapability, match="hidden_states"):
        probe().check(model(capabilities=("generate", "chat", "score")))


def test_what_is_no_probe_is_named(tmp_path):
    with pytest.raises(MecoError, match="no probe.*launch.py"):
        Probe.load(tmp_path / "none.npz")
    path = tmp_path / "p.npz"
    path.write_bytes(b"PK nothing")
    with pytest.raises(MecoError, match="is no probe"):
        Probe.load(path)
    np.savez(path, facts=np.array([object()], dtype=object))
    with pytest.raises(MecoError, match="is no probe"):
        Probe.load(path)
    with pytest.raises(MecoError, match="position 'middle'"):
        probe(position="middle")


def test_a_reworded_question_makes_old_probes_void(tmp_path, monkeypatch):
    from agents_jax.tools.meco import prompts

    probe().save(tmp_path / "p.npz")
    monkeypatch.setitem(prompts._QUESTIONS, "no_tools", "Another wording: {query}")
    with pytest.raises(MecoError, match="another wording"):
        Probe.load(tmp_path / "p.npz")


def state(number, **changes):
    values = {
        "task_id": "t", "tools": (TOOL,),
        "messages": ({"role": "system", "content": "s"}, {"role": "user", "content": "earlier"},
                     {"role": "assistant", "content": "answer"},
                     {"role": "user", "content": f"question number {number}"}),
    }  # fmt: skip
    return State(**(values | changes))


def test_the_policy_decides_once_and_sees_tools_and_history(tmp_path):
    probe(template="tools").save(tmp_path / "meco.npz")
    asked = model()
    policy = make_policy(f"meco:probe={tmp_path}", asked)
    assert policy.name == "meco"
    for number in range(4):
        decision = policy.decide(state(number))
        assert decision.call is (number % 2 == 0)
        assert decision.cost.model_calls == 2 and decision.score is not None
        assert ("turned" in decision.reason) == ((number % 3 != 0) != (number % 2 == 0))
    last = asked.asked[-1]
    assert [m["role"] for m in last.messages] == ["system", "user", "assistant", "user"]
    assert '"add"' in last.messages[-1]["content"]
    before = len(asked.asked)
    assert policy.decide(state(0, num_calls=1)).call is None
    assert policy.decide(state(0, tools=())).call is False
    assert len(asked.asked) == before


def test_a_policy_without_its_probe_is_named(tmp_path):
    with pytest.raises(ValueError, match="needs a probe.*meco:probe="):
        make_policy("meco", model())
    with pytest.raises(ValueError, match="no probe"):
        make_policy(f"meco:probe={tmp_path}/x.npz", model())


def test_the_question_of_a_probe_is_that_of_the_study():
    """A probe's chat is the study's, so that thresholds carry over."""
    asked = model()
    one = example_set(3).examples[2]
    probe().decide(asked, one.query)
    assert asked.asked[-1].messages == tuple(dict(m) for m in messages(one))
