"""The report: its figures, its floors, its files."""

import json
import pathlib
import sys

import numpy as np
import pytest

from recsys_jax.evaluation.summary import ReportError
from recsys_jax.tracing.evaluation import floors, metrics, summary
from recsys_jax.tracing.evaluation.evaluator import evaluate
from recsys_jax.tracing.evaluation.protocols import SINGLE_STEP, Predictor, Protocol
from recsys_jax.tracing.evaluation.report import write_report
from recsys_jax.tracing.evaluation.summary import SparsityPoint, TracingEntry

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tracing_toys as toys  # noqa: E402

RNG = np.random.default_rng(0)
TRAIN = toys.random_batch(RNG, students=60, steps=30)
TEST = [(np.arange(40), toys.random_batch(RNG, students=40, steps=30))]
PROTOCOLS = [SINGLE_STEP, Protocol(0.0, "threshold"), Protocol(0.5, "threshold")]


def noisy(seed, size):
    """A model that knows its own answers in part: better the smaller the noise."""
    noise = np.random.default_rng(seed).normal(0, size, (40, 30))
    answers = TEST[0][1].responses

    def logits(batch):
        return 2.0 * answers - 1.0 + noise

    return Predictor(logits, lambda batch, observed, feedback, key: logits(batch))


def result(predictor, protocols=PROTOCOLS, data=TEST):
    return evaluate(predictor, data, protocols, num_resamples=60)


@pytest.fixture(scope="module")
def entries():
    of_floors = floors.make_floors(floors.fit_rates([TRAIN]))
    return [
        TracingEntry("sharp", [result(noisy(i, 0.5)) for i in range(3)], note="the better one"),
        TracingEntry("blunt", [result(noisy(9 + i, 3.0)) for i in range(2)]),
        *(TracingEntry(n, [result(f)], floor=True) for n, f in of_floors.items()),
    ]


def test_tables_by_hand(entries):
    found = summary.tables(entries)
    assert [t.protocol.name for t in found] == [p.name for p in PROTOCOLS]
    for table in found:
        name = table.protocol.name
        order = [f.entry.name for f in table.models]
        assert order[:2] == ["sharp", "blunt"]  # Models first, then floors, each by AUC.
        aucs = [f.metrics["AUC"].interval.mean for f in table.models[2:]]
        assert aucs == sorted(aucs, reverse=True)
        values = [r[name].overall.values["AUC"] for r in entries[0].results]
        assert table.models[0].metrics["AUC"].interval.mean == pytest.approx(np.mean(values))
        assert table.models[0].metrics["AUC"].std_over_seeds == pytest.approx(
            np.std(values, ddof=1)
        )
        best = max(e.results[0][name].overall.values["AUC"] for e in entries if e.floor)
        margin = table.against_floor[0]
        assert margin.a == "sharp" and margin.b == order[2]
        assert margin.difference.mean == pytest.approx(np.mean(values) - best)
        assert margin.p_adjusted >= margin.p_value
        (pair,) = table.pairs
        assert (pair.a, pair.b) == ("sharp", "blunt") and pair.difference.low > 0
        reliability = table.models[0].reliability
        assert reliability.count.sum() == 3 * table.num_rows
    assert summary.few_seeds(entries) == ["blunt"]


def test_files_say_what_the_tables_say(entries, tmp_path):
    smaller = SparsityPoint(10, [TracingEntry("sharp", [result(noisy(5, 2.0))]), *entries[2:]])
    larger = SparsityPoint(60, entries)
    report = write_report(
        tmp_path / "r", "A test", entries, sparsity=[larger, smaller], notes=["A note."],
        licence="free", citation="nobody",
    )  # fmt: skip
    text = report.path.read_text()
    payload = json.loads((tmp_path / "r" / "report.json").read_text())
    assert payload["fewer_than_three_seeds"] == ["blunt", "sharp"]
    for table, stored in zip(report.tables, payload["protocols"], strict=True):
        assert stored["rows"] == table.num_rows
        for f, model in zip(table.models, stored["models"], strict=True):
            assert model["model"] == f.entry.name and model["seeds"] == len(f.entry.results)
            for metric in metrics.METRICS:
                interval = f.metrics[metric].interval
                assert model["metrics"][metric]["mean"] == pytest.approx(interval.mean)
                assert f"{interval.mean:.4f}" in text
        line = next(x for x in text.splitlines() if x.startswith("| sharp |"))
        assert "±" in line and line.count("**") >= 4
    assert "| *question mean* |" in text and "**Fewer than three seeds: blunt, sharp.**" in text
    assert "A note." in text and "the better one" in text and "nobody" in text
    assert [p["students"] for p in payload["sparsity"]] == [10, 60]
    images = sorted(p.name for p in (tmp_path / "r").glob("*.png"))
    assert all(f"({name})" in text for name in images)
    stems = ("single_step", "open_loop_threshold", "prefix_0_5_threshold")
    kinds = ("horizon", "reliability", "sparsity", "positions")
    assert {f"{kind}_{stem}.png" for stem in stems for kind in kinds} <= set(images)
    for name in images:
        assert (tmp_path / "r" / name).read_bytes()[:4] == b"\x89PNG"


def test_an_open_loop_figure_needs_a_floor(entries, tmp_path):
    with pytest.raises(ReportError, match="'open loop, threshold' has no floor"):
        write_report(tmp_path, "x", entries[:2])
    single = [TracingEntry("a", [{"single-step": entries[0].results[0]["single-step"]}])]
    assert len(summary.tables(single)) == 1


def test_entries_that_do_not_fit(entries):
    with pytest.raises(ReportError, match="at least one model"):
        summary.tables([])
    with pytest.raises(ReportError, match="must be unique"):
        summary.tables([entries[0], entries[0], *entries[2:]])
    with pytest.raises(ReportError, match="no evaluation result"):
        summary.tables([TracingEntry("a", [])])
    other = [(np.arange(40) + 1, TEST[0][1])]
    moved = TracingEntry("moved", [result(noisy(0, 1.0), data=other)])
    with pytest.raises(ReportError, match="different students"):
        summary.tables([*entries, moved])
    uneven = TracingEntry("uneven", [entries[0].results[0], {}])
    with pytest.raises(ReportError, match="different protocols"):
        summary.tables([uneven, *entries[2:]])
