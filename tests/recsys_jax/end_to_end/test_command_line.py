"""Whole runs through the command line: train, run again, eval, predict, and users' mistakes."""

from __future__ import annotations

import json
import pathlib
import resource
import sys

import polars as pl
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from command_line import CONFIG, columns, launch, write_log  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    log = write_log(folder / "log.csv")
    done = launch(CONFIG, *columns(log), f"--workdir={folder / 'work'}")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "work", log, done


def test_training_writes_results_plots_and_examples(trained):
    workdir, _, done = trained
    report = workdir / "report"
    results = json.loads((report / "results.json").read_text())
    assert {m["model"] for m in results["models"]} == {"fuxi_alpha", "sasrec", "most_popular"}
    for model in results["models"]:
        interval = model["metrics"]["NDCG@10"]
        assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
    text = (report / "report.md").read_text()
    assert "Example recommendations" in text and "request" in text
    for png in ("comparison.png", "training_loss.png", "validation.png"):
        assert (report / png).read_bytes().startswith(b"\x89PNG")
    config = json.loads((workdir / "config.json").read_text())
    assert config["data"]["columns"]["user"] == "customer"
    assert "fuxi_alpha" in done.stdout and "NDCG@10" in done.stdout


def test_running_again_trains_nothing_and_reports_the_same(trained):
    workdir, log, _ = trained
    before = (workdir / "models/fuxi_alpha/seed0/metrics.jsonl").read_bytes()
    old = json.loads((workdir / "report/results.json").read_text())
    again = launch(CONFIG, *columns(log), f"--workdir={workdir}")
    assert again.returncode == 0, again.stderr[-3000:]
    assert "already finished" in again.stdout + again.stderr
    assert (workdir / "models/fuxi_alpha/seed0/metrics.jsonl").read_bytes() == before
    new = json.loads((workdir / "report/results.json").read_text())
    for a, b in zip(old["models"], new["models"], strict=True):
        assert a["metrics"] == b["metrics"]


def test_eval_and_predict_take_the_configuration_of_the_work_directory(trained, tmp_path):
    workdir, _, _ = trained
    done = launch("--mode=eval", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-3000:]
    output = tmp_path / "top.csv"
    done = launch(
        "--mode=predict",
        f"--workdir={workdir}",
        "--config.predict.k=4",
        f"--config.predict.output={output}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = pl.read_csv(output)
    assert table.columns[:4] == ["user", "rank", "item", "score"]
    assert table["user"].n_unique() == 60 and len(table) == 240
    log = pl.read_csv(workdir.parent / "log.csv")
    seen = set(zip(log["customer"], log["sku"], strict=True))
    assert not seen & set(zip(table["user"], table["item"], strict=True))
    for scores in table.group_by("user", maintain_order=True).agg("score")["score"]:
        assert list(scores) == sorted(scores, reverse=True)


def test_predict_serves_histories_never_seen_and_names_unknown_items(trained, tmp_path):
    workdir, _, _ = trained
    new = tmp_path / "new.jsonl"
    rows = [
        {"user": "x", "items": ["s1", "s4", "s13"], "timestamps": [1, 2, 3]},
        {"user": "y", "items": ["s2"], "timestamps": [5]},
    ]
    new.write_text("\n".join(map(json.dumps, rows)))
    output = tmp_path / "new.parquet"
    flags = ("--mode=predict", f"--workdir={workdir}", f"--config.predict.histories={new}",
             f"--config.predict.output={output}")  # fmt: skip
    done = launch(*flags, "--config.predict.k=3")
    assert done.returncode == 0, done.stderr[-3000:]
    assert pl.read_parquet(output)["user"].to_list() == ["x"] * 3 + ["y"] * 3
    new.write_text(json.dumps({"user": "z", "items": ["s1", "nonsense"], "timestamps": [1, 2]}))
    done = launch(*flags)
    assert done.returncode == 2
    assert "'nonsense' was never seen in training" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--config.train.stepz=3"], "Did you mean --config.train.steps?"),
        (["--config=configs/recsys/fuxi_alfa.py"], "Did you mean 'configs/recsys/fuxi_alpha.py'"),
        (["--config=configs/recsys/compare.py:debgu"], "Did you mean 'debug'"),
        ([CONFIG, "--config.models.sasrec.model=sasrek"], "did you mean 'sasrec'"),
        ([CONFIG], "set --config.data.path"),
        ([CONFIG, "--config.data.path=/nowhere/log.csv"], "/nowhere/log.csv"),
        ([CONFIG, "--config.loss.kind=softmax"], "loss.kind='softmax' is not one of"),
        (["--mode=eval"], "train"),
    ],
)
def test_mistakes_get_one_clear_line(arguments, message, tmp_path):
    done = launch(*arguments, f"--workdir={tmp_path / 'w'}")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_list_shows_every_configuration_and_help_is_there():
    done = launch("--list")
    assert done.returncode == 0, done.stderr
    for name in ("fuxi_alpha.py", "compare.py", "own_log.py", "ml100k"):
        assert name in done.stdout
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "--workdir" in launch("--help").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, which other work on the machine does not change.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 3.0


def test_a_wrong_column_names_the_ones_there_and_does_not_bind_the_directory(trained, tmp_path):
    """From a folder that is not the checkout, as an installed project is used."""
    _, log, _ = trained
    few = ("--config.train.steps=2", f"--workdir={tmp_path / 'w'}")
    arguments = columns(log)
    arguments[1] = "--config.data.columns.user=custmer"
    done = launch(CONFIG, *arguments, *few, cwd=tmp_path)
    assert done.returncode == 2
    assert "custmer" in done.stderr and "customer" in done.stderr
    assert "Traceback" not in done.stderr
    done = launch(CONFIG, *columns(log), *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    # Now there is something to lose.
    done = launch(CONFIG, *columns(log), *few, "--config.batch.max_len=9", cwd=tmp_path)
    assert done.returncode == 2 and "batch.max_len was 50, now 9" in done.stderr


def test_training_from_shards_equals_training_in_memory(trained, tmp_path):
    """The out-of-core path sees the same users, items and order, hence the same numbers."""
    workdir, log, _ = trained
    other = tmp_path / "w"
    done = launch(
        CONFIG, *columns(log), f"--config.data.shards={tmp_path / 'shards'}", f"--workdir={other}"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert list((tmp_path / "shards").glob("*.array_record"))
    old, new = (
        json.loads((w / "report/results.json").read_text())["models"] for w in (workdir, other)
    )
    for a, b in zip(old, new, strict=True):
        assert a["model"] == b["model"] and a["metrics"] == b["metrics"]
