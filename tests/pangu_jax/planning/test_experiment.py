"""Plans from configuration to report."""

import json
import pathlib

import pytest

from pangu_jax.config import catalogue
from pangu_jax.config.resolve import ConfigError, resolve
from pangu_jax.parallel.layout import LayoutError
from pangu_jax.planning.config import PlanConfig
from pangu_jax.planning.execution import Efficiencies, Execution, PlanError
from pangu_jax.planning.experiment import run

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = "configs/pangu/ultra_135b.py"


def _config(variant):
    return catalogue.get(ROOT, f"{CONFIG}:{variant}")


def test_debug_plan_writes_its_report(tmp_path, capsys):
    config = _config("debug")
    config.plan.sweep = True
    config.search.remat = ("none",)
    assert run("plan", config.to_dict(), tmp_path, []) == 0
    shown = capsys.readouterr().out
    assert "Predicted steps on cpu_8" in shown and "Fastest layouts" in shown
    record = json.loads((tmp_path / "plan" / "plan.json").read_text())
    phase = record["phases"]["own"]
    assert phase["seconds"] == pytest.approx(sum(phase["parts"].values()))
    assert phase["layout"]["pipe"] == 2 and phase["fits"]
    by_remat = record["memory_by_remat"]
    assert by_remat["none"]["own"]["activations"] > by_remat["nothing"]["own"]["activations"] > 0
    assert record["topology"]["name"] == "cpu_8" and record["sweep"]
    report = (tmp_path / "plan" / "report.md").read_text()
    assert "Modelled, not measured" in report and "timeline_own.png" in report
    assert (tmp_path / "plan" / "timeline_own.png").read_bytes().startswith(b"\x89PNG")


def test_paper_plan_holds_four_phases_validation_and_ablation(tmp_path, capsys):
    assert run("plan", _config("ascend_8192").to_dict(), tmp_path, []) == 0
    record = json.loads((tmp_path / "plan" / "plan.json").read_text())
    assert list(record["phases"]) == ["general_3", "reasoning", "long_32k", "long_128k"]
    rows = {name: phase["batch_rows"] for name, phase in record["phases"].items()}
    assert rows == {"general_3": 2048, "reasoning": 1536, "long_32k": 384, "long_128k": 96}
    assert all(phase["fits"] for phase in record["phases"].values())
    assert record["phases"]["long_128k"]["layout"]["context"] > 1
    assert len(record["validation"]["runs"]) >= 5 and len(record["ablation"]) == 6
    report = (tmp_path / "plan" / "report.md").read_text()
    assert "Assumed of the topology" in report and "Mean absolute error" in report
    assert len(list((tmp_path / "plan").glob("timeline_*.png"))) == 4


@pytest.mark.parametrize("variant", ["tpu_v5p_8192", "h100_8192"])
def test_other_clusters_have_layouts(variant):
    config = resolve(PlanConfig, _config(variant))
    assert [phase.layout.devices for phase in config.build()] == [8192] * 4


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ValueError, match="--mode=train"):
        run("train", _config("debug").to_dict(), tmp_path, [])
    config = _config("ascend_8192").to_dict()
    with pytest.raises(ConfigError, match="belong together"):
        resolve(PlanConfig, config | {"seq_len": 4096})
    with pytest.raises(ConfigError, match="general_9"):
        resolve(PlanConfig, config | {"phases": ("general_9",)})
    config["layout"] = config["layout"] | {"data": 4}
    with pytest.raises(LayoutError, match="layout.data=4"):
        resolve(PlanConfig, config).build()
    with pytest.raises(ConfigError, match="matmul"):
        resolve(PlanConfig, config | {"efficiencies": {"matmul": 1.5}})
    with pytest.raises(PlanError, match="float33"):
        Execution(grad_dtype="float33")
    with pytest.raises(PlanError, match="softmax"):
        Execution(recompute=("softmax",))
    with pytest.raises(PlanError, match="stash"):
        Execution(stash="outputs")
    with pytest.raises(PlanError, match="context_imbalance"):
        Execution(context_imbalance=0.5)
    assert Efficiencies(overlap_tensor=0.0).overlap_tensor == 0.0
