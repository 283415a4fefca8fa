"""Compiled numbers beside planned ones, and tables that fit terminals."""

import io
import json

import pytest
from rich.console import Console

from pangu_jax.models.config import RopeScaling
from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.planning import compiled, compiled_plan
from pangu_jax.planning.execution import PlanError
from pangu_jax.planning.tables import Table

RECORD = {
    "devices": 8, "device_kind": "NVIDIA H100 80GB HBM3", "versions": {"jax": "0"},
    "seconds": {"compile": 12.3}, "peak_rss_bytes": 1e9,
    "planned_memory": {"parameters": 2e9, "optimizer": 1e9, "buffers": 1e9},
    "memory": {"arguments": 3e9, "temporaries": 2e9, "total": 5e9},
    "differences": [
        {"kind": "all-gather", "group": 8, "planned_bytes": 3e9, "compiled_bytes": 4e9,
         "conditional_bytes": 2e9, "explained": True},
        {"kind": "all-reduce", "group": 8, "planned_bytes": 0, "compiled_bytes": 8,
         "conditional_bytes": 0, "explained": False},
    ],
}  # fmt: skip


def test_the_compilers_process_gets_exactly_the_planned_step(tmp_path, monkeypatch):
    model = preset("debug", num_layers=3, remat="dots", tie_embeddings=True)
    layout = Layout(data=2, tensor=4, overlap=True, zero=2, context_strategy="gather")
    arguments = compiled_plan.compile_arguments("h100_8", model, layout, 64, tmp_path / "x.json")
    seen = {}

    def compile_ahead(chosen, config, layout, seq_len):
        seen.update(target=chosen.name, config=config, layout=layout, seq_len=seq_len)
        raise ValueError("seen")

    monkeypatch.setattr(compiled, "compile_ahead", compile_ahead)
    monkeypatch.setattr(compiled.signal, "alarm", lambda seconds: None)
    assert compiled.main(arguments) == 1
    assert seen == {"target": "h100_8", "config": model, "layout": layout, "seq_len": 64}


def test_a_process_that_fails_says_why(tmp_path):
    layout = Layout(data=3)
    with pytest.raises(PlanError, match="h100_8.*failed"):
        compiled_plan.compile_step("h100_8", preset("debug"), layout, 64, tmp_path / "x.json")
    scaled = preset("debug", rope_scaling=RopeScaling())
    with pytest.raises(PlanError, match="rope_scaling"):
        compiled_plan.compile_arguments("h100_8", scaled, layout, 64, tmp_path)
    with pytest.raises(PlanError, match="ascend_8192.*h100_8192"):
        compiled_plan.compile_arguments("ascend_8192", preset("debug"), layout, 64, tmp_path)


def test_how_to_compile_names_what_is_missing(monkeypatch):
    monkeypatch.setattr(compiled_plan, "available", lambda platform: False)
    assert "pip install '.[aot-tpu]'" in compiled_plan.how_to_compile("tpu_v5p_8192")
    assert "no compiler for 'ascend_8192'" in compiled_plan.how_to_compile("ascend_8192")


def test_tables_of_a_compiled_record():
    memory, collectives = compiled_plan.compiled_tables("general_3", json.loads(json.dumps(RECORD)))
    assert memory.rows[-1] == ("sum", "4.00 GB", "5.00 GB", "+25.0%")
    assert "not executed" in memory.note
    (row,) = collectives.rows  # what moves a few bytes is left out
    assert row == ("all-gather", "8", "3.00 GB", "2.00 GB", "4.00 GB", "yes")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_words_are_not_cut_and_optional_columns_go_first(width):
    table = Table(
        "Title", ("for", "kind", "extra"),
        (("gradients of everything there is", "collective-permute", "twenty letters in it"),),
        optional=("extra",),
    )  # fmt: skip
    out = io.StringIO()
    table.show(Console(file=out, width=width))
    text = out.getvalue()
    assert "collective-permute" in text and "everything" in text
    assert ("twenty" in text) == (width >= 80)
    assert max(map(len, text.splitlines())) <= width
