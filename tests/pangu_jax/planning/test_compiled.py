"""The whole step for machines that are not here, and what compilers make of small ones."""

import collections
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pangu_jax.models.presets import preset
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.layout import Layout, layout_mesh
from pangu_jax.planning.compiled import (
    collective_records,
    compile_ahead,
    lower_abstract,
    memory_record,
    part_of,
    planned_phase,
)
from pangu_jax.planning.hlo import hlo_collectives
from pangu_jax.planning.pipeline import pipeline_schedule
from pangu_jax.planning.targets import TARGETS, TargetError, available, target
from pangu_jax.planning.train_program import train_program

LENGTH, VOCABULARY, HIDDEN = 64, 517, 48  # of all sizes below, only these multiply to their own


def _model(**changes):
    sizes = dict(
        vocab_size=VOCABULARY, num_layers=6, hidden_dim=HIDDEN, mlp_dim=80, num_heads=8,
        num_kv_heads=4, head_dim=12, loss_chunk=16,
    )  # fmt: skip
    return preset("debug", **sizes | changes)


@pytest.mark.parametrize("name", ["h100_8192", "tpu_v5p_8192"])
def test_the_135b_step_lowers_for_8192_devices(name):
    where = target(name)
    model = preset("ultra_135b", remat="none")
    layout, seq_len = planned_phase("general_3", model, where)
    assert (layout.data, layout.pipe, layout.tensor, layout.virtual_stages) == (128, 8, 8, 6)
    assert layout.microbatches * layout.data == 2048 and seq_len == 4096
    lowered = lower_abstract(model, layout, seq_len, like=where)
    assert lowered.devices == 8192 and "mhlo.num_partitions = 8192" in lowered.text
    # Layers: two gathers and two scatters forward, the same run again, and backward four gathers
    # (two of cotangents, two of inputs for the kernels' gradients) and two scatters. One gather
    # and one scatter for the head, one gather for the gradient of the embedding, whose own
    # scatter stands in the forward part and in the one that is run again (and beside its gradient,
    # where it is unused and compilers drop it). 14 kinds of parameters have gradients to scatter
    # over data. Activations hop on, gradients back.
    assert lowered.collectives["all_gather"] == 2 + 2 + 4 + 1 + 1
    of_embedding = lowered.collectives["reduce_scatter"] - (2 + 2 + 2 + 1 + 14)
    assert of_embedding in (2, 3)
    assert lowered.collectives["collective_permute"] == 2


@pytest.fixture(scope="module")
def pipelined():
    """(layout, HLO text) of loss and gradients over pipe 2 x tensor 4, everything recomputed."""
    layout = Layout(pipe=2, tensor=4, virtual_stages=2, microbatches=2)
    return layout, _loss_and_grad(_model(remat="nothing"), layout)


def _loss_and_grad(model, layout):
    """HLO text of loss and gradients."""
    mesh = layout_mesh(layout, jax.devices()[: layout.devices])
    program = DecoderProgram(model, layout, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.stages.abstract(),
        program.param_shardings(),
    )
    rows = NamedSharding(mesh, PartitionSpec("data", "context"))
    shape = (layout.batch_rows, LENGTH)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows)
        for name in ("tokens", "labels", "segment_ids", "positions")
    }
    return jax.jit(program.loss_and_grad).lower(params, batch).compile().as_text()


@pytest.fixture(scope="module")
def divided():
    """(layout, compiled step) over data 2 x tensor 4, optimizer and all."""
    layout = Layout(data=2, tensor=4, microbatches=2)
    program = train_program(_model(num_layers=2), layout, layout_mesh(layout), LENGTH)
    return layout, program.trace().lower().compile()


def _counts(text):
    """(part, kind, group) -> executions, each branch taken."""
    counts = collections.Counter()
    for record in collective_records(text, hlo_collectives(text)):
        counts[record["part"], record["kind"], record["group"]] += record["executions"]
    return counts


def test_collectives_of_a_layer(pipelined):
    layout, text = pipelined
    counts = _counts(text)
    in_slots = pipeline_schedule(layout).ticks * layout.slots_per_stage(6)
    of_layers = {
        key: count / in_slots
        for key, count in counts.items()
        if key[0] in ("forward", "rerun", "recompute", "backward")
    }
    # Backward, the input is gathered a second time for the kernels' gradients; where that stands
    # beside its recomputation, the compiler merges the two.
    assert of_layers == {
        (part, kind, 4): 2.0
        for part in ("forward", "rerun", "recompute", "backward")
        for kind in ("all-gather", "reduce-scatter")
    }
    ticks = pipeline_schedule(layout).ticks
    assert counts["pipeline", "collective-permute", 2] == 2 * ticks
    assert counts["ends", "all-gather", 4] == 2 * ticks  # head, gradient of the embedding
    assert counts["ends", "reduce-scatter", 4] == 3 * ticks  # embedding twice, head
    tensor_or_pipe = {(kind, group) for (part, kind, group) in counts if part != "step"}
    assert tensor_or_pipe == {
        ("all-gather", 4), ("reduce-scatter", 4), ("all-reduce", 4), ("collective-permute", 2),
    }  # fmt: skip


def _gathered_shapes(text):
    """(dimensions, group) of all gathers' results."""
    groups = {op.name: op.group_size for op in hlo_collectives(text).operations}
    found = re.findall(r"%?([\w.\-]+) = ([^=\n]*) all-gather(?:-start)?\(", text)
    return [
        (tuple(int(d) for d in dims.split(",") if d), groups[name])
        for name, shapes in found
        for dims in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]


def test_no_gather_of_the_whole_vocabulary_nor_of_sequences_but_over_tensor(pipelined, divided):
    padded = 520  # what tensor 4 divides
    for text in (pipelined[1], divided[1].as_text()):
        gathered = _gathered_shapes(text)
        whole = [(dims, group) for dims, group in gathered if LENGTH in dims and HIDDEN in dims]
        assert whole and all(group == 4 for _, group in whole)
        assert not [dims for dims, _ in gathered if padded in dims or VOCABULARY in dims]


def test_context_ranks_gather_no_more_than_their_share_of_a_sequence():
    layout = Layout(context=2, tensor=2)
    text = _loss_and_grad(_model(num_layers=2), layout)
    gathered = [dims for dims, _ in _gathered_shapes(text)]
    assert any(LENGTH // 2 in dims and HIDDEN in dims for dims in gathered)
    assert not [dims for dims in gathered if LENGTH in dims or VOCABULARY in dims or 518 in dims]


def test_products_run_as_often_as_designed(pipelined):
    counts = collections.Counter(
        part_of(path)
        for path in re.findall(r' dot\([^\n]*op_name="([^"]*)"', pipelined[1])
        if "product" in path
    )
    # Seven weights a layer: forward, again before the backward pass, and recomputed in it, where
    # each has two gradients.
    assert counts == {"forward": 7, "rerun": 7, "recompute": 7, "backward": 14}


@pytest.mark.parametrize("remat,runs", [("none", 2), ("products", 2), ("nothing", 3)])
def test_attention_runs_as_often_as_designed(remat, runs):
    layout = Layout(pipe=2, tensor=4, virtual_stages=2, microbatches=2)
    traced = train_program(_model(remat=remat), layout, layout_mesh(layout), LENGTH).trace()
    # Two products forward; five backward, one of them q k^T once more.
    assert _attention_products(traced.jaxpr.jaxpr) == 2 * runs + 5


def _attention_products(jaxpr, path=""):
    count = 0
    for equation in jaxpr.eqns:
        here = f"{path}/{equation.source_info.name_stack}"
        if equation.primitive.name == "dot_general" and "segment_attention" in here:
            count += 1
        for sub in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(sub, "jaxpr", sub)
            if hasattr(inner, "eqns"):
                count += _attention_products(inner, here)
    return count


def test_gradients_are_scattered_over_data_and_parameters_gathered_once(divided):
    layout, compiled = divided
    text = compiled.as_text()
    over_data = [op for op in hlo_collectives(text).operations if op.group_size == layout.data]
    program = DecoderProgram(_model(num_layers=2), layout, layout_mesh(layout))
    of_parameters = sum(x.size * 4 for x in jax.tree.leaves(program.stages.abstract()))
    replicated = sum(
        x.size * 4
        for x, spec in zip(
            jax.tree.leaves(program.stages.abstract()),
            jax.tree.leaves(program.stages.specs(), is_leaf=lambda x: isinstance(x, PartitionSpec)),
            strict=True,
        )
        if "tensor" not in spec
    )
    here = (of_parameters - replicated) // layout.tensor + replicated
    sums = collections.Counter()
    for op in over_data:
        sums[op.kind] += op.bytes * op.executions
    assert sums["reduce-scatter"] == here // layout.data
    assert sums["all-gather"] == here
    # What is left for all-reduces are sums of the loss and norms of gradients.
    assert sums["all-reduce"] < 1000


def test_memory_record(divided):
    memory = memory_record(divided[1].memory_analysis())
    assert memory["aliased"] > 0.99 * memory["results"]  # the state takes the place of the old one
    assert memory["total"] == pytest.approx(memory["arguments"] + memory["temporaries"], rel=1e-3)


def test_mistakes_are_explained(monkeypatch):
    with pytest.raises(TargetError, match="h100_8192"):
        target("h100_819")
    with pytest.raises(TargetError, match="general_3"):
        planned_phase("general", _model(), target("h100_8192"))
    with pytest.raises(TargetError, match="--seq-len"):
        planned_phase("general_3", _model(), target("tpu_v5p_8"))
    monkeypatch.setattr("pangu_jax.planning.targets.available", lambda platform: False)
    for name, extra in (("h100_8", "aot-cuda"), ("tpu_v5p_8", "aot-tpu")):
        with pytest.raises(TargetError, match=extra):
            compile_ahead(target(name), _model(), Layout(data=8), LENGTH)


def test_targets_have_the_devices_of_their_figures():
    for where in TARGETS.values():
        if where.figures:
            assert where.name == where.topology and str(where.figures.devices) in where.name


@pytest.mark.tpu_aot
@pytest.mark.parametrize("name", ["h100_8", "tpu_v5p_8"])
def test_a_small_step_compiles_for_absent_devices(name, tmp_path):
    if not available(target(name).platform):
        pytest.skip(f"the compiler for {target(name).platform} is not installed")
    out = tmp_path / "step.json"
    arguments = [
        f"--target={name}", "--config=debug", "--layout", "data=2", "pipe=2", "tensor=2",
        "microbatches=2", "--seq-len=64", f"--out={out}", "--limit=500",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "pangu_jax.planning.compiled", *arguments], check=True)
    record = json.loads(out.read_text())
    assert record["devices"] == 8 and record["memory"]["temporaries"] > 0
    kinds = {(c["part"], c["kind"]) for c in record["collectives"]}
    # The TPU compiler makes all-reduces of the scatters, some without a path.
    scatters = ("reduce-scatter",) if name == "h100_8" else ()
    for part in ("forward", "rerun", "backward"):
        assert {(part, kind) for kind in ("all-gather", *scatters)} <= kinds
    assert scatters or any(kind == "all-reduce" for _, kind in kinds)
    assert ("pipeline", "collective-permute") in kinds


@pytest.mark.tpu_aot
@pytest.mark.slow
@pytest.mark.parametrize("name", ["h100_8192", "tpu_v5p_8192"])
def test_the_135b_step_compiles_for_8192_devices(name, tmp_path):
    if not available(target(name).platform):
        pytest.skip(f"the compiler for {target(name).platform} is not installed")
    out = tmp_path / "step.json"
    arguments = [f"--target={name}", "--model", "remat=none", f"--out={out}", "--limit=1800"]
    subprocess.run([sys.executable, "-m", "pangu_jax.planning.compiled", *arguments], check=True)
    record = json.loads(out.read_text())
    assert record["memory"]["total"] < target(name).figures.memory_bytes
    assert not record["unknown_loops"]
    planned = sum(record["planned_memory"].values())
    other = {
        (d["kind"], d["group"])
        for d in record["differences"]
        if not d["explained"] and max(d["planned_bytes"], d["compiled_bytes"]) > 4e6
    }
    # The TPU compiler makes all-reduces of the reduce-scatters over tensor.
    assert other <= (set() if "h100" in name else {("reduce-scatter", 8)})
    if "tpu" in name and record["memory"]["total"] > 1.25 * planned:
        pytest.xfail(f"the plan misses the TPU compiler's memory: {record['memory']} of {planned}")
    assert record["memory"]["total"] == pytest.approx(planned, rel=0.25)
