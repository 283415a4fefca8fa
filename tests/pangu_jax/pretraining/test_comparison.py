"""Comparisons: nested changes, divergence, the report; no training (test_experiment.py does)."""

import json

import numpy as np
import pytest

from pangu_jax.config.resolve import to_dict
from pangu_jax.pretraining import comparison
from pangu_jax.pretraining.comparison import ComparisonConfig, Outcome, replaced, write_comparison
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.training.errors import NonFiniteError


def test_nested_changes_touch_nothing_else():
    base = PretrainConfig()
    new = replaced(base, {"model": {"norm_scheme": "pre_ln"}, "z_loss": 0.5})
    assert (new.model.norm_scheme, new.z_loss) == ("pre_ln", 0.5)
    assert replaced(new, {"model": {"norm_scheme": "dssn"}, "z_loss": 0.0}) == base
    with pytest.raises(ValueError, match="unknown setting model.norm_sheme. Did you mean model.no"):
        replaced(base, {"model": {"norm_sheme": "dssn"}})


def metrics(folder, losses, held_out):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "metrics.jsonl", "w") as file:
        for step, loss in enumerate(losses, 1):
            values = {"loss": loss, "grad_norm": 1.0 + step, "loss_spikes": step // 2}
            file.write(json.dumps({"step": step, "kind": "train", "values": values}) + "\n")
        record = {"step": len(losses), "kind": "eval", "values": {"loss": held_out}}
        file.write(json.dumps(record) + "\n")


def test_a_diverged_run_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    trained = []

    def train(config, schedule, corpus, folder):
        trained.append((config.model.norm_scheme, config.train.seed))
        if config.model.norm_scheme == "pre_ln":
            metrics(folder, [5.0, 9.0], 7.0)
            raise NonFiniteError("the loss is nan", step=2, batch_file=None)
        metrics(folder, [5.0, 4.0, 3.0], 3.5 + config.train.seed)
        return 0

    monkeypatch.setattr(comparison.experiment, "train", train)
    monkeypatch.setattr(comparison, "open_corpus", lambda config, schedule: None)
    runs = {s: {"model": {"norm_scheme": s}} for s in ("pre_ln", "dssn")}
    config = ComparisonConfig(base=PretrainConfig(), runs=runs, seeds=(0, 1))
    assert comparison.run("train", to_dict(config), tmp_path, []) == 0
    assert trained == [("pre_ln", 0), ("pre_ln", 1), ("dssn", 0), ("dssn", 1)]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| dssn | 4.0000 ±0.7071 | 3.5000, 4.5000 | 2 | 4 | no |" in text
    assert "seed 0 after 2, seed 1 after 2" in text
    assert text.index("| dssn |") < text.index("| pre_ln |")
    comparison.run("train", to_dict(config), tmp_path, [])
    assert trained[4:] == [("dssn", 0), ("dssn", 1)]  # what diverged stays so
    assert "diverged before" in capsys.readouterr().out


def test_a_run_without_held_out_loss_is_last_and_null(tmp_path):
    nothing = np.zeros((2, 0))
    curve = np.array([[1.0, 2.0], [5.0, 4.0]])
    good = Outcome("good", 0, 4.0, 0, 1.0, None, curve, curve, curve)
    lost = Outcome("lost", 0, float("nan"), 1, 9.0, 3, curve, nothing, curve)
    config = ComparisonConfig(base=PretrainConfig(), runs={"good": {}, "lost": {}}, seeds=(0,))
    path = write_comparison(tmp_path, config, [lost, good])
    assert path.read_text().index("| good |") < path.read_text().index("| lost |")
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["run"]: row["held_out_loss"] for row in rows} == {"good": 4.0, "lost": None}
    assert (tmp_path / "train.png").stat().st_size > 2000
