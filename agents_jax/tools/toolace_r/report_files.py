"""A report as files: report.json, report.md, plots."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents_jax.tools.bfcl.data import CITATION, LICENCE
from agents_jax.tools.toolace_r.paired import ALPHA, MARGIN
from pangu_jax.training.workdir import write_json


def write_report(folder: pathlib.Path, report: dict[str, Any]) -> None:
    """Writes report.json, report.md, refinement.png and selection.png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    (folder / "report.md").write_text(to_markdown(report), encoding="utf-8")
    _plots(folder, report)


def to_markdown(report: dict[str, Any]) -> str:
    """The report for people."""
    parts = ["# ToolACE-R on BFCL", f"{LICENCE}\n\n{CITATION}"]
    parts.append(_table(["items", *_categories(report)], _sizes(report)))
    for reason, count in report["items"]["dropped"].items():
        parts.append(f"Left out: {count} ({reason}).")
    parts += ["## Accuracy", _accuracy_note(), _table(*_systems(report))]
    parts += ["By category: right answers, 95 % interval.", _table(*_by_category(report))]
    parts += ["What was wrong, number of answers.", _table(*_errors(report))]
    parts += ["## Rounds", _table(*_rounds(report))]
    parts += [f"{arm}: {found['ended']}." for arm, found in report["rounds"].items()]
    parts += ["## Refinement, items with calls", _table(*_refinement(report))]
    for name, vote in report["vote"].items():
        parts += [
            f"## Votes of {name}",
            f"{vote['samples_at_equal_cost']} samples cost no more than adaptive refinement "
            f"(counted: {vote['equal_cost']} tokens).",
            _table(*_votes(vote)),
        ]
    parts += ["## Paired comparisons", _verdict_note(), _table(*_comparisons(report))]
    seconds = report["seconds"]
    rows = [[name, f"{value:.0f}"] for name, value in seconds.items()]
    rows.append(["all stages", f"{sum(seconds.values()):.0f}"])
    versions = report["versions"]
    parts += [
        "## Time",
        f"{report['device']}, Python {versions['python']}, JAX {versions['jax']}; seconds of wall "
        "time, over all starts of the run.",
        _table(["stage", "seconds"], rows),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy_note() -> str:
    return (
        "Rates with Wilson's 95 % intervals. A model that writes no call at all passes every item "
        "where none is due: read the two columns together. Costs are means per query."
    )


def _verdict_note() -> str:
    return (
        "Difference: accuracy of the second minus that of the first, on the same items. Settled "
        f"before the run: 'different' where McNemar's exact p <= {ALPHA}; else 'no difference' "
        f"where the 95 % interval of the paired difference lies within {MARGIN:.0%} of 0; else "
        "'undecided'. The p values are not corrected for their number."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _categories(report) -> list[str]:
    sizes = report["items"]["sizes"]
    return list(dict.fromkeys(c for part in sizes.values() for c in part))


def _sizes(report) -> list[list[str]]:
    names = _categories(report)
    return [
        [part, *(str(counts.get(name, 0)) for name in names)]
        for part, counts in report["items"]["sizes"].items()
    ]


def _rate(score: dict[str, Any] | None) -> str:
    if not score:
        return ""
    return f"{score['rate']:.1%} [{score['low']:.1%}, {score['high']:.1%}]"


def _systems(report):
    header = ["system", "items", "calls right", "decodable", "right names", "no call where none "
              "is due", "model calls", "prompt tokens", "new tokens"]  # fmt: skip
    rows = []
    for name, found in report["systems"].items():
        calls, cost = found["total"].get("calls"), found["per_query"]
        decodable = "" if not calls else f"{1 - calls['parse_failure_rate']:.1%}"
        names = "" if not calls else f"{calls['right_names_rate']:.1%}"
        n = sum(score["num_items"] for score in found["categories"].values())
        rows.append(
            [name, str(n), _rate(calls), decodable, names, _rate(found["total"].get("irrelevance")),
             f"{cost['model_calls']:.2f}", f"{cost['prompt_tokens']:.0f}",
             f"{cost['new_tokens']:.1f}"]
        )  # fmt: skip
    return header, rows


def _by_category(report):
    names = list(dict.fromkeys(c for s in report["systems"].values() for c in s["categories"]))
    rows = [
        [name, *(_rate(found["categories"].get(c)) for c in names)]
        for name, found in report["systems"].items()
    ]
    return ["system", *names], rows


def _errors(report):
    found = {n: s["total"].get("calls", {}).get("errors", {}) for n, s in report["systems"].items()}
    kinds = sorted({kind for errors in found.values() for kind in errors})
    return ["system", *kinds], [
        [name, *(str(errors.get(kind, 0)) for kind in kinds)] for name, errors in found.items()
    ]


def _rounds(report):
    header = ["arm", "round", "chosen", "pass@1", "pass@k", "items by right samples (0 to k)",
              "kept from last", "direct", "refinement", "A1 wrong"]  # fmt: skip
    rows = []
    for arm, found in report["rounds"].items():
        for r in found["rounds"]:
            k, examples = r.get("samples"), r.get("examples", {})
            rows.append(
                [arm, str(r["number"]), str(r.get("size", "all")),
                 f"{r['pass_at_1']:.1%}" if k else "", f"{r[f'pass_at_{k}']:.1%}" if k else "",
                 " ".join(map(str, r.get("histogram", ()))), str(r.get("overlap_with_last", "")),
                 *(str(examples.get(name, "")) for name in ("direct", "refinement", "wrong"))]
            )  # fmt: skip
    return header, rows


def _refinement(report):
    header = ["system", "right after 0, 1, ... looks", "wrong to right", "right to wrong",
              "texts changed", "mean looks", "queries by looks", "ended", "cycles"]  # fmt: skip
    rows = []
    for name, found in report["refinement"].items():
        own = found.get("calls")
        if own is None:
            continue
        ended = ", ".join(f"{stop} {count}" for stop, count in own["stops"].items())
        rows.append(
            [name, " ".join(f"{x:.1%}" for x in own["accuracy_at_step"]),
             str(own["wrong_to_right"]), str(own["right_to_wrong"]), str(own["changed"]),
             f"{own['mean_steps']:.2f}", " ".join(map(str, own["steps"])), ended,
             str(own["cycles"])]
        )  # fmt: skip
    return header, rows


def _votes(vote):
    header = ["samples", "calls right", "no call where none is due", "prompt tokens", "new tokens"]
    rows = []
    for n, calls in enumerate(vote["calls_accuracy"]):
        cost, none = vote["per_query"][n], vote["irrelevance"][n]
        rows.append(
            [str(n + 1), "" if calls is None else f"{calls:.1%}",
             "" if none is None else f"{none:.1%}", f"{cost['prompt_tokens']:.0f}",
             f"{cost['new_tokens']:.1f}"]
        )  # fmt: skip
    return header, rows


def _comparisons(report):
    header = ["first", "second", "items", "n", "difference [95 %]", "only second right",
              "only first right", "p", "verdict"]  # fmt: skip
    rows = [
        [c["first"], c["second"], c["items"], str(c["num_items"]),
         f"{c['difference']:+.1%} [{c['low']:+.1%}, {c['high']:+.1%}]", str(c["gained"]),
         str(c["lost"]), f"{c['p_value']:.3f}", c["verdict"]]
        for c in report["comparisons"]
    ]  # fmt: skip
    return header, rows


def _plots(folder: pathlib.Path, report: dict[str, Any]) -> None:
    from pangu_jax.pretraining.plots import plot_lines

    lines = []
    for name, found in report["refinement"].items():
        if "calls" in found and "fixed" not in name:
            steps = found["calls"]["accuracy_at_step"]
            lines.append((name, np.array([range(len(steps)), steps], float)))
    if lines:
        plot_lines(folder / "refinement.png", "Calls right after so many looks", "looks", lines)
    lines = []
    for arm, found in report["rounds"].items():
        for r in found["rounds"]:
            if counts := r.get("histogram"):
                line = np.array([range(len(counts)), counts], float)
                lines.append((f"{arm}, round {r['number']}", line))
    if lines:
        plot_lines(folder / "selection.png", "Items by right samples", "right samples", lines)
