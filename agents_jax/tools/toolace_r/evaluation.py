"""What a checkpoint answers to the test items: at once, refined, by vote; each with its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from agents_jax.llm import GenerateRequest, LanguageModel
from agents_jax.tools.agent.policy import Cost
from agents_jax.tools.bfcl.data import AST_CATEGORIES, Item
from agents_jax.tools.bfcl.evaluate import Report, evaluate
from agents_jax.tools.bfcl.prompts import REFUSAL, prompt_messages
from agents_jax.tools.call_patterns import call_pattern
from agents_jax.tools.definitions import read_tools
from agents_jax.tools.toolace_r.config import ToolAceRConfig
from agents_jax.tools.toolace_r.few_shot import few_shot_messages
from agents_jax.tools.toolace_r.refine import STOPS, Refined, cost_of, refine
from agents_jax.tools.toolace_r.selection import item_seed
from agents_jax.tools.toolace_r.self_consistency import (
    Samples,
    draw,
    majority,
    samples_for_budget,
)


@dataclasses.dataclass(frozen=True)
class System:
    """One way of answering: texts and costs, one per item, and their verdicts."""

    items: tuple[Item, ...]
    texts: tuple[str, ...]
    costs: tuple[Cost, ...]
    report: Report

    @classmethod
    def of(cls, items: Sequence[Item], texts: Sequence[str], costs: Sequence[Cost]) -> System:
        """Judges the texts."""
        return cls(tuple(items), tuple(texts), tuple(costs), evaluate(items, texts))

    def correct(self, *, calls: bool) -> dict[str, bool]:
        """Verdicts by id, of the items with calls or of those where none is due."""
        return {
            o.id: o.correct for o in self.report.outcomes if (o.category in AST_CATEGORIES) == calls
        }

    def to_dict(self) -> dict[str, Any]:
        """Scores and mean cost of a query, for JSON."""
        total, n = sum(self.costs, Cost()), len(self.items)
        return self.report.to_dict() | {
            "per_query": {
                "model_calls": total.model_calls / n,
                "prompt_tokens": total.prompt_tokens / n,
                "new_tokens": total.completion_tokens / n,
            }
        }


@dataclasses.dataclass(frozen=True)
class Point:
    """What one checkpoint did. plain: greedy, one call. refined: adaptively. fixed: by number of
    looks. samples: for the vote, None where not asked. held: greedy, one call, by what the text is
    held to (see `measure`).
    """

    items: tuple[Item, ...]
    plain: System
    refined: tuple[Refined, ...] | None = None
    fixed: dict[int, tuple[Refined, ...]] = dataclasses.field(default_factory=dict)
    samples: tuple[Samples, ...] | None = None
    held: dict[str, System] = dataclasses.field(default_factory=dict)

    def systems(self, config: ToolAceRConfig) -> dict[str, System]:
        """'plain', 'constrained', 'forced', 'adaptive', 'fixed N', 'vote' (at equal cost), as far
        as measured.
        """
        out = {"plain": self.plain, **self.held}
        if self.refined is not None:
            out["adaptive"] = _system(self.items, self.refined)
        for steps, refined in self.fixed.items():
            out[f"fixed {steps}"] = _system(self.items, refined)
        if self.samples is not None and self.refined is not None:
            out["vote"] = self.vote(self.equal_samples(config), config)
        return out

    def equal_samples(self, config: ToolAceRConfig) -> int:
        """Samples of a vote that costs no more than adaptive refinement did."""
        budget = sum((r.cost for r in self.refined or ()), Cost())
        return samples_for_budget(self.samples or (), budget, config.evaluation.equal_cost)

    def vote(self, n: int, config: ToolAceRConfig) -> System:
        """The majority of the first n samples."""
        samples = self.samples or ()
        texts = [majority(s.texts[:n], config.refine.dialect) for s in samples]
        return System.of(self.items, texts, [s.cost(n) for s in samples])


def measure(
    model: LanguageModel, items: Sequence[Item], config: ToolAceRConfig, *, refined: bool = True,
    thorough: bool = False, held: Sequence[str] = (),
) -> Point:  # fmt: skip
    """Greedy answers; with `refined` adaptive refinement too; with `thorough` also fixed numbers of
    looks and the samples of a vote.

    Args:
      held: further greedy answers, whose texts can only be calls of the functions on offer
        ('forced'), or these and the refusal ('constrained').

    Raises:
      BatchError: a first attempt was not answered. RuntimeError: a look was not.
    """
    requests = [
        GenerateRequest(
            messages=prompt_messages(item, config.data.style), max_tokens=config.answer_tokens,
            tag=item.id,
        )
        for item in items
    ]  # fmt: skip
    plain = _asked(model, items, requests)
    answers = {}
    for way in held:
        refusals = {"constrained": (REFUSAL,), "forced": ()}[way]
        patterns = [_pattern(item, refusals) for item in items]
        answers[way] = _asked(
            model, items,
            [dataclasses.replace(r, regex=p) for r, p in zip(requests, patterns, strict=True)],
        )  # fmt: skip
    if not refined:
        return Point(tuple(items), plain, held=answers)
    adaptive = _refine(model, requests, dataclasses.replace(config.refine, fixed_steps=None))
    fixed, samples = {}, None
    if thorough:
        for steps in config.evaluation.fixed_steps:
            chosen = dataclasses.replace(config.refine, fixed_steps=steps)
            fixed[steps] = _refine(model, requests, chosen)
        if n := config.evaluation.self_consistency_samples:
            temperature = config.evaluation.self_consistency_temperature
            seeded = [
                dataclasses.replace(request, seed=item_seed(item, config.data.seed))
                for request, item in zip(requests, items, strict=True)
            ]
            samples = tuple(draw(model, seeded, n=n, temperature=temperature))
    return Point(tuple(items), plain, adaptive, fixed, samples, answers)


def measure_few_shot(model: LanguageModel, items: Sequence[Item], config: ToolAceRConfig) -> Point:
    """Greedy answers to the prompt with two worked examples."""
    requests = [
        GenerateRequest(
            messages=few_shot_messages(item), max_tokens=config.answer_tokens, tag=item.id
        )
        for item in items
    ]
    return Point(tuple(items), _asked(model, items, requests))


def refinement_summary(items: Sequence[Item], refined: Sequence[Refined]) -> dict[str, Any]:
    """What refinement did, over the items with calls and over all, as plain values.

    accuracy_at_step: of the answers after so many looks (those that stopped before keep theirs).
    wrong_to_right, right_to_wrong: from first to last answer. stops: queries by reason.
    """
    out = {}
    for name, chosen in (
        ("calls", [i.category in AST_CATEGORIES for i in items]),
        ("all", [True] * len(items)),
    ):
        own = [item for item, c in zip(items, chosen, strict=True) if c]
        runs = [r for r, c in zip(refined, chosen, strict=True) if c]
        if not own:
            continue
        longest = max(r.steps for r in runs)
        right = [
            [o.correct for o in evaluate(own, [r.at(step) for r in runs]).outcomes]
            for step in range(longest + 1)
        ]
        pairs = list(zip(right[0], right[-1], strict=True))
        out[name] = {
            "num_items": len(own),
            "accuracy_at_step": [sum(r) / len(own) for r in right],
            "wrong_to_right": sum(not a and b for a, b in pairs),
            "right_to_wrong": sum(a and not b for a, b in pairs),
            "changed": sum(r.answers[0].strip() != r.final.strip() for r in runs),
            "mean_steps": sum(r.steps for r in runs) / len(own),
            "steps": [sum(r.steps == n for r in runs) for n in range(longest + 1)],
            "stops": {s: n for s in STOPS if (n := sum(r.stop == s for r in runs))},
            "cycles": sum(r.cycle > 0 for r in runs),
        }
    return out


def point_records(point: Point) -> list[dict[str, Any]]:
    """A record of each item: its answers, how refinement ended, whether each answer is right."""
    records = []
    for index, (item, outcome) in enumerate(
        zip(point.items, point.plain.report.outcomes, strict=True)
    ):
        record: dict[str, Any] = {
            "id": item.id,
            "answer": point.plain.texts[index],
            "correct": outcome.correct,
            "error_type": outcome.error_type,
        }
        if point.refined is not None:
            own = point.refined[index]
            judged = evaluate([item] * len(own.answers), own.answers).outcomes
            record["refined"] = {
                "answers": own.answers,
                "correct": [o.correct for o in judged],
                "stop": own.stop,
                "cycle": own.cycle,
            }
        records.append(record)
    return records


def _asked(model, items, requests) -> System:
    """The first answers."""
    first = model.generate(requests)
    return System.of(items, [r.text for r in first], [cost_of(r) for r in first])


def _pattern(item: Item, refusals: Sequence[str]) -> str:
    """Calls of the item's functions, however many (their number would tell), or a refusal."""
    tools = read_tools(item.functions, where=item.id)
    # Some irrelevance items offer no function at all.
    return call_pattern(tools, refusals=refusals if tools else (REFUSAL,))


def _refine(model, requests, config) -> tuple[Refined, ...]:
    refined = tuple(refine(model, requests, config))
    failed = [(r, request) for r, request in zip(refined, requests, strict=True) if r.error]
    if failed:  # a look that was never made is not a look that changed nothing
        raise RuntimeError(
            f"{len(failed)} of {len(refined)} refinements were not answered; the first, of "
            f"{failed[0][1].tag!r}: {failed[0][0].error}"
        )
    return refined


def _system(items: Sequence[Item], refined: Sequence[Refined]) -> System:
    return System.of(items, [r.final for r in refined], [r.cost for r in refined])
