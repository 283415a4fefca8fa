"""The agent loop: model, calls, execution, observations, final answer; methods plug in."""

from agents_jax.tools.agent.baselines import Always, Identity, Never, OwnChoice
from agents_jax.tools.agent.plugins import POLICIES, REFINERS, make_policy, make_refiner
from agents_jax.tools.agent.policy import (
    Ask,
    AskError,
    CallPolicy,
    Cost,
    Decision,
    Proposal,
    Refinement,
    Refiner,
    State,
)

__all__ = [
    "Always",
    "Ask",
    "AskError",
    "CallPolicy",
    "Cost",
    "Decision",
    "Identity",
    "Never",
    "OwnChoice",
    "POLICIES",
    "Proposal",
    "REFINERS",
    "Refinement",
    "Refiner",
    "State",
    "make_policy",
    "make_refiner",
]
