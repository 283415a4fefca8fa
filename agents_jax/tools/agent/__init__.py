"""The agent loop: model, calls, execution, observations, final answer; methods plug in."""

from agents_jax.tools.agent.baselines import Always, Identity, Never, OwnChoice
from agents_jax.tools.agent.loop import Agent, run
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
from agents_jax.tools.agent.runner import RunError, run_tasks
from agents_jax.tools.agent.scores import Score, Summary, score
from agents_jax.tools.agent.settings import LoopSettings
from agents_jax.tools.agent.tasks import Expected, ExpectedCall, Task, TaskError, read_tasks
from agents_jax.tools.agent.transcript import Transcript, Turn, read_transcripts

__all__ = [
    "Agent",
    "Always",
    "Ask",
    "AskError",
    "CallPolicy",
    "Cost",
    "Decision",
    "Expected",
    "ExpectedCall",
    "Identity",
    "LoopSettings",
    "Never",
    "OwnChoice",
    "POLICIES",
    "Proposal",
    "REFINERS",
    "Refinement",
    "Refiner",
    "RunError",
    "Score",
    "State",
    "Summary",
    "Task",
    "TaskError",
    "Transcript",
    "Turn",
    "make_policy",
    "make_refiner",
    "read_tasks",
    "read_transcripts",
    "run",
    "run_tasks",
    "score",
]
