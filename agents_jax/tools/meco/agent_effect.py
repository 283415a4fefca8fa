"""What deciding is worth in use: needless calls, task success and cost under each policy.

Each item is a query with one function. Where a policy calls, the same model writes the call, forced
to the function's schema, and BFCL's rules judge it. On an item whose function does not fit, success
is to make no call. A policy changes only whether a call is made, so each call is written once and
serves all policies. What the model says where it does not call is not judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.llm.errors import InvalidRequest
from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import GenerateRequest, user
from agents_jax.tools.bfcl.checker import check
from agents_jax.tools.bfcl.evaluate import wilson_interval
from agents_jax.tools.calls import Call
from agents_jax.tools.meco.evaluation import mcnemar
from agents_jax.tools.meco.examples import Example


@dataclasses.dataclass(frozen=True, eq=False)
class Calls:
    """Forced calls: whether each is right (bool [N], False where none is due), tokens read and
    written (int [N]), and how many were no call at all.
    """

    right: np.ndarray
    prompt_tokens: np.ndarray
    completion_tokens: np.ndarray
    unreadable: int


def forced_calls(
    model: LanguageModel, examples: Sequence[Example], *, max_tokens: int = 96
) -> Calls:
    """The model's call of each example's function, constrained to its schema, greedy."""
    requests = []
    for example in examples:
        (tool,) = example.tools
        requests.append(
            GenerateRequest(
                messages=(user(example.query),),
                tools=({"type": "function", "function": dict(tool)},),
                tool_choice={"type": "function", "function": {"name": tool["name"]}},
                max_tokens=max_tokens, tag="forced_call",
            )
        )  # fmt: skip
    right, prompts, completions, unreadable = [], [], [], 0
    for example, response in zip(examples, model.generate(requests, on_error="return"),
                                 strict=True):  # fmt: skip
        calls: list[Call] = []
        if response.error is None:
            try:
                calls = [Call(c.name, c.parse()) for c in response.tool_calls]
            except InvalidRequest:  # cut off by max_tokens
                calls = []
        unreadable += not calls
        right.append(bool(example.needed and calls and check(example.payload, calls).valid))
        prompts.append(response.usage.prompt_tokens)
        completions.append(response.usage.completion_tokens)
    return Calls(np.array(right), np.array(prompts), np.array(completions), unreadable)


def keeps_recall(
    scores: np.ndarray, needed: np.ndarray, folds: np.ndarray, recall: float
) -> np.ndarray:
    """Calls at the strictest threshold that keeps a share of the needed calls, bool [N]; the
    threshold for a fold comes from the other folds.
    """
    decided = np.zeros(len(scores), bool)
    for fold in np.unique(folds):
        here = folds == fold
        known = np.sort(scores[~here & needed])
        allowed = int(np.floor((1 - recall) * len(known)))
        cut = known[allowed] if len(known) else -np.inf
        decided[here] = scores[here] >= cut
    return decided


def compare(
    examples: Sequence[Example], calls: Calls, decisions: Mapping[str, np.ndarray],
    decision_tokens: Mapping[str, float],
) -> list[dict[str, Any]]:  # fmt: skip
    """A row per policy.

    Args:
      decisions: bool [N] by policy. decision_tokens: prompt tokens that deciding takes per query.

    Returns:
      Rows with success on needed (rate of right calls) and its interval, needless calls and their
      interval, calls made, tokens per query, overall success, and McNemar's p of overall success
      against 'always'.
    """
    needed = np.array([e.needed for e in examples], bool)
    rows = []
    base = np.where(needed, calls.right, False)
    for name, decided in decisions.items():
        success = np.where(needed, decided & calls.right, ~decided)
        needless = int((decided & ~needed).sum())
        kept = int((success & needed).sum())
        tokens = decided * (calls.prompt_tokens + calls.completion_tokens)
        rows.append(
            {
                "policy": name,
                "calls": int(decided.sum()),
                "right_calls": kept,
                "needed": int(needed.sum()),
                "right_calls_interval": list(wilson_interval(kept, int(needed.sum()))),
                "missed": int((~decided & needed).sum()),
                "needless": needless,
                "not_needed": int((~needed).sum()),
                "needless_interval": list(wilson_interval(needless, int((~needed).sum()))),
                "success": float(success.mean()),
                "model_calls": int(decided.sum()),
                "tokens_per_query": float(tokens.mean() + decision_tokens.get(name, 0.0)),
                "p_against_always": mcnemar(success, base)["p"],
            }
        )
    return rows
