"""The needle test on paper: needle.json, needle.md and needle.png (depth by length, per base)."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from pangu_jax.config.resolve import to_dict
from pangu_jax.pretraining.config import NeedleConfig
from pangu_jax.pretraining.needle_choice import Choice, Outcome, interval


def write_needle_report(
    folder: pathlib.Path, choice: Choice, settings: NeedleConfig, about: str
) -> pathlib.Path:
    """Writes needle.json, needle.md and needle.png into `folder`; returns the path of needle.md.

    Args:
      about: what was tested, one phrase.
    """
    import jax

    folder.mkdir(parents=True, exist_ok=True)
    plot_needles(folder / "needle.png", choice)
    facts = {
        "about": about, "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
    }  # fmt: skip
    record = facts | {
        "settings": to_dict(settings), "target": choice.target, "base": choice.base,
        "clear": choice.clear, "verdict": choice.verdict,
        "outcomes": [as_record(outcome) for outcome in choice.outcomes],
    }  # fmt: skip
    text = json.dumps(record, indent=1, allow_nan=False)
    (folder / "needle.json").write_text(text + "\n", encoding="utf-8")
    lengths = sorted({outcome.length for outcome in choice.outcomes})
    parts = [
        f"# Needle test for the RoPE base\n\n{about}; {facts['device']}, JAX {facts['jax']}, seed "
        f"{settings.seed}. Target length {choice.target:,}.\n\n{choice.verdict}",
        *(f"## Length {length:,}\n\n{needle_table(choice.at(length))}" for length in lengths),
        "Exact: greedy decoding says all digits. Choice: the right value is the most probable of "
        f"{settings.choices}; chance is {1 / settings.choices:.3g} for a model without "
        "preferences, and the control, which has the same questions on text without the needle, "
        "shows what this model does without reading. Margin: mean log-probability of the right "
        "value less that of the best other. In brackets 95 % intervals (Wilson). They and the "
        "verdict take questions as independent"
        + (", which those about one haystack are not quite" if settings.together else "")
        + ". Perplexity is that of the text without needles in the last "
        "quarter of its positions.",
        "## Perplexity by position\n\n"
        + "\n\n".join(_by_position(choice.at(length)) for length in lengths),
        "![Share of exact answers and right choices by depth and length](needle.png)",
    ]
    path = folder / "needle.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def as_record(outcome: Outcome) -> dict[str, Any]:
    """JSON-ready: every answer, so that other statistics can be made of it."""
    names = ("depths", "exact", "choice", "margin", "control_exact", "control_choice",
             "control_margin", "nll", "counted")  # fmt: skip
    return {"base": outcome.base, "length": outcome.length} | {
        name: getattr(outcome, name).tolist() for name in names
    } | {"perplexity": outcome.perplexity().tolist(),
         "last_quarter_perplexity": outcome.last_quarter_perplexity()}  # fmt: skip


def _share(hits: np.ndarray) -> str:
    low, high = interval(int(hits.sum()), len(hits))
    return f"{hits.sum()} of {len(hits)} [{low:.2f}, {high:.2f}]"


def needle_table(outcomes: list[Outcome]) -> str:
    """Markdown, one line per base."""
    lines = [
        "| RoPE base | exact | control | choice | control | margin | control | perplexity of the "
        "last quarter |",
        "| ---: | --- | ---: | --- | --- | ---: | ---: | ---: |",
    ]
    for o in outcomes:
        lines.append(
            f"| {o.base:g} | {_share(o.exact)} | {o.control_exact.sum()} of "
            f"{len(o.control_exact)} | {_share(o.choice)} | {_share(o.control_choice)} | "
            f"{o.margin.mean():+.2f} | {o.control_margin.mean():+.2f} | "
            f"{o.last_quarter_perplexity():.4g} |"
        )
    return "\n".join(lines)


def _by_position(outcomes: list[Outcome]) -> str:
    buckets, length = outcomes[0].nll.shape[1], outcomes[0].length
    edges = [f"to {(i + 1) / buckets:.3g}" for i in range(buckets)]
    lines = [f"| length {length:,}, base | " + " | ".join(edges) + " |",
             "| ---: |" + " ---: |" * buckets]  # fmt: skip
    for o in outcomes:
        lines.append(f"| {o.base:g} | " + " | ".join(f"{x:.4g}" for x in o.perplexity()) + " |")
    return "\n".join(lines)


def plot_needles(path: pathlib.Path, choice: Choice) -> None:
    """Heat maps as a PNG: depth by length, a column per base; exact above, choice below."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    bases = sorted({outcome.base for outcome in choice.outcomes})
    lengths = sorted({outcome.length for outcome in choice.outcomes})
    depths = np.unique(choice.outcomes[0].depths)
    found = {(o.base, o.length): o for o in choice.outcomes}
    size = (1.6 + len(bases) * (0.9 + 0.45 * len(lengths)), 2 * (1.0 + 0.3 * len(depths)))
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    panels = figure.subplots(2, len(bases), squeeze=False, sharex=True, sharey=True)
    for row, name in enumerate(("exact", "choice")):
        for column, base in enumerate(bases):
            share = np.array([
                [getattr(o, name)[o.depths == depth].mean() for length in lengths
                 for o in [found[base, length]]]
                for depth in depths
            ])  # fmt: skip
            axes = panels[row, column]
            image = axes.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (i, j), value in np.ndenumerate(share):
                colour = "white" if value < 0.6 else "black"
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
            axes.set_xticks(range(len(lengths)), [f"{x:,}" for x in lengths], fontsize=7)
            axes.set_yticks(range(len(depths)), [f"{x:g}" for x in depths], fontsize=7)
            axes.set_title(f"{name}, base {base:g}", fontsize=8)
            if not column:
                axes.set_ylabel("depth", fontsize=8)
            if row:
                axes.set_xlabel("length", fontsize=8)
    figure.colorbar(image, ax=panels, label="share of questions")
    figure.savefig(path)
