"""Our decoder, checker and prompts beside the leaderboard's own code, out of the pinned wheel."""

from __future__ import annotations

import collections
import json

import numpy as np

from agents_jax.tools import render_calls
from agents_jax.tools.bfcl import AST_CATEGORIES, prompt_messages
from agents_jax.tools.bfcl.mutations import CHANGES, mutated_calls


def test_checker_agrees_on_gold_and_changed_answers(real_items, peer):
    """Verdict and error type, on every gold answer and over 7,000 random variants."""
    items = [i for i in real_items if i.category in AST_CATEGORIES]
    cases = peer.make_cases(items, 3, seed=5)
    theirs, _ = peer.official(cases)
    assert len(cases) == 4 * len(items)
    mine = [peer.judged(item, peer.parsed_or_none(item, text)) for item, text, _ in cases]
    differ = [
        (change, text, m, t)
        for (_, text, change), m, t in zip(cases, mine, theirs, strict=True)
        if m != t and not change.endswith(tuple(peer.EXPLAINED))
    ]
    assert not differ, differ[:5]
    # The comparison means something only where both outcomes and most errors occur.
    errors = collections.Counter(t[1] for t in theirs)
    assert min(errors[None], len(cases) - errors[None]) > 2000
    assert {"wrong_count", "wrong_func_name", "missing_required", "unexpected_param"} <= set(errors)
    assert {"type_error:simple", "value_error:string", "cannot_find_match"} <= set(errors)


def test_prompts_agree(real_items, peer):
    items = real_items[::20] + [i for i in real_items if i.messages[0]["role"] == "system"]
    lines = "".join(
        json.dumps({"id": i.id, "function": i.raw_functions, "messages": i.messages}) + "\n"
        for i in items
    )
    *theirs, _ = peer.run_official(lines)
    assert [{"messages": prompt_messages(i, "official")} for i in items] == theirs


def test_changes_change(real_items):
    """Every kind of change alters some answer; the gold answer itself is never touched."""
    items = [i for i in real_items if i.category in ("parallel", "multiple")]
    before = json.dumps([i.ground_truth for i in items])
    rng = np.random.default_rng(0)
    changed = collections.Counter()
    for item in items:
        for name, change in CHANGES.items():
            calls, _ = mutated_calls(item, rng, max_changes=0)
            changed[name] += render_calls(change(item, calls, rng)) != render_calls(calls)
    assert min(changed[name] for name in CHANGES) > 20
    assert json.dumps([i.ground_truth for i in items]) == before
