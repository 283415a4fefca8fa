"""Needles in long contexts: SmolLM2-135M-Instruct with several bases of its rotary embedding.

    python benchmarks/needle_smollm2.py --report=/tmp/needle

A model that can find needles, so that the test itself is tested: it must answer far above the
control. Bases: the model's own, 100,000, and 10,000; it is not trained further for any. Haystacks
are docstrings of the standard library and descriptions of the installed packages. Prints JSON
lines and writes needle.json, needle.md and needle.png.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import platform
import sys
import tempfile
import time

import jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# What the file's metadata say: context 8,192, rotary base 100,000.
TRAINED_LENGTH = 8192


def numbers(kind):
    return lambda text: tuple(kind(part) for part in text.split(","))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=numbers(int), default=(512, 1024, 2048, 3072))
    parser.add_argument("--bases", type=numbers(float), default=(1e4, 1e5))
    parser.add_argument("--depths", type=numbers(float), default=(0.0, 0.25, 0.5, 0.75, 1.0))
    parser.add_argument("--haystacks", type=int, default=2, help="Per length.")
    parser.add_argument("--choices", type=int, default=5, help="Values to choose from.")
    parser.add_argument("--apart", action="store_true", help="One needle per haystack.")
    parser.add_argument("--batch_rows", type=int, default=2, help="Contexts at one time.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", default=None, help="Folder; default: a temporary one.")
    return parser.parse_args()


def main() -> None:
    from parity_smollm2 import passages

    from pangu_jax.pretraining.config import NeedleConfig
    from pangu_jax.pretraining.needle_choice import interval, needle_for_weights
    from pangu_jax.pretraining.needle_report import write_needle_report

    options = parse()
    settings = NeedleConfig(
        lengths=options.lengths, bases=options.bases, depths=options.depths,
        haystacks=options.haystacks, choices=options.choices, together=not options.apart,
        batch_rows=options.batch_rows, seed=options.seed,
    )  # fmt: skip
    start = time.perf_counter()
    choice = needle_for_weights(
        "smollm2", passages(), settings, trained_length=TRAINED_LENGTH,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    seconds = round(time.perf_counter() - start, 1)
    for o in choice.outcomes:
        low, high = interval(int(o.exact.sum()), len(o.exact))
        row = {
            "length": o.length, "base": o.base, "questions": len(o.exact),
            "exact": round(float(o.exact.mean()), 3), "exact_95": [round(low, 3), round(high, 3)],
            "control_exact": round(float(o.control_exact.mean()), 3),
            "choice": round(float(o.choice.mean()), 3),
            "control_choice": round(float(o.control_choice.mean()), 3),
            "margin": round(float(o.margin.mean()), 2),
            "control_margin": round(float(o.control_margin.mean()), 2),
            "perplexity_last_quarter": round(o.last_quarter_perplexity(), 2),
        }  # fmt: skip
        print(json.dumps(row), flush=True)
    folder = pathlib.Path(options.report or tempfile.mkdtemp(prefix="needle-"))
    path = write_needle_report(folder, choice, settings, "SmolLM2-135M-Instruct (Q4_1), float32")
    last = {
        "chosen_at": choice.target, "chosen": choice.base, "clear": choice.clear,
        "verdict": choice.verdict, "seconds": seconds, "seed": options.seed,
        "python": platform.python_version(), "jax": jax.__version__,
        "device": jax.devices()[0].device_kind, "report": str(path),
    }  # fmt: skip
    print(json.dumps(last), flush=True)


if __name__ == "__main__":
    main()
