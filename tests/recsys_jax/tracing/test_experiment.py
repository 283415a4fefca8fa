"""Whole runs of knowledge tracing: train, resume, evaluate, predict, and what mistakes say."""

import json
import pathlib

import numpy as np
import polars
import pytest

from configs.recsys import _tracing as base
from configs.recsys import advkt, tracing
from pangu_jax.config.resolve import ConfigError, resolve
from recsys_jax.data.errors import DataError
from recsys_jax.tracing import data as tracing_data
from recsys_jax.tracing.config import TracingConfig, resolve_entries
from recsys_jax.tracing.experiment import all_runs, run
from recsys_jax.tracing.runs import batch_lengths


def config(names=("dkt", "question_mean"), **changes):
    made = base.debug(base.tiny_models(tuple(names)))
    made.data.simulator.num_students = 60
    for key, value in changes.items():
        target, *rest = key.split("__")
        node = made
        for name in [target, *rest][:-1]:
            node = node[name]
        node[[target, *rest][-1]] = value
    return made.to_dict()


def report(workdir: pathlib.Path):
    found = json.loads((workdir / "report" / "report.json").read_text())
    return {p["protocol"]: {m["model"]: m for m in p["models"]} for p in found["protocols"]}, found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tracing")
    made = config(("dkt", "question_mean", "sakt"), train_fractions=(1.0, 0.5))
    made["models"]["multi_step"] = base.entry(
        "dkt", {"supervision": "random_prefix", "selection": "prefix 0.5, threshold"},
        embedding_dim=8, hidden_dim=8,
    )  # fmt: skip
    assert run("train", made, workdir, []) == 0
    return made, workdir


def test_the_report_has_models_floors_ceiling_and_sparsity(trained):
    _, workdir = trained
    protocols, found = report(workdir)
    assert set(protocols) == {"single-step", "open loop, threshold", "prefix 0.5, threshold"}
    for models in protocols.values():
        assert {"dkt", "sakt", "multi_step", "question_mean", "question mean"} <= set(models)
        assert models["question mean"]["floor"] and not models["dkt"]["floor"]
        # The closed form and the floor are one and the same rule, smoothed alike or nearly so.
        a, b = (models[n]["metrics"]["AUC"]["mean"] for n in ("question_mean", "question mean"))
        assert abs(a - b) < 0.02
    ceiling = protocols["single-step"]["exact predictor"]["metrics"]["log-loss"]["mean"]
    others = [m["metrics"]["log-loss"]["mean"] for m in protocols["single-step"].values()]
    assert ceiling == min(others)
    assert [p["students"] for p in found["sparsity"]] == sorted(
        p["students"] for p in found["sparsity"]
    )
    assert len(found["sparsity"]) == 2


def test_evaluation_alone_gives_the_same_report(trained):
    made, workdir = trained
    before = (workdir / "report" / "report.json").read_text()
    assert run("eval", made, workdir, []) == 0
    assert (workdir / "report" / "report.json").read_text() == before


def test_predictions_of_the_log_and_of_a_file(trained, tmp_path, capsys):
    made, workdir = trained
    made = json.loads(json.dumps(made))
    made["predict"] |= {"model": "dkt", "samples": 3, "ahead": 5, "output": str(tmp_path / "a.csv")}
    assert run("predict", made, workdir, []) == 0
    frame = polars.read_csv(tmp_path / "a.csv")
    assert frame.columns == [
        "student", "place", "question", "probability", "answer_1", "answer_2", "answer_3",
    ]  # fmt: skip
    assert frame["probability"].is_between(0, 1).all() and frame["place"].max() <= 5

    log = tracing_data.load(made["data"]).log
    known, question = int(log.student_ids[0]), int(log.question_ids[3])
    lines = [f"{known},{question}", f"nobody,{question}", "nobody,77777"]
    (tmp_path / "asked.csv").write_text("student,question\n" + "\n".join(lines) + "\n")
    made["predict"] |= {"questions": str(tmp_path / "asked.csv"), "output": str(tmp_path / "b.csv")}
    with pytest.raises(DataError, match="77777"):
        run("predict", made, workdir, [])
    made["predict"]["unknown"] = "skip"
    assert run("predict", made, workdir, []) == 0
    assert "1 of 3 rows" in capsys.readouterr().out
    asked = polars.read_csv(tmp_path / "b.csv", infer_schema=False)
    assert asked["student"].to_list() == [str(known), "nobody"]
    assert asked["question"].to_list() == [str(question)] * 2
    # The known student's answers move the prediction.
    assert len(set(asked["probability"].to_list())) == 2
    (tmp_path / "asked.csv").write_text("student,item\n1,2\n")
    with pytest.raises(DataError, match="no column 'question'"):
        run("predict", made, workdir, [])
    made["predict"] |= {"questions": None, "model": "dkvmn"}
    with pytest.raises(ValueError, match="predict.model='dkvmn'"):
        run("predict", made, workdir, [])


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    short = config(("dkt",), learning__epochs=1.0)
    long = config(("dkt",), learning__epochs=2.0)
    run("train", short, tmp_path / "a", [])
    run("train", long, tmp_path / "a", [])
    run("train", long, tmp_path / "b", [])
    for name in ("single-step", "prefix 0.5, threshold"):
        one, other = (report(tmp_path / part)[0][name]["dkt"]["metrics"] for part in "ab")
        assert one["AUC"]["mean"] == other["AUC"]["mean"]


def test_every_training_of_advkt_runs(tmp_path):
    made = base.debug(
        {k: v for k, v in advkt.ways({"dim": 8}).items() if k in ("b2_random_prefix", "e_advkt")}
    )
    made.data.simulator.num_students = 60
    assert run("train", made.to_dict(), tmp_path, []) == 0
    protocols, _ = report(tmp_path)
    assert {"b2_random_prefix", "e_advkt"} <= set(protocols["open loop, threshold"])


def test_batches_are_as_long_as_their_students_need():
    made = resolve(TracingConfig, config(learning__length_buckets=4))
    data = tracing_data.load(made.data)
    lengths = batch_lengths(data, 4)
    longest = max(int(data.sequences(p).lengths.max()) for p in ("train", "valid", "test"))
    assert lengths == sorted(set(lengths)) and lengths[-1] >= longest > lengths[-1] - 8
    (one, *_) = all_runs(made, resolve_entries(made), data, pathlib.Path("unused"))
    seen = {item.batch.mask.shape[1] for item in one._batches("test")}
    assert seen <= set(lengths) and len(seen) > 1
    students = np.concatenate([item.students for item in one._batches("test")])
    assert sorted(students[students >= 0]) == sorted(data.sequences("test").student)
    # As many steps as batches of an epoch.
    batches = iter(data.training_batches(batch_size=16, buckets=lengths, prefetch=0))
    epoch = sum(int(next(batches).mask.any(-1).sum()) for _ in range(one.train_config.eval_every))
    assert epoch == len(data.sequences("train"))


@pytest.mark.parametrize("module", [tracing, advkt])
def test_every_variant_is_a_valid_configuration(module):
    for variant in module.VARIANTS:
        assert resolve_entries(resolve(TracingConfig, module.get_config(variant)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"models": {}}, "models is empty"),
        ({"models": {"dtk": {}}}, "Did you mean 'dkt'"),
        ({"models": {"dkt": {"hidden": 3}}}, "hidden"),
        ({"models": {"dkt": {"selection": "first step"}}}, "first step"),
        ({"models": {"dkt": {"supervision": "mine"}}}, "supervision='mine'"),
        ({"models": {"advkt": {"supervision": "own"}}}, "adversarial.supervision"),
        ({"train_fractions": (1.0, 0.0)}, "train_fractions"),
        ({"seeds": (0, 0)}, "distinct"),
        ({"predict": {"unknown": "guess"}}, "predict.unknown"),
        ({"evaluation": {"protocols": ("prefix 2, threshold",)}}, "prefix 2, threshold"),
    ],
)
def test_mistakes_are_named(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run("train", config() | changes, tmp_path, [])


def test_modes_that_do_not_exist_say_which_do(tmp_path):
    with pytest.raises(ConfigError, match="use train, eval or predict"):
        run("benchmark", config(), tmp_path, [])
