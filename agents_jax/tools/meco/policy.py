"""MeCo in the agent loop: a saved probe decides whether tools are called."""

from __future__ import annotations

import pathlib

from agents_jax.llm.interface import LanguageModel
from agents_jax.tools.agent.policy import Cost, Decision, State, text_of
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.probe import Probe


class MecoPolicy:
    """Decides once per task, before the first call; afterwards the model chooses.

    Raises:
      MissingCapability: the model gives no hidden states, as behind an endpoint.
      ProbeMismatch: the probe is another model's.
    """

    name = "meco"

    def __init__(self, probe: Probe, model: LanguageModel):
        probe.check(model)
        self._probe, self._model = probe, model

    def decide(self, state: State) -> Decision:
        """True where the probe says that one of the tools is needed, else False."""
        if state.num_calls or state.turn:
            return Decision(call=None, reason="decided before")
        if not state.tools:
            return Decision(call=False, reason="no tools are offered")
        users = [i for i, m in enumerate(state.messages) if m.get("role") == "user"]
        last = users[-1] if users else 0
        history = [
            {"role": m["role"], "content": text_of(m)}
            for m in state.messages[:last]
            if m.get("role") in ("user", "assistant") and text_of(m)
        ]
        tools = [
            {"name": t.name, "description": t.description, "parameters": dict(t.parameters)}
            for t in state.tools
        ]
        found = self._probe.decide(self._model, state.query, tools, history)
        own = "Yes" if found.yes else "No"
        turned = "" if found.yes == found.call else ", turned by the probe"
        return Decision(
            call=found.call,
            score=found.score,
            reason=f"the model says {own} (p={found.p_yes:.2f}){turned}",
            cost=Cost(2, found.usage.prompt_tokens, found.usage.completion_tokens, found.seconds),
        )


def make_policy(model: LanguageModel, probe: str = "") -> MecoPolicy:
    """The policy 'meco:probe=FILE' of configurations; a folder stands for its meco.npz.

    Raises:
      MecoError: no probe named or found. Others: see MecoPolicy.
    """
    if not probe:
        raise MecoError("policy 'meco' needs a probe: write 'meco:probe=WORKDIR/probes/meco.npz'.")
    path = pathlib.Path(probe)
    return MecoPolicy(Probe.load(path / "meco.npz" if path.is_dir() else path), model)
