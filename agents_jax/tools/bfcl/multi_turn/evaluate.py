"""Scores of transcripts of multi-turn items."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from agents_jax.tools.bfcl.checker import Verdict
from agents_jax.tools.bfcl.evaluate import Counts
from agents_jax.tools.bfcl.multi_turn.checker import check_turns
from agents_jax.tools.bfcl.multi_turn.data import MultiTurnItem
from agents_jax.tools.bfcl.multi_turn.sandbox import Sandbox
from agents_jax.tools.bfcl.multi_turn.transcripts import TurnsTranscript


@dataclasses.dataclass(frozen=True)
class TurnsScore(Counts):
    """Counts of a set of transcripts; right are those that are right in all turns."""

    errors: dict[str, int]


@dataclasses.dataclass(frozen=True)
class MultiTurnReport:
    """Scores by category, the verdict on each item by its id, and what the answers cost.

    num_failed: transcripts that ended with an error of the model or the environments; they are
      wrong answers here.
    """

    categories: dict[str, TurnsScore]
    verdicts: dict[str, Verdict]
    num_failed: int
    num_steps: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def mean(self) -> float:
        """Unweighted mean of the categories' rates, the leaderboard's multi-turn score."""
        rates = [score.rate for score in self.categories.values()]
        return sum(rates) / len(rates) if rates else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "mean": None if math.isnan(self.mean) else self.mean,
            "categories": {
                name: {
                    "num_items": s.num_items,
                    "rate": s.rate,
                    "low": s.interval[0],
                    "high": s.interval[1],
                    "errors": s.errors,
                }
                for name, s in self.categories.items()
            },
            "num_failed": self.num_failed,
            "num_steps": self.num_steps,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "verdicts": {id: v.error_type or "correct" for id, v in self.verdicts.items()},
        }

    def __str__(self) -> str:
        lines = [f"{'':26}{'items':>6}{'correct':>9}  95 % interval"]
        for name, score in self.categories.items():
            low, high = score.interval
            lines.append(
                f"{name:26}{score.num_items:6}{score.rate:9.1%}  [{low:6.1%}, {high:6.1%}]"
            )
            lines += [f"    {error}: {count}" for error, count in score.errors.items()]
        lines.append(
            f"{self.num_steps} steps, {self.prompt_tokens} + {self.completion_tokens} tokens, "
            f"{self.num_failed} failed"
        )
        return "\n".join(lines)


def evaluate_multi_turn(
    items: Sequence[MultiTurnItem],
    transcripts: Sequence[TurnsTranscript],
    *,
    sandbox: Sandbox | None = None,
) -> MultiTurnReport:
    """Scores of one transcript per item. The calls are executed anew, beside the gold calls.

    Args:
      transcripts: in any order.
      sandbox: to run the environments in; None for one of its own.

    Raises:
      ValueError: an item without a transcript, or a transcript without its item.
      SandboxError: the environments do not start.
    """
    found = {t.id: t for t in transcripts}
    wanted = {item.id for item in items}
    if len(found) != len(transcripts) or set(found) != wanted:
        differ = sorted(set(found) ^ wanted)[:5]
        raise ValueError(
            f"{len(transcripts)} transcripts for {len(items)} items; each item needs one. "
            f"Not in both: {', '.join(differ) or 'none, but some stand there twice'}."
        )
    if sandbox is None:
        with Sandbox() as own:
            return evaluate_multi_turn(items, transcripts, sandbox=own)
    verdicts = {}
    for item in items:
        transcript = found[item.id]
        verdicts[item.id] = check_turns(
            item, transcript.calls(), sandbox, nested_calls=not transcript.native
        )
    return MultiTurnReport(
        categories={
            name: _score([verdicts[i.id] for i in items if i.category == name])
            for name in dict.fromkeys(item.category for item in items)
        },
        verdicts=verdicts,
        num_failed=sum(t.error is not None for t in transcripts),
        num_steps=sum(len(turn.steps) for t in transcripts for turn in t.turns),
        prompt_tokens=sum(t.usage.prompt_tokens for t in transcripts),
        completion_tokens=sum(t.usage.completion_tokens for t in transcripts),
    )


def _score(verdicts: Sequence[Verdict]) -> TurnsScore:
    return TurnsScore(
        num_items=len(verdicts),
        num_correct=sum(v.valid for v in verdicts),
        errors=dict(collections.Counter(v.error_type for v in verdicts if v.error_type)),
    )
