"""Tables of a plan: one description, shown on a terminal or written as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.topology import Topology
from pangu_jax.planning.ablation import AblationStep
from pangu_jax.planning.cost import Prediction
from pangu_jax.planning.memory import MemoryPlan
from pangu_jax.planning.sweep import SweepResult
from pangu_jax.planning.validation import Comparison

# Published for Pangu Ultra with rows of 4K: before and after its optimizations.
PAPER_MFU = (0.43, 0.52)


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under headings; the first column is left-aligned, the others right.

    optional: columns that a terminal shows only if it is wide enough for all. report_only: too
    much text for any terminal.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    optional: tuple[str, ...] = ()
    report_only: bool = False

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", "| " + " | ".join(self.columns) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.columns) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join(lines + (["", self.note] if self.note else []))

    def show(self, console) -> None:
        """Prints it with rich, without cutting words."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable

        if self.report_only:
            return
        shown = list(range(len(self.columns)))
        widths = self._widths(shown, console.width)
        if widths is None:
            shown = [i for i in shown if self.columns[i] not in self.optional]
            widths = self._widths(shown, console.width)
        table = RichTable(
            title=f"[bold]{self.title}[/bold]", title_justify="left", box=SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )  # fmt: skip
        for place, index in enumerate(shown):
            table.add_column(
                self.columns[index], justify="left" if index == 0 else "right", overflow="fold",
                width=widths[place] if widths else None,
            )  # fmt: skip
        for row in self.rows:
            table.add_row(*(row[index] for index in shown))
        console.print(table)
        if self.note:
            console.print(self.note, highlight=False)
            console.print()

    def _widths(self, shown: Sequence[int], room: int) -> list[int] | None:
        """Characters of every column so that no word is cut; None where there is no room."""
        cells = [[self.columns[i], *(row[i] for row in self.rows)] for i in shown]
        widths = [max(len(word) for text in c for word in text.split() or [""]) for c in cells]
        wanted = [max(map(len, c)) for c in cells]
        room -= sum(widths) + 2 * len(shown) + 1
        if room < 0:
            return None
        order = sorted(range(len(shown)), key=lambda i: wanted[i] - widths[i])
        for left, column in zip(range(len(order), 0, -1), order, strict=True):
            more = min(wanted[column] - widths[column], room // left)
            widths[column] += more
            room -= more
        return widths


def size_text(size: float) -> str:
    """'12.3 GB', '4.5 MB', '678 B'."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.2f} {unit}" if unit == "GB" else f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def _seconds(value: float) -> str:
    return f"{value:.3f} s" if value >= 0.0995 else f"{1e3 * value:.2f} ms"


def layout_text(layout: Layout) -> str:
    """'data 128 x pipe 8 (6 virtual) x tensor 8, 16 micro-batches of 1 row, ZeRO-1'."""
    virtual = f" ({layout.virtual_stages} virtual)" if layout.virtual_stages > 1 else ""
    axes = [f"data {layout.data}", f"pipe {layout.pipe}{virtual}"]
    axes += [f"{a} {getattr(layout, a)}" for a in ("context", "tensor") if getattr(layout, a) > 1]
    count, rows = layout.microbatches, layout.microbatch_rows
    micro = f"{count} micro-batch{'es' * (count > 1)} of {rows} row{'s' * (rows > 1)}"
    extra = ", overlapped" if layout.overlap else ""
    return f"{' x '.join(axes)}, {micro}, ZeRO-{layout.zero}{extra}"


def phase_table(predictions: Mapping[str, Prediction], topology: Topology) -> Table:
    """One column per phase: layout, step, MFU, memory."""

    def memory(p: Prediction) -> str:
        share = f"{size_text(p.memory.total)} ({p.memory.total / topology.memory_bytes:.0%})"
        return share + ("" if p.fits else ", does not fit")

    facts = {
        "rows x tokens": lambda p: f"{p.layout.batch_rows:,} x {p.seq_len:,}",
        "data": lambda p: str(p.layout.data),
        "pipe x virtual stages": lambda p: f"{p.layout.pipe} x {p.layout.virtual_stages}",
        "context": lambda p: str(p.layout.context),
        "tensor": lambda p: str(p.layout.tensor) + (", rings" if p.layout.overlap else ""),
        "micro-batches x rows": lambda p: f"{p.layout.microbatches} x {p.layout.microbatch_rows}",
        "ZeRO stage": lambda p: str(p.layout.zero),
        "step": lambda p: _seconds(p.seconds),
        "tokens/s": lambda p: f"{p.tokens / p.seconds:,.0f}",
        "MFU": lambda p: f"{p.mfu:.1%}",
        "HFU": lambda p: f"{p.hfu:.1%}",
        "memory of a device": memory,
    }
    rows = tuple((name, *map(fact, predictions.values())) for name, fact in facts.items())
    return Table(f"Predicted steps on {topology.name}", ("phase", *predictions), rows)


def time_table(predictions: Mapping[str, Prediction]) -> Table:
    """Where the seconds of a step go, by phase."""
    causes = list(next(iter(predictions.values())).parts)
    rows = [
        (cause, *(f"{_seconds(p.parts[cause])} ({p.parts[cause] / p.seconds:.1%})"
                  for p in predictions.values()))
        for cause in causes
    ]  # fmt: skip
    return Table("Seconds of a step", ("spent on", *predictions), tuple(rows))


def memory_table(predictions: Mapping[str, Prediction]) -> Table:
    """Bytes of the fullest device, by part and phase."""
    parts = list(next(iter(predictions.values())).memory.parts)
    rows = [
        (part, *(size_text(p.memory.parts[part]) for p in predictions.values())) for part in parts
    ]
    rows.append(("sum", *(size_text(p.memory.total) for p in predictions.values())))
    rows.append(("pipeline rank", *(str(p.memory.rank) for p in predictions.values())))
    return Table("Memory of the fullest device", ("part", *predictions), tuple(rows))


def remat_table(plans: Mapping[str, Mapping[str, MemoryPlan]], chosen: str) -> Table:
    """Activations, and all memory, by remat policy and phase: policy -> phase -> plan."""
    phases = list(next(iter(plans.values())))
    rows = tuple(
        (
            policy + (" (planned)" if policy == chosen else ""),
            *(
                f"{size_text(p.stash + p.activations)} of {size_text(p.total)}"
                for p in by_phase.values()
            ),
        )
        for policy, by_phase in plans.items()
    )
    return Table(
        "Activations of the fullest device by remat policy", ("policy", *phases), rows,
        "Those in flight between a forward and a backward part, and those of the part at work.",
    )  # fmt: skip


def collective_table(name: str, prediction: Prediction) -> Table:
    """Collectives of a step on one device."""
    rows = tuple(
        (
            c.purpose, c.axis, c.kind, str(c.group), size_text(c.bytes), f"{c.count:,.0f}",
            size_text(c.sent), _seconds(c.total_seconds), c.beside or "nothing", c.links,
        )
        for c in sorted(prediction.collectives, key=lambda c: -c.total_seconds)
    )  # fmt: skip
    columns = ("for", "axis", "kind", "group", "array", "times", "sent", "time", "can hide behind",
               "links")  # fmt: skip
    return Table(
        f"Collectives of a step, {name}", columns, rows,
        "Per device; time before anything is hidden.",
        optional=("axis", "group", "array", "can hide behind"),
    )  # fmt: skip


def validation_table(comparisons: Sequence[Comparison], errors: tuple[float, float]) -> Table:
    """Prediction beside publication; errors: as it is, and with the constant fitted to others."""
    rows = tuple(
        (
            c.run.name, c.run.reported, f"{c.run.mfu:.1%}", f"{c.prediction.mfu:.1%}",
            f"{100 * c.error:+.1f}", c.run.source,
        )
        for c in comparisons
    )  # fmt: skip
    bias = sum(c.error for c in comparisons) / len(comparisons)
    kinds: dict[str, list[float]] = {}
    for c in comparisons:
        kinds.setdefault(c.run.topology.device_kind, []).append(100 * c.error)
    by_kind = ", ".join(f"{kind} {sum(e) / len(e):+.1f}" for kind, e in kinds.items())
    return Table(
        "Prediction beside publication",
        ("run", "reported", "MFU, causal half", "predicted", "points", "source"),
        rows,
        f"Mean absolute error {100 * errors[0]:.1f} points, mean error {100 * bias:+.1f}; one set "
        "of constants, none fitted to whole runs. Choosing the efficiency of products by the other "
        f"runs gives {100 * errors[1]:.1f}. Mean error by device: {by_kind}. That some kinds of "
        "device lie high together is not in the model: clocks under load, for one, are no data-"
        "sheet figure.",
        optional=("source",),
    )


def guessed_table(comparisons: Sequence[Comparison]) -> Table:
    """What the sources of the published runs leave open, and how their figures were taken."""
    rows = tuple(
        (c.run.name, layout_text(c.run.layout), "; ".join(c.run.guessed) or "nothing", c.run.note)
        for c in comparisons
    )
    columns = ("run", "layout", "guessed", "note")
    return Table("Published runs as they were planned", columns, rows, report_only=True)


def ablation_table(title: str, steps: Sequence[AblationStep], note: str = "") -> Table:
    """MFU by phase as options are switched on; what does not fit is marked."""
    phases = list(steps[0].predictions)
    rows = tuple(
        (
            step.name,
            *(
                f"{p.mfu:.1%}" + ("" if p.fits else " (too large)")
                for p in step.predictions.values()
            ),
        )
        for step in steps
    )
    return Table(title, ("switched on", *phases), rows, note)


def sweep_table(name: str, result: SweepResult, planned: Prediction) -> Table:
    """The best layouts of a sweep, and what the first saves against the planned one."""
    rows = tuple(
        (
            layout_text(e.prediction.layout), e.remat, _seconds(e.prediction.seconds),
            f"{e.prediction.mfu:.1%}", size_text(e.prediction.memory.total),
        )
        for e in result.entries
    )  # fmt: skip
    best = result.entries[0].prediction
    changes = {part: best.parts[part] - planned.parts[part] for part in best.parts}
    largest = sorted(changes, key=lambda part: -abs(changes[part]))[:3]
    argument = ", ".join(f"{part} {changes[part]:+.3f} s" for part in largest)
    return Table(
        f"Fastest layouts that fit, {name}", ("layout", "remat", "step", "MFU", "memory"), rows,
        f"{result.tried:,} tried, {result.too_large:,} of them too large; {result.refused:,} "
        f"do not suit the model. The planned layout takes {_seconds(planned.seconds)} "
        f"({planned.mfu:.1%}); the first of these differs most in {argument}.",
    )  # fmt: skip
