"""Our multi-turn evaluation beside the official one: agreement and time.

    python benchmarks/bfcl_multi_turn.py --per_item=3 --official_python=ENVIRONMENT/bin/python

Trajectories are the gold calls of every item, and random variants of them: calls dropped, repeated,
reordered, put in from other items, made too early, too late or not at all, arguments changed. Both
sides get the same texts, one per step. The official side runs in a process of its own on the
unpacked wheel (`peers/bfcl_official.py`), by an interpreter that has mpmath; it gives texts to
`eval`, so that only texts made here go there. Prints JSON lines: agreement by category and by kind
of change, every difference, and the time of each side.
"""

from __future__ import annotations

import collections
import json
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "peers")]

from bfcl_process import run_official  # noqa: E402

from agents_jax.tools import render_calls  # noqa: E402
from agents_jax.tools.bfcl.multi_turn import (  # noqa: E402
    MULTI_TURN_CATEGORIES,
    MultiTurnItem,
    Sandbox,
    Step,
    Turn,
    TurnsTranscript,
    check_turns,
    load_multi_turn,
)
from agents_jax.tools.bfcl.multi_turn.mutations import gold_turns, mutated_turns  # noqa: E402
from pangu_jax.data.wheel import fetch_member  # noqa: E402

Texts = list[list[str]]


def make_trajectories(
    items: Sequence[MultiTurnItem], per_item: int, seed: int
) -> list[tuple[MultiTurnItem, Texts, str]]:
    """(item, texts by turn and step, kind of change): gold, then per_item variants of each item."""
    rng = np.random.default_rng(seed)
    made = []
    for item in items:
        made.append((item, _texts(gold_turns(item)), "gold"))
        for _ in range(per_item):
            turns, changes = mutated_turns(item, rng, items)
            made.append((item, _texts(turns), "+".join(changes)))
    return made


def _texts(turns) -> Texts:
    return [[render_calls(calls) for calls in steps] for steps in turns]


def judged(item: MultiTurnItem, texts: Texts, sandbox: Sandbox) -> tuple[bool, str | None]:
    """Validity and error type here."""
    turns = tuple(Turn(tuple(Step(text) for text in steps)) for steps in texts)
    transcript = TurnsTranscript(item.id, item.category, turns)
    verdict = check_turns(item, transcript.calls(), sandbox)
    return verdict.valid, verdict.error_type


def official(
    trajectories: Sequence[tuple[MultiTurnItem, Texts, str]], python: str
) -> list[tuple[bool, str | None]]:
    """The same from the leaderboard's code, run by that interpreter."""
    gold = gold_texts({item.category for item, _, _ in trajectories})
    lines = "".join(
        json.dumps(
            {
                "entry": {
                    "id": item.id,
                    "initial_config": item.initial_config,
                    "involved_classes": item.involved_classes,
                },
                "gold": gold[item.id],
                "steps": texts,
            }
        )
        + "\n"
        for item, texts, _ in trajectories
    )
    *verdicts, _ = run_official(lines, python)
    return [(v["valid"], v["error_type"]) for v in verdicts]


def gold_texts(categories: Iterable[str]) -> dict[str, Texts]:
    """Gold calls by the items' ids, as they stand in the files."""
    found = {}
    for category in categories:
        path = fetch_member("bfcl-eval", f"bfcl_eval/data/possible_answer/BFCL_v4_{category}.json")
        for line in path.read_text(encoding="utf-8").splitlines():
            answer = json.loads(line)
            found[answer["id"]] = answer["ground_truth"]
    return found


def main(argv: Sequence[str]) -> None:
    del argv
    items = load_multi_turn(flags.FLAGS.categories)
    cases = make_trajectories(items, flags.FLAGS.per_item, flags.FLAGS.seed)
    start = time.perf_counter()
    with Sandbox() as sandbox:
        mine = [judged(item, texts, sandbox) for item, texts, _ in cases]
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    theirs = official(cases, flags.FLAGS.official_python)
    official_seconds = time.perf_counter() - start

    rows = list(zip(cases, mine, theirs, strict=True))
    for category in dict.fromkeys(item.category for item in items):
        found = [(c[2], m, t) for c, m, t in rows if c[0].category == category]
        gold = [(m, t) for kind, m, t in found if kind == "gold"]
        print(
            json.dumps(
                {
                    "category": category,
                    "gold": len(gold),
                    "gold_valid_ours": sum(m[0] for m, _ in gold),
                    "gold_valid_official": sum(t[0] for _, t in gold),
                    "trajectories": len(found),
                    "valid_official": sum(t[0] for _, _, t in found),
                    "same_verdict": sum(m[0] == t[0] for _, m, t in found),
                    "same_error_type": sum(m == t for _, m, t in found),
                }
            )
        )
    kinds: dict[str, list] = collections.defaultdict(list)
    for (_, _, change), m, t in rows:
        for kind in change.split("+"):
            kinds[kind].append((t[0], m == t))
    for kind, found in sorted(kinds.items()):
        row = {"change": kind, "trajectories": len(found), "valid": sum(v for v, _ in found)}
        print(json.dumps(row | {"same": sum(same for _, same in found)}))
    for (item, texts, change), m, t in rows:
        if m != t:
            row = {"difference": item.id, "change": change, "ours": m, "official": t}
            print(json.dumps(row | {"texts": texts}))
    print(
        json.dumps(
            {
                "trajectories": len(rows),
                "same_verdict": sum(m[0] == t[0] for _, m, t in rows),
                "same_error_type": sum(m == t for _, m, t in rows),
                "official_error_types": dict(collections.Counter(t[1] for _, _, t in rows)),
                "milliseconds_each": {
                    "ours": round(1e3 * seconds / len(rows), 1),
                    "official": round(1e3 * official_seconds / len(rows), 1),
                },
            }
        )
    )


if __name__ == "__main__":
    # Defined here: a test loads this file beside others that have flags of the same names.
    flags.DEFINE_integer("per_item", 3, "Variants of each item.", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "Seed of the variants.")
    flags.DEFINE_list("categories", list(MULTI_TURN_CATEGORIES), "Categories to compare on.")
    flags.DEFINE_string("official_python", sys.executable, "Interpreter of the official side.")
    app.run(main)
