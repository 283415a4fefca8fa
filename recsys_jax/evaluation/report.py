"""The report of a run: report.md with plots, results.csv, results.json, and a table on screen."""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from recsys_jax.evaluation import plots
from recsys_jax.evaluation.intervals import Comparison
from recsys_jax.evaluation.summary import (
    ModelEntry,
    ModelSummary,
    as_json,
    paired_comparisons,
    read_curves,
    summarise,
)

__all__ = [
    "ModelEntry",
    "RecommendationExample",
    "Report",
    "print_table",
    "read_curves",
    "write_report",
]

DEFAULT_METRICS = ("NDCG@10", "HR@10", "NDCG@50", "HR@50", "MRR")


@dataclasses.dataclass(frozen=True)
class RecommendationExample:
    """One user of the section of examples, in titles.

    history: events, oldest first. target: the held-out event, None if unknown.
    lists: model -> recommended titles, best first.
    """

    user: str
    history: Sequence[str]
    target: str | None
    lists: Mapping[str, Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Report:
    """What was written: the markdown file, the summaries (best first) and the paired tests."""

    path: pathlib.Path
    summaries: list[ModelSummary]
    comparisons: list[Comparison]
    metrics: list[str]


def write_report(
    path,
    title: str,
    entries: Sequence[ModelEntry],
    *,
    description: str = "",
    metrics: Sequence[str] = DEFAULT_METRICS,
    primary: str = "NDCG@10",
    examples: Sequence[RecommendationExample] = (),
    notes: Sequence[str] = (),
    licence: str = "",
    citation: str = "",
    level: float = 0.95,
    seed: int = 0,
) -> Report:
    """Write report.md, results.csv, results.json and PNGs into the folder `path`.

    Args:
      path: folder, made if needed; older files of the same names are replaced.
      entries: the models, see `ModelEntry`; all evaluated on the same users.
      metrics: columns of the table; those nobody measured are left out.
      primary: metric of the order, the paired tests and the validation curve.
      notes: one paragraph each. licence, citation: of the data, shown at the end.
    Raises:
      ReportError: entries that do not fit together.
    """
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    summaries = summarise(entries, level=level, seed=seed)
    styles = plots.model_styles([s.name for s in summaries])
    # A model that lacks the metric goes last.
    summaries.sort(key=lambda s: -np.nan_to_num(s.value(primary), nan=-np.inf))
    columns = [m for m in metrics if any(m in s.metrics for s in summaries)]
    comparisons = paired_comparisons(summaries, primary, level=level, seed=seed)
    report = Report(folder / "report.md", summaries, comparisons, columns)

    images = _plots(folder, summaries, columns, primary, styles)
    _write_csv(folder / "results.csv", summaries)
    payload = {"title": title, "description": description, "level": level}
    payload |= as_json(summaries, comparisons) | {"notes": list(notes)}
    payload |= {"data_licence": licence, "data_citation": citation}
    text = json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")

    parts = [
        f"# {title}",
        description,
        _results(report, level, primary),
        images.get("comparison", ""),
    ]
    parts += [_tests(comparisons, primary), _beyond(summaries), _curve_section(images)]
    parts += [_examples(examples), _notes(notes, summaries), _data(licence, citation)]
    text = "\n\n".join(part.strip() for part in parts if part.strip())
    report.path.write_text(text + "\n", encoding="utf-8")
    return report


def print_table(report: Report, console=None) -> None:
    """The results table on the terminal (a `rich.console.Console`, default standard output)."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    roomy = console.width >= 16 + 17 * len(report.metrics)
    table = Table(title=None, header_style="bold", show_edge=False, pad_edge=False)
    table.add_column("model", no_wrap=True)
    for metric in report.metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    best = _best(report.summaries, report.metrics)
    for s in report.summaries:
        cells = []
        for metric in report.metrics:
            interval = s.interval(metric)
            if interval is None:
                cells.append("-")
                continue
            half = (interval.high - interval.low) / 2
            text = f"{interval.mean:.4f}"
            if roomy or metric == report.metrics[0]:
                text += f" ±{half:.4f}"
            cells.append(f"[bold]{text}[/bold]" if best[metric] == s.name else text)
        table.add_row(s.name, *cells)
    console.print(table)
    first = report.summaries[0]
    level = next(iter(first.metrics.values())).interval.level
    console.print(
        f"{first.entry.results[0].num_users:,} users, the whole catalogue ranked; ± is half the "
        f"{100 * level:g} % interval over users",
        style="dim",
        highlight=False,
    )


def _plots(folder, summaries, columns, primary, styles) -> dict[str, str]:
    """PNG files; name -> markdown image."""
    shown = list(dict.fromkeys([m for m in (primary, *columns) if m in columns]))[:3]
    made = {
        "comparison": plots.plot_comparison(
            folder / "comparison.png", {s.name: s.metrics for s in summaries}, shown,
            title="Ranking quality on the test users", styles=styles,
        ),
        "loss": plots.plot_curves(
            folder / "training_loss.png", _curves(summaries, "train/loss"),
            title="Training loss", ylabel="loss", styles=styles,
        ),
        "validation": plots.plot_curves(
            folder / "validation.png", _curves(summaries, f"eval/{primary}"),
            title=f"Validation {primary}", ylabel=primary, styles=styles, mark="max",
        ),
    }  # fmt: skip
    texts = {
        "comparison": "Dot plot of the models with confidence intervals",
        "loss": "Training loss over steps",
        "validation": f"Validation {primary} over steps",
    }
    return {name: f"![{texts[name]}]({p.name})" for name, p in made.items() if p is not None}


def _curves(summaries, name):
    return {s.name: s.entry.curves[name] for s in summaries if name in s.entry.curves}


def _best(summaries, metrics):
    return {
        m: max(summaries, key=lambda s: np.nan_to_num(s.value(m), nan=-1)).name for m in metrics
    }


def _row(cells):
    return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def markdown_table(header, rows, align):
    """A markdown table; align: 'l' or 'r' per column."""
    marks = {"l": "---", "r": "---:"}
    return "\n".join([_row(header), _row([marks[a] for a in align]), *map(_row, rows)])


def _results(report, level, primary) -> str:
    summaries, metrics = report.summaries, report.metrics
    best = _best(summaries, metrics)
    seeds = max(len(s.entry.results) for s in summaries)
    extras = [
        (f"validation {primary}", lambda e: e.validation and f"{np.mean(e.validation):.4f}"),
        ("parameters", lambda e: e.parameters and f"{e.parameters:,}"),
        ("training", lambda e: e.train_seconds and _duration(e.train_seconds)),
    ]
    extras = [(n, f) for n, f in extras if any(f(s.entry) for s in summaries)]
    rows = []
    for s in summaries:
        cells = [s.name]
        for metric in metrics:
            interval = s.interval(metric)
            if interval is None:
                cells.append("–")
                continue
            mean = f"{interval.mean:.4f}"
            mean = f"**{mean}**" if best[metric] == s.name else mean
            spread = s.metrics[metric].std_over_seeds
            spread = f" ±{spread:.4f}" if np.isfinite(spread) else ""
            cells.append(f"{mean}{spread} [{interval.low:.4f}, {interval.high:.4f}]")
        rows.append(cells + [f(s.entry) or "–" for _, f in extras])
    header = ["model", *metrics, *(n for n, _ in extras)]
    table = markdown_table(header, rows, "l" + "r" * (len(header) - 1))
    users = summaries[0].entry.results[0].num_users
    note = (
        f"{users:,} test users. In brackets: {100 * level:g} % bootstrap confidence interval (BCa) "
        "over users. Best value in bold."
    )
    if seeds > 1:
        note += f" Means over up to {seeds} training seeds; ± is the standard deviation over seeds."
    return f"## Results\n\n{table}\n\n{note}"


def _tests(comparisons, primary) -> str:
    if not comparisons:
        return ""
    rows = [
        (
            f"{c.a} − {c.b}",
            f"{c.difference.mean:+.4f}",
            f"[{c.difference.low:+.4f}, {c.difference.high:+.4f}]",
            f"{c.p_value:.4f}",
            f"{c.p_adjusted:.4f}",
            "yes" if c.significant() else "no",
        )
        for c in comparisons
    ]
    header = ["pair", "difference", "interval", "p", "p (Holm)", "significant at 0.05"]
    return (
        f"### Paired tests, {primary}\n\n{markdown_table(header, rows, 'lrrrrl')}\n\n"
        "Two-sided sign-flip permutation test on the per-user differences (9,999 draws), corrected "
        "after Holm over all pairs."
    )


def _beyond(summaries) -> str:
    names = []
    for s in summaries:
        names += [n for n in s.catalogue if n not in names]
        names += [n for n in s.metrics if "popularity" in n and n not in names]
    if not names:
        return ""
    rows = [[s.name, *(_plain(s.value(n)) for n in names)] for s in summaries]
    text = (
        "coverage: share of the catalogue in at least one list. gini: inequality of exposure "
        "(0 = every item equally often). "
    )
    if any("popularity" in n for n in names):
        text += (
            "Popularity percentile 1 is the most popular item; lift is recommended minus history, "
            "so above 0 the model pushes its users towards popular items. Log popularity is the "
            "mean of ln(1 + training events)."
        )
    labels = [n.replace("_", " ") for n in names]
    table = markdown_table(["model", *labels], rows, "l" + "r" * len(names))
    return f"## Beyond accuracy\n\n{table}\n\n{text}"


def _curve_section(images) -> str:
    lines = [images[n] for n in ("loss", "validation") if n in images]
    return "## Training\n\n" + "\n\n".join(lines) if lines else ""


def _examples(examples) -> str:
    if not examples:
        return ""
    parts = ["## Example recommendations"]
    for example in examples:
        parts.append(f"### User {example.user}")
        past = " · ".join(_plain_text(t) for t in example.history)
        parts.append(f"Last events, oldest first: {past}")
        if example.target is not None:
            parts.append(f"What came next (held out): **{_plain_text(example.target)}**")
        length = max((len(titles) for titles in example.lists.values()), default=0)
        rows = []
        for place in range(length):
            cells = [str(place + 1)]
            for titles in example.lists.values():
                text = _plain_text(titles[place]) if place < len(titles) else ""
                cells.append(f"**{text}** ✓" if text and titles[place] == example.target else text)
            rows.append(cells)
        header = ["#", *example.lists]
        parts.append(markdown_table(header, rows, "r" + "l" * len(example.lists)))
    return "\n\n".join(parts)


def _notes(notes, summaries) -> str:
    lines = [f"* **{s.name}**: {s.entry.note}" for s in summaries if s.entry.note]
    lines += [f"* {note}" for note in notes]
    return "## Notes\n\n" + "\n".join(lines) if lines else ""


def _data(licence, citation) -> str:
    parts = [f"Licence and terms: {licence}"] if licence else []
    parts += [f"Please cite:\n\n```\n{citation.strip()}\n```"] if citation else []
    return "## Data\n\n" + "\n\n".join(parts) if parts else ""


def _plain_text(text) -> str:
    """Titles must not act as markdown."""
    for sign in "\\`*_[]<>":
        text = str(text).replace(sign, "\\" + sign)
    return text


def _plain(x: float) -> str:
    return "–" if not np.isfinite(x) else f"{x:.4f}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def _write_csv(path, summaries) -> None:
    """Tidy: one line per model and metric."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "metric", "mean", "low", "high", "std_over_seeds", "seeds", "users"]
        )
        for s in summaries:
            seeds, users = len(s.entry.results), s.entry.results[0].num_users
            for name, m in s.metrics.items():
                i = m.interval
                spread = "" if np.isnan(m.std_over_seeds) else m.std_over_seeds
                writer.writerow([s.name, name, i.mean, i.low, i.high, spread, seeds, users])
            for name, value in s.catalogue.items():
                writer.writerow([s.name, name, value, "", "", "", seeds, users])
