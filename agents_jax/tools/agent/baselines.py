"""Policies and a refiner that need nothing: what methods are compared with."""

from __future__ import annotations

from agents_jax.tools.agent.policy import Ask, Decision, Proposal, Refinement, State


class OwnChoice:
    """Tools are offered, the model chooses."""

    name = "own"

    def decide(self, state: State) -> Decision:
        """Always None."""
        del state
        return Decision(call=None, reason="the model chooses")


class Always:
    """A call is required until one was made; then the model chooses, so that it can answer."""

    name = "always"

    def decide(self, state: State) -> Decision:
        """True before the first call of the task."""
        if state.num_calls:
            return Decision(call=None, reason="a call was made")
        return Decision(call=True, reason="always")


class Never:
    """Tools are withheld."""

    name = "never"

    def decide(self, state: State) -> Decision:
        """Always False."""
        del state
        return Decision(call=False, reason="never")


class Identity:
    """Calls are made as they were proposed."""

    name = "identity"

    def refine(self, state: State, proposal: Proposal, ask: Ask) -> Refinement:
        """The proposal itself."""
        del state, ask
        return Refinement(proposal=proposal, reason="not refined")


def own(model) -> OwnChoice:
    """Makes 'own'."""
    del model
    return OwnChoice()


def always(model) -> Always:
    """Makes 'always'."""
    del model
    return Always()


def never(model) -> Never:
    """Makes 'never'."""
    del model
    return Never()


def identity(model) -> Identity:
    """Makes 'identity'."""
    del model
    return Identity()
