"""Our decoder and checker of BFCL answers beside the official ones: agreement and time.

    python benchmarks/bfcl_checker.py --per_item=5
    python benchmarks/bfcl_checker.py --categories=simple_java,simple_javascript --per_item=50 \\
        --official_python=ENVIRONMENT/bin/python

Java and JavaScript need an environment with the grammars that the package pins, see
`peers/bfcl_official.py`. Answers are the gold calls of every item and random variants of them:
parts dropped, renamed, retyped, revalued, reordered, and for a third of them the text changed too
(brackets, quotes and characters lost, prose, positional and repeated arguments, arithmetic). Both
sides get the same texts. The official side runs in a process of its own on the unpacked wheel, with
the modules it does not need here replaced by empty ones (`peers/bfcl_official.py`). Prints JSON
lines: agreement by category, every kind of difference, and the time of each side.
"""

from __future__ import annotations

import collections
import gc
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks" / "peers")]

from bfcl_process import run_official  # noqa: E402

from agents_jax.tools import Call, CallParseError, render_calls  # noqa: E402
from agents_jax.tools.bfcl import AST_CATEGORIES, Item, check, load  # noqa: E402
from agents_jax.tools.bfcl.evaluate import PARSE_FAILURE, read_answer  # noqa: E402
from agents_jax.tools.bfcl.gold import gold_text  # noqa: E402
from agents_jax.tools.bfcl.languages import render_language_calls  # noqa: E402
from agents_jax.tools.bfcl.mutations import mutated_calls  # noqa: E402

_PER_ITEM = flags.DEFINE_integer("per_item", 5, "Variants of each item.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the variants.")
_CATEGORIES = flags.DEFINE_list("categories", list(AST_CATEGORIES), "Categories to compare on.")
_OFFICIAL = flags.DEFINE_string(
    "official_python", sys.executable, "Interpreter of the official side; see the head of the file."
)
_SHOWN = flags.DEFINE_integer("shown", 3, "Differences of each kind to print in full.")
EXPLAINED = {
    "plus_sign": "the official decoder reads +5 as -5; here it is 5",
    "inverted": "the official decoder reads ~5 as -5; here it is refused",
    "negated": "the official decoder reads `not True` as -1; here it is refused",
    "bits": "the official decoder evaluates bit operators; here they are refused",
    "called_result": "the official decoder reads f()(a=1) as a call of ''; here it is refused",
}
"""Changes of the text after which the two sides may differ, and why."""
# BFCL's names for what is one thing here.
_SAME = {
    "list/tuple": "list",
    "dict_checker:unclear": "value_error:dict",
    "list_dict_checker:unclear": "value_error:list_dict",
}


def make_cases(items: Sequence[Item], per_item: int, seed: int) -> list[tuple[Item, str, str]]:
    """(item, text, kind of change): the gold answer of each item, then per_item variants; where no
    answer is given, `[]` and variants of other items' answers."""
    rng = np.random.default_rng(seed)
    answered = [item for item in items if item.ground_truth] or load("simple_python")
    cases = []
    for item in items:
        cases.append((item, gold_text(item), "gold"))
        for _ in range(per_item):
            source = item if item.ground_truth else answered[int(rng.integers(len(answered)))]
            calls, changes = mutated_calls(source, rng)
            text = rendered(item, calls)
            if rng.random() < 1 / 3:
                text, change = changed_text(text, rng)
                changes = [*changes, change]
            cases.append((item, text, "+".join(changes) or "other gold"))
    return cases


def rendered(item: Item, calls: Sequence[Call]) -> str:
    """The text of the calls in the item's language."""
    if item.language == "python":
        return render_calls(calls)
    return render_language_calls(calls, item.raw_functions, item.language) or "[]"


def changed_text(text: str, rng: np.random.Generator) -> tuple[str, str]:
    """A text as careless models write it, and the name of the change."""
    at = int(rng.integers(len(text)))
    texts = {
        "no_brackets": text[1:-1],
        "no_end": text[:-1],
        "truncated": text[:at],
        "lost_character": text[:at] + text[at + 1 :],
        "doubled_character": text[:at] + text[at] + text[at:],
        "backticks": f"```{text}```",
        "quoted": f"'{text}'",
        "prose": f"The call is {text}",
        "blank_lines": f"\n\n {text} \n",
        "positional": text.replace("(", "(1, ", 1),
        "repeated": text.replace("(", f"({text[text.find('(') + 1 : text.find('=')]}=1, ", 1),
        "arithmetic": text.replace("=", "=2 * 3 + ", 1),
        "power": text.replace("=", "=-2**", 1),
        "plus_sign": text.replace("=", "=+", 1),
        "inverted": text.replace("=", "=~", 1),
        "negated": text.replace("=", "=not ", 1),
        "bits": text.replace("=", "=1 << 3 | ", 1),
        "fence": f"```python\n{text}\n```",
        "bare_words": text.replace('"', ""),
        "single_quotes": text.replace('"', "'"),
        "nested": text.replace("=", "=g(a=1), b=h(), c=", 1),
        "subscript": text.replace("=", '=a["b"], c=', 1),
        "lower_case_literals": text.replace("True", "true").replace("False", "false"),
        "called_result": text.replace("(", "()(", 1),
        "no_call": text[: text.find("(")],
    }
    name = str(rng.choice(list(texts)))
    return texts[name], name


def parsed_or_none(item: Item, text: str) -> list[Call] | None:
    """The calls of a text as read here, None where it cannot be read."""
    try:
        return read_answer(item, text)
    except CallParseError:
        return None


def judged(item: Item, calls: list[Call] | None) -> tuple[bool, str | None]:
    """Validity and error type here."""
    if calls is None and item.ground_truth:
        return False, PARSE_FAILURE
    verdict = check(item, calls or [])
    return verdict.valid, verdict.error_type


def official(
    cases: Sequence[tuple[Item, str, str]], python: str = sys.executable
) -> tuple[list[tuple], dict]:
    """The same from the leaderboard's code, run by that interpreter, and its seconds."""
    lines = "".join(
        json.dumps(
            {
                "category": item.category,
                "functions": item.raw_functions,
                "answer": item.ground_truth,
                "text": text,
            }
        )
        + "\n"
        for item, text, _ in cases
    )
    *verdicts, seconds = run_official(lines, python)
    return [(v["valid"], short_name(v["error_type"])) for v in verdicts], seconds


def short_name(error_type: str | None) -> str | None:
    """BFCL's error type without the name of the checker's function."""
    if error_type is None:
        return None
    error_type = _SAME.get(error_type, error_type)
    head, _, tail = error_type.partition(":")
    return (
        tail
        if head.endswith(("checker", "checker_no_order"))
        else error_type.replace("list/tuple", "list")
    )


def main(argv: Sequence[str]) -> None:
    del argv
    cases = make_cases(load(_CATEGORIES.value), _PER_ITEM.value, _SEED.value)
    gc.collect()
    gc.freeze()  # else the collector's walks over all cases are timed
    start = time.perf_counter()
    parsed = [parsed_or_none(item, text) for item, text, _ in cases]
    decode_seconds = time.perf_counter() - start
    start = time.perf_counter()
    mine = [judged(item, calls) for (item, _, _), calls in zip(cases, parsed, strict=True)]
    check_seconds = time.perf_counter() - start
    theirs, seconds = official(cases, _OFFICIAL.value)

    gold = [
        (item.category, m[0], t[0])
        for (item, _, kind), m, t in zip(cases, mine, theirs, strict=True)
        if kind == "gold"
    ]
    for category in _CATEGORIES.value:
        rows = [
            (m, t) for (item, _, _), m, t in zip(cases, mine, theirs, strict=True)
            if item.category == category
        ]  # fmt: skip
        print(
            json.dumps(
                {
                    "category": category,
                    "gold_valid_ours": sum(m for c, m, _ in gold if c == category),
                    "gold_valid_official": sum(t for c, _, t in gold if c == category),
                    "answers": len(rows),
                    "valid_official": sum(t[0] for _, t in rows),
                    "same_verdict": sum(m[0] == t[0] for m, t in rows),
                    "same_error_type": sum(m == t for m, t in rows),
                }
            )
        )
    kinds = collections.defaultdict(list)
    for (item, text, change), m, t in zip(cases, mine, theirs, strict=True):
        if m != t:
            reason = next((r for c, r in EXPLAINED.items() if change.endswith(c)), "unexplained")
            kinds[reason].append((m[0] != t[0], (item.id, text[:300], m, t)))
    for reason, found in kinds.items():
        row = {"difference": reason, "number": len(found), "verdicts": sum(v for v, _ in found)}
        print(json.dumps(row | {"examples": [e for _, e in found[: _SHOWN.value]]}))
    errors = collections.Counter(t[1] for t in theirs)
    print(
        json.dumps(
            {
                "answers": len(cases),
                "variants": len(cases) - len(gold),
                "same_verdict": sum(m[0] == t[0] for m, t in zip(mine, theirs, strict=True)),
                "same_error_type": sum(m == t for m, t in zip(mine, theirs, strict=True)),
                "unexplained": len(kinds["unexplained"]),
                "official_error_types": dict(errors.most_common()),
                "microseconds_per_answer": {
                    "ours": {
                        "decode": round(1e6 * decode_seconds / len(cases), 1),
                        "check": round(1e6 * check_seconds / len(cases), 1),
                    },
                    "official": {
                        "decode": round(1e6 * seconds["decode_seconds"] / len(cases), 1),
                        "check": round(1e6 * seconds["check_seconds"] / len(cases), 1),
                    },
                },
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
