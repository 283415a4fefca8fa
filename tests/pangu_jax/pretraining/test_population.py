"""Runs side by side: equal to single runs, resumed = uninterrupted, one may diverge, mistakes."""

import dataclasses
import json

import chex
import pytest

from pangu_jax.config.resolve import to_dict
from pangu_jax.parallel.layout import Layout
from pangu_jax.pretraining import comparison, population
from pangu_jax.pretraining.comparison import ComparisonConfig
from pangu_jax.pretraining.corpus import PretrainError
from pangu_jax.pretraining.layer_statistics import STATISTICS, read_statistics
from pangu_jax.pretraining.objective import HeldOut
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.optimizer import OptimizerConfig
from tests.pangu_jax.pretraining.tiny_pretraining import on_one_device, tiny_config

RUNS = {
    "fast": {"schedule": {"learning_rate": 1e-2}},
    "slow": {"schedule": {"learning_rate": 1e-3}, "model": {"norm_scheme": "sandwich"}},
}


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with on_one_device():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_config(
        tmp_path_factory.mktemp("texts"), steps=12, batch_rows=4, train={"steps_per_dispatch": 2}
    )


def compare(base, workdir, seeds=(0, 1), **changes):
    config = ComparisonConfig(base=base, runs=RUNS, seeds=seeds, **changes)
    assert comparison.run("train", to_dict(config), workdir, []) == 0
    return {(n, seed): workdir / "runs" / n / f"seed{seed}" for n in RUNS for seed in seeds}


def values(folder, kind):
    records = [r for r in read_metrics(folder / "metrics.jsonl") if r["kind"] == kind]
    return {r["step"]: r["values"] for r in records}


@pytest.fixture(scope="module")
def together(base, tmp_path_factory):
    return compare(base, tmp_path_factory.mktemp("together"), together=True)


def test_members_equal_runs_of_their_own(base, together, tmp_path):
    alone = compare(base, tmp_path, seeds=(1,))
    for key in alone:
        folder = together[key]
        for kind, steps in (("train", [2, 4, 6, 8, 10, 12]), ("eval", [4, 8, 12])):
            got, want = values(folder, kind), values(alone[key], kind)
            assert sorted(got) == sorted(want) == steps
            for step in steps:
                assert got[step].keys() == want[step].keys()
                for name, value in want[step].items():
                    assert got[step][name] == pytest.approx(value, rel=2e-4), (key, step, name)
        got, want = (read_statistics(f / STATISTICS) for f in (folder, alone[key]))
        assert [r["step"] for r in got] == [r["step"] for r in want] == [4, 8, 12]
        chex.assert_trees_all_close(got[-1]["gains"], want[-1]["gains"], rtol=1e-3, atol=1e-4)
    finals = {key: values(folder, "eval")[12]["loss"] for key, folder in together.items()}
    assert len(set(finals.values())) == 4


def test_resumed_equals_uninterrupted(base, together, tmp_path):
    evaluate, calls = HeldOut.evaluate, []

    def killed(self, model, params, step, statistics=None):
        calls.append(step)
        if step == 8:
            raise KeyboardInterrupt
        return evaluate(self, model, params, step, statistics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeldOut, "evaluate", killed)
        with pytest.raises(KeyboardInterrupt):
            compare(base, tmp_path, together=True)
    assert calls == [4] * 4 + [8]
    again = compare(base, tmp_path, together=True)
    for key, folder in together.items():
        for kind in ("train", "eval"):
            assert values(again[key], kind) == values(folder, kind)
    # Once more: it is finished, and nothing is trained.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(population, "make_dispatch", lambda *args, **kwargs: pytest.fail("trains"))
        compare(base, tmp_path, together=True)


def test_one_member_diverges_and_the_others_go_on(base, together, tmp_path):
    # A rate that float32 cannot bear after the first steps.
    runs = RUNS | {"wild": {"schedule": {"learning_rate": 1e36}}}
    train = dataclasses.replace(base.train, optimizer=OptimizerConfig(name="sgd", b1=0.0))
    base = dataclasses.replace(base, train=train)
    config = ComparisonConfig(base=base, runs=runs, seeds=(0,), together=True)
    assert comparison.run("train", to_dict(config), tmp_path, []) == 0
    rows = {r["run"]: r for r in json.loads((tmp_path / "report" / "results.json").read_text())}
    assert rows["wild"]["diverged_after"] is not None
    assert rows["wild"]["held_out_loss"] is None
    for label in RUNS:
        assert rows[label]["diverged_after"] is None
        assert max(values(tmp_path / "runs" / label / "seed0", "train")) == 12
    (store,) = (tmp_path / "populations").iterdir()
    assert Checkpoints(store, writable=False).steps() == [12]


def test_what_cannot_be_trained_together_is_kept_apart_or_refused(base, tmp_path):
    other = dataclasses.replace(base, z_loss=1e-4)
    slow = dataclasses.replace(base, schedule=dataclasses.replace(base.schedule, learning_rate=1))
    small = dataclasses.replace(base, model=dataclasses.replace(base.model, init="traditional"))
    pre_ln = dataclasses.replace(base, model=dataclasses.replace(base.model, norm_scheme="pre_ln"))
    configs = [base, other, slow, other, small, pre_ln]
    assert population.populations(configs) == [[0, 2, 4], [1, 3], [5]]
    phases = dataclasses.replace(base.schedule, kind="pangu_ultra")
    for config, message in (
        (dataclasses.replace(base, schedule=phases), "schedule.kind='pangu_ultra'"),
        (dataclasses.replace(base, layout=Layout(data=2)), "--config.together=False"),
    ):
        member = population.Member(config, tmp_path / "run")
        with pytest.raises(PretrainError, match=message):
            population.train_population([member], None, tmp_path, diverged=None)
