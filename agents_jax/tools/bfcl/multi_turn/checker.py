"""Whether calls lead through a multi-turn item: BFCL's state- and response-based rules.

After each turn that the gold answer acts in, the environments on which the model's calls ran must
have the state of those on which the gold calls ran, and the results of the gold calls of that turn
must be among the results of all the model's calls so far. The rules follow the behaviour of
`bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker`, version 2026.3.23.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

from agents_jax.tools.bfcl.checker import VALID, Verdict
from agents_jax.tools.bfcl.multi_turn.data import MultiTurnItem
from agents_jax.tools.bfcl.multi_turn.sandbox import Episode, Sandbox, SandboxError
from agents_jax.tools.calls import Call

TURN_ERROR_TYPES = (
    "multi_turn:force_terminated",
    "multi_turn:empty_turn_model_response",
    "multi_turn:instance_state_mismatch",
    "multi_turn:execution_response_mismatch",
    "multi_turn:environment_failed",
)
"""What `Verdict.error_type` may be: BFCL's names, and one of ours for environments that died."""


def check_turns(
    item: MultiTurnItem,
    turns: Sequence[Sequence[Sequence[Call]]],
    sandbox: Sandbox,
    *,
    nested_calls: bool = True,
) -> Verdict:
    """Whether the calls, by turn and step, do what the item's gold calls do.

    Args:
      turns: as many as the item has, or fewer where the model was cut off, which is wrong.
      nested_calls: see `Episode.execute`; for calls read from texts.

    Raises:
      SandboxError: the item's scenario cannot be loaded, or the process does not start.
    """
    if len(turns) != len(item.ground_truth):
        return Verdict(
            False, TURN_ERROR_TYPES[0], f"{len(turns)} of {len(item.ground_truth)} turns"
        )
    with sandbox.episode(
        item.involved_classes,
        item.initial_config,
        long_context=item.long_context,
        sides=("model", "gold"),
    ) as episode:
        try:
            return _check(item, turns, episode, nested_calls)
        except SandboxError as error:
            return Verdict(False, "multi_turn:environment_failed", str(error))


def _check(item: MultiTurnItem, turns, episode: Episode, nested_calls: bool) -> Verdict:
    so_far: collections.Counter[str] = collections.Counter()
    for number, (steps, gold) in enumerate(zip(turns, item.ground_truth, strict=True)):
        for calls in steps:
            so_far.update(episode.execute(calls, "model", nested_calls=nested_calls))
        due = collections.Counter(episode.execute(gold, "gold"))
        if not gold:
            continue  # whether the model rightly did nothing is not checked, as in BFCL
        if not any(steps):
            return Verdict(
                False, "multi_turn:empty_turn_model_response", f"no call in turn {number}"
            )
        differences = episode.differences("model", "gold")
        if differences:
            return Verdict(
                False,
                "multi_turn:instance_state_mismatch",
                f"after turn {number} {', '.join(differences)} differ: {differences}",
            )
        missing = due - so_far
        if missing:
            return Verdict(
                False,
                "multi_turn:execution_response_mismatch",
                f"turn {number} lacks the results {[r[:200] for r in missing]}",
            )
    return VALID
