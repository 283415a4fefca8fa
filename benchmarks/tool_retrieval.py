"""Recall of `ToolIndex` on questions of BFCL: is the function of the gold answer among the first k?

    python benchmarks/tool_retrieval.py

The pool holds every function name of the categories once, with the first description that has it;
how many other descriptions there are is printed. The query is the text of the user's messages. A
question counts as found at k if every function of its gold answer is among the k candidates.
Prints JSON lines: the pool, then recall per category with Wilson's 95 % interval, then milliseconds
per query.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from agents_jax.tools import read_tools  # noqa: E402
from agents_jax.tools.bfcl import load  # noqa: E402
from agents_jax.tools.bfcl.evaluate import wilson_interval  # noqa: E402
from agents_jax.tools.retrieval import ToolIndex  # noqa: E402

_CATEGORIES = flags.DEFINE_list(
    "categories", ["simple_python", "live_multiple"], "Of the questions and of the pool."
)
_DESCRIPTIONS = flags.DEFINE_bool(
    "parameter_descriptions", True, "Index the descriptions of parameters beside their names."
)
_CUTOFFS = flags.DEFINE_list("k", ["1", "5", "10", "20"], "Numbers of candidates.")


def main(argv: list[str]) -> None:
    del argv
    items = load(_CATEGORIES.value)
    pool: dict[str, dict] = {}
    distinct = set()
    for item in items:
        for function in item.functions:
            pool.setdefault(function["name"], function)
            distinct.add(json.dumps(function, sort_keys=True))
    start = time.perf_counter()
    definitions = read_tools(list(pool.values()), where="pool")
    read = time.perf_counter()
    index = ToolIndex(definitions, parameter_descriptions=_DESCRIPTIONS.value)
    built = time.perf_counter()
    print(json.dumps({
        "questions": len(items), "pool": len(pool),
        "descriptions_left_out": len(distinct) - len(pool),
        "check_definitions_s": round(read - start, 3), "build_index_s": round(built - read, 3),
    }), flush=True)  # fmt: skip
    cutoffs = sorted(int(k) for k in _CUTOFFS.value)
    ranks: dict[str, list[int]] = {name: [] for name in _CATEGORIES.value}
    start = time.perf_counter()
    for item in items:
        query = "\n".join(m["content"] for m in item.messages if m["role"] == "user")
        order = [d.name for d in index.top(query, cutoffs[-1])]
        places = [order.index(n) if n in order else len(pool) for n in set(item.called_names)]
        ranks[item.category].append(max(places))
    seconds = time.perf_counter() - start
    for name, found in [*ranks.items(), ("all", sum(ranks.values(), []))]:
        for k in cutoffs:
            hits = sum(rank < k for rank in found)
            low, high = wilson_interval(hits, len(found))
            print(json.dumps({
                "category": name, "k": k, "recall": round(hits / len(found), 4),
                "low": round(low, 4), "high": round(high, 4), "questions": len(found),
            }), flush=True)  # fmt: skip
    print(json.dumps({"ms_per_query": round(1e3 * seconds / len(items), 3)}))


if __name__ == "__main__":
    app.run(main)
