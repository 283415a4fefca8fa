"""The report holds the right numbers and pictures."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from recsys_jax.evaluation import plots
from recsys_jax.evaluation.evaluator import EvaluationResult
from recsys_jax.evaluation.intervals import aggregate_seeds, compare_models
from recsys_jax.evaluation.metrics import rank_metrics
from recsys_jax.evaluation.report import RecommendationExample, print_table, write_report
from recsys_jax.evaluation.summary import ModelEntry, ReportError, read_curves

USERS = 80


def result(scale, seed, users=USERS):
    rng = np.random.default_rng(seed)
    ranks = 1 + (rng.exponential(scale, users)).astype(np.int32)
    per_user = rank_metrics(ranks)
    lift = rng.standard_normal(users)
    lift[0] = np.nan
    per_user["popularity_lift@10"] = lift
    means = {name: float(np.nanmean(x)) for name, x in per_user.items()} | {"coverage@10": 0.25}
    counts = np.zeros(5, np.int64)
    return EvaluationResult(means, per_user, np.arange(users), ranks, None, counts, 0.1)


def entries():
    steps = np.arange(1, 101)
    curves = {
        "train/loss": (steps, 5 / steps + 1),
        "eval/NDCG@10": (steps[::20], np.linspace(0, 0.3, 5)),
    }
    return [
        ModelEntry("weak", [result(60, 9)]),
        ModelEntry(
            "strong|er",
            [result(8, s) for s in range(3)],
            curves,
            61_200,
            95.0,
            "4 layers",
            [0.2, 0.3, 0.4],
        ),  # fmt: skip
    ]


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def test_numbers_files_and_links(tmp_path):
    models = entries()
    example = RecommendationExample(
        "7", ["Star *Wars*", "Fargo"], "Alien", {"strong|er": ["Jaws", "Alien"], "weak": ["Big"]}
    )
    report = write_report(
        tmp_path / "run", "A title", models, description="What was done.", examples=[example],
        notes=["A note."], licence="research only", citation="Harper and Konstan 2015",
    )  # fmt: skip
    strong = aggregate_seeds([r.per_user["NDCG@10"] for r in models[1].results])
    assert [s.name for s in report.summaries] == ["strong|er", "weak"]
    assert report.summaries[0].metrics["NDCG@10"].interval == strong.interval

    text = report.path.read_text()
    i = strong.interval
    cell = f"**{i.mean:.4f}** ±{strong.std_over_seeds:.4f} [{i.low:.4f}, {i.high:.4f}]"
    row = next(line for line in text.splitlines() if line.startswith("| strong\\|er | "))
    assert cell in row and "61,200" in row and "1.6 min" in row
    assert "validation NDCG@10" in text and "| 0.3000 |" in row  # mean over the seeds
    for needle in ("What was done.", "research only", "Harper and Konstan 2015", "A note.",
                   "Star \\*Wars\\*", "**Alien** ✓", "80 test users", "4 layers"):  # fmt: skip
        assert needle in text
    for image in ("comparison.png", "training_loss.png", "validation.png"):
        assert f"]({image})" in text
        width, height = png_size(report.path.parent / image)
        assert width > 500 and height > 200

    saved = json.loads((report.path.parent / "results.json").read_text())
    figures = saved["models"][0]["metrics"]["NDCG@10"]
    assert figures["mean"] == i.mean and figures["seed_means"] == list(strong.seed_means)
    assert saved["models"][1]["metrics"]["NDCG@10"]["std_over_seeds"] is None
    want = compare_models(
        {"strong|er": strong.per_user, "weak": models[0].results[0].per_user["NDCG@10"]}
    )[0]
    assert saved["paired_tests"][0]["p_value"] == want.p_value
    assert f"{want.difference.mean:+.4f}" in text

    with open(report.path.parent / "results.csv", newline="") as file:
        rows = {(r["model"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["strong|er", "NDCG@10"]["high"]) == i.high
    assert rows["strong|er", "NDCG@10"]["seeds"] == "3"
    assert float(rows["weak", "coverage@10"]["mean"]) == 0.25


def test_table_on_a_narrow_and_a_wide_terminal(tmp_path):
    report = write_report(tmp_path, "t", entries())
    for width in (80, 160):
        stream = io.StringIO()
        print_table(report, Console(file=stream, width=width))
        shown = stream.getvalue()
        for s in report.summaries:
            for metric in report.metrics:
                assert f"{s.value(metric):.4f}" in shown
        assert "…" not in shown


def test_one_model_without_curves_writes_no_empty_section(tmp_path):
    report = write_report(tmp_path, "t", entries()[:1])
    text = report.path.read_text()
    assert "## Training" not in text and "Paired tests" not in text and "## Data" not in text
    assert not (tmp_path / "training_loss.png").exists()
    assert report.comparisons == []


def test_report_errors(tmp_path):
    weak, strong = entries()
    with pytest.raises(ReportError, match="at least one model"):
        write_report(tmp_path, "t", [])
    with pytest.raises(ReportError, match="'weak'.* more than once"):
        write_report(tmp_path, "t", [weak, weak])
    with pytest.raises(ReportError, match="'strong|er' was evaluated on other users"):
        write_report(tmp_path, "t", [weak, ModelEntry("strong|er", [result(1, 1, users=7)])])
    with pytest.raises(ReportError, match="'none' has no evaluation result"):
        write_report(tmp_path, "t", [ModelEntry("none", [])])


def test_curves_of_a_metrics_file(tmp_path):
    file = tmp_path / "metrics.jsonl"
    records = [
        {"step": 10, "kind": "train", "values": {"loss": 2.5, "note": "text"}, "time": {"s": 1}},
        {"step": 20, "kind": "train", "values": {"loss": "nan"}, "time": {}},
        {"step": 20, "kind": "eval", "values": {"NDCG@10": 0.1}, "time": {}},
    ]
    file.write_text("\n".join(map(json.dumps, records)) + '\n{"step": 30, "ki')
    curves = read_curves(file)
    assert set(curves) == {"train/loss", "eval/NDCG@10"}
    steps, values = curves["train/loss"]
    assert steps.tolist() == [10, 20]
    np.testing.assert_array_equal(values, [2.5, np.nan])
    assert read_curves(tmp_path / "absent.jsonl") == {}


def test_plots_of_odd_input(tmp_path):
    nothing = {"a": ([], []), "b": ([1, 2], [np.nan, np.nan])}
    options = dict(title="t", ylabel="y")
    assert plots.plot_curves(tmp_path / "no.png", nothing, **options) is None
    assert not (tmp_path / "no.png").exists()
    single = {f"model {i}": ([5], [1.0]) for i in range(9)}  # one point each, all on one spot
    png_size(plots.plot_curves(tmp_path / "one.png", single, mark="max", **options))
    summaries = {"m": {"lift": aggregate_seeds([[-0.5, -0.1, -0.3]])}}
    png_size(plots.plot_comparison(tmp_path / "neg.png", summaries, ["lift", "none"], title="t"))
    assert plots.plot_comparison(tmp_path / "x.png", summaries, ["none"], title="t") is None


def test_models_are_told_apart():
    styles = plots.model_styles([str(i) for i in range(20)])
    assert len({str(s) for s in styles.values()}) == 20
