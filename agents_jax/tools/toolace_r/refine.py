"""Adaptive self-refinement at inference: look again until two consecutive answers are the same.

The loop is the paper's Algorithm 1 as far as it is known (the stop at two identical outputs);
what counts as identical, the prompt, the limit and the treatment of cycles are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from agents_jax.llm import GenerateRequest, LanguageModel, Response
from agents_jax.tools.agent.policy import Cost
from agents_jax.tools.calls import Dialect
from agents_jax.tools.toolace_r.answers import (
    Answer,
    refinement_messages,
    response_text,
    same_answer,
)

INSTRUCTION = (
    "Check this answer against the request and the functions. If it is right, repeat it unchanged; "
    "if not, write the corrected answer. Write nothing else."
)
"""What asks for another look (ours; the paper's wording is not known)."""

Stop = Literal["equal", "cycle", "max_steps", "fixed", "failed"]
STOPS: tuple[Stop, ...] = ("equal", "cycle", "max_steps", "fixed", "failed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefineConfig:
    """How answers are refined.

    instruction: of every further look. max_steps: looks at most (N_max; ours, the paper's is not
      known). fixed_steps: exactly so many looks, whatever they say; None: stop at two equal ones.
    on_cycle: 'continue' goes on to max_steps where an answer comes back that is not the last one
      (Algorithm 1 as it stands), 'stop' ends there. Cycles are counted in both.
    dialect: how answers are read for the comparison, see `parse_calls`.
    """

    instruction: str = INSTRUCTION
    max_steps: int = 5
    fixed_steps: int | None = None
    on_cycle: Literal["continue", "stop"] = "continue"
    dialect: Dialect = "any"

    def __post_init__(self):
        if self.max_steps < 1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1.")
        if self.fixed_steps is not None and self.fixed_steps < 1:
            raise ValueError(f"fixed_steps={self.fixed_steps} must be at least 1, or None.")
        if self.on_cycle not in ("continue", "stop"):
            raise ValueError(f"on_cycle={self.on_cycle!r} is unknown; allowed: continue, stop.")
        if not self.instruction.strip():
            raise ValueError("instruction is empty; give the text that asks for another look.")


class StoppingRule:
    """Is told of one answer after another, the first one included, and says when to stop.

    Attributes:
      cycle: length of the cycle that was seen (2 for A, B, A); 0 for none.
    """

    def __init__(self, config: RefineConfig):
        self._config = config
        self._answers: list[Answer] = []
        self.cycle = 0

    def add(self, answer: Answer) -> Stop | None:
        """Why to stop after this answer; None to look again."""
        config, earlier = self._config, self._answers
        looks = len(earlier)
        equal = bool(earlier) and same_answer(answer, earlier[-1])
        if not equal and not self.cycle:
            self.cycle = next(
                (back for back in range(2, looks + 1) if same_answer(answer, earlier[-back])), 0
            )
        earlier.append(answer)
        if config.fixed_steps is not None:
            return "fixed" if looks >= config.fixed_steps else None
        if equal:
            return "equal"
        if self.cycle and config.on_cycle == "stop":
            return "cycle"
        return "max_steps" if looks >= config.max_steps else None


@dataclasses.dataclass(frozen=True)
class Refined:
    """All answers to one query, the first attempt first.

    costs: of each answer. cycle: see StoppingRule. error: why the last look was not answered, where
      stop is 'failed'; the answer before it then stands.
    """

    answers: tuple[str, ...]
    costs: tuple[Cost, ...]
    stop: Stop
    cycle: int = 0
    error: str | None = None

    @property
    def final(self) -> str:
        """The answer that counts: the last one."""
        return self.answers[-1]

    @property
    def steps(self) -> int:
        """Looks after the first attempt."""
        return len(self.answers) - 1

    @property
    def cost(self) -> Cost:
        """Of all answers together, the first attempt included."""
        return sum(self.costs, Cost())

    def at(self, step: int) -> str:
        """The answer after so many looks, or the final one where it stopped before."""
        return self.answers[min(step, self.steps)]


def refine(
    model: LanguageModel, requests: Sequence[GenerateRequest], config: RefineConfig
) -> list[Refined]:
    """Answers to the requests, each looked at again until the stopping rule ends it.

    The requests go on together, one look at a time, so that a local engine batches them. Seeds and
    limits are the requests' own in every look; the rule means what it says with temperature 0.

    Raises:
      BatchError: a first attempt was not answered. A look that is not (a prompt longer than the
        context, say) ends its query alone, as 'failed'.
    """
    first = model.generate(requests)
    texts = [[response_text(response)] for response in first]
    costs = [[cost_of(response)] for response in first]
    rules = [StoppingRule(config) for _ in requests]
    errors: dict[int, str] = {}
    stops: dict[int, Stop] = {}

    def note(index: int) -> None:
        stop = rules[index].add(Answer.read(texts[index][-1], config.dialect))
        if stop is not None:
            stops[index] = stop

    for index in range(len(requests)):
        note(index)
    while open_ := [index for index in range(len(requests)) if index not in stops]:
        looks = [
            dataclasses.replace(
                requests[index],
                messages=refinement_messages(
                    requests[index].messages or (), texts[index][-1], config.instruction
                ),
            )
            for index in open_
        ]
        for index, response in zip(open_, model.generate(looks, on_error="return"), strict=True):
            if response.error is not None:
                stops[index], errors[index] = "failed", response.error.message
                continue
            texts[index].append(response_text(response))
            costs[index].append(cost_of(response))
            note(index)
    return [
        Refined(tuple(text), tuple(cost), stops[i], rules[i].cycle, errors.get(i))
        for i, (text, cost) in enumerate(zip(texts, costs, strict=True))
    ]


def cost_of(response: Response) -> Cost:
    """One call and its tokens; prompt tokens count whether or not the engine had them in its cache,
    so that costs do not depend on what was asked before.
    """
    usage = response.usage
    return Cost(1, usage.prompt_tokens, usage.completion_tokens, response.latency)
