"""Policies and refiners by name; the baselines."""

import sys
import types

import pytest

from agents_jax.llm import user
from agents_jax.tools.agent import Decision, State, make_policy, make_refiner, plugins
from agents_jax.tools.agent.policy import Proposal
from agents_jax.tools.calls import Call


def state(num_calls=0):
    return State(task_id="t", messages=(user("?"),), tools=(), num_calls=num_calls)


def test_baselines():
    decided = {
        name: [make_policy(name, None).decide(state(n)).call for n in (0, 1)]
        for name in ("own", "always", "never")
    }
    assert decided == {"own": [None, None], "always": [True, None], "never": [False, False]}
    proposal = Proposal(text="", calls=(Call("f"),))
    assert make_refiner("identity", None).refine(state(), proposal, None).proposal is proposal


@pytest.fixture
def module(monkeypatch):
    """A module of a method, found under the name 'mine'."""
    made = types.ModuleType("agent_test_method")
    sys.modules["agent_test_method"] = made
    monkeypatch.setitem(plugins.POLICIES, "mine", "agent_test_method:make")
    yield made
    del sys.modules["agent_test_method"]


def test_options_reach_the_method(module):
    class Mine:
        name = "mine"

        def __init__(self, model, options):
            self.model, self.options = model, options

        def decide(self, state):
            return Decision(call=None)

    module.make = lambda model, probe="", layer=0, share=0.5, flag=False: Mine(
        model, (probe, layer, share, flag)
    )
    made = make_policy("mine:probe=runs/a b/x, layer=-4,share=0.25,flag=true", "model")
    assert made.model == "model" and made.options == ("runs/a b/x", -4, 0.25, True)
    with pytest.raises(ValueError, match="no option 'lair'; options: probe, layer, share, flag"):
        make_policy("mine:lair=3", None)
    with pytest.raises(ValueError, match="'layer' is no option; write key=value"):
        make_policy("mine:layer", None)
    module.make = lambda model: object()
    with pytest.raises(TypeError, match="is no policy"):
        make_policy("mine", None)


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match="'alway' is unknown. Did you mean 'always'"):
        make_policy("alway", None)
    with pytest.raises(ValueError, match="Known: identity"):
        make_refiner("x", None)
    monkeypatch.setitem(plugins.POLICIES, "gone", "agents_jax.no_such_module:make")
    with pytest.raises(ValueError, match="cannot be loaded"):
        make_policy("gone", None)


def test_decisions_are_checked():
    with pytest.raises(ValueError, match="call=1"):
        Decision(call=1)
