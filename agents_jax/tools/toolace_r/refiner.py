"""Adaptive self-refinement as a plug-in of the agent loop ('toolace_r')."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agents_jax.tools.agent.policy import Ask, Proposal, Refinement, State
from agents_jax.tools.toolace_r.answers import Answer
from agents_jax.tools.toolace_r.refine import INSTRUCTION, RefineConfig, StoppingRule

if TYPE_CHECKING:
    from agents_jax.llm import LanguageModel


class AdaptiveRefiner:
    """Has the model look at its calls again until two consecutive proposals are the same.

    Only the last proposal stands in the context of each look, as in `refine`. Where a look turns
    the calls into an answer in words, the loop takes that as the model's answer.
    """

    name = "toolace_r"

    def __init__(self, config: RefineConfig = RefineConfig()):  # noqa: B008 (frozen)
        self.config = config

    def refine(self, state: State, proposal: Proposal, ask: Ask) -> Refinement:
        """The last proposal; raises what `ask` raises (AskError)."""
        del state  # `ask` answers after its messages
        rule = StoppingRule(self.config)
        steps: list[Proposal] = []
        stop = rule.add(_answer(proposal))
        while stop is None:
            look = {"role": "user", "content": self.config.instruction}
            steps.append(ask([(steps[-1] if steps else proposal).message, look]))
            stop = rule.add(_answer(steps[-1]))
        return Refinement(proposal=steps[-1], steps=tuple(steps), reason=stop)


def _answer(proposal: Proposal) -> Answer:
    """An answer in words has no calls to compare: its text counts."""
    return Answer(proposal.text, proposal.calls or None)


def make_refiner(
    model: LanguageModel,
    max_steps: int = 5,
    fixed_steps: int | None = None,
    on_cycle: str = "continue",
    instruction: str = INSTRUCTION,
) -> AdaptiveRefiner:
    """Makes 'toolace_r' for the loop; see RefineConfig for the options.

    Raises:
      ValueError: an option that is not allowed.
    """
    del model  # the loop's `ask` is the model
    return AdaptiveRefiner(
        RefineConfig(
            max_steps=max_steps, fixed_steps=fixed_steps, on_cycle=on_cycle, instruction=instruction
        )
    )
