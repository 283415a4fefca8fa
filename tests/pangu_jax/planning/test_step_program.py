"""What is planned against the compiled step program: collectives and memory, on 8 fake devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from pangu_jax.models.presets import preset
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.layout import Layout, layout_mesh
from pangu_jax.parallel.topology import topology
from pangu_jax.planning.communication import step_collectives
from pangu_jax.planning.execution import Execution
from pangu_jax.planning.hlo import hlo_collectives
from pangu_jax.planning.memory import memory_plan
from pangu_jax.planning.pipeline import executed_units, pipeline_schedule

LENGTH = 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "overlap"), [("none", False), ("nothing", False), ("nothing", True)]
)
def test_collectives_and_memory_of_the_compiled_step(remat, overlap):
    model = preset(
        "debug", vocab_size=512, num_layers=6, hidden_dim=64, mlp_dim=112, num_heads=8,
        num_kv_heads=4, head_dim=16, loss_chunk=16, remat=remat,
    )  # fmt: skip
    layout = Layout(pipe=2, tensor=4, virtual_stages=2, microbatches=4, overlap=overlap)
    compiled = _compiled(model, layout)
    found = hlo_collectives(compiled.as_text()).operations
    schedule, slots = pipeline_schedule(layout), layout.slots_per_stage(model.num_layers)
    execution, ticks = Execution(), schedule.ticks
    planned = step_collectives(model, layout, topology("cpu_8"), LENGTH, execution)

    # The layers' collectives stand in a loop over slots in a loop over ticks, whose branches are
    # taken in the ticks that hold a part of that kind.
    units = executed_units(layout, execution)
    assert units < ticks
    for kind in ["collective-permute"] if overlap else ["all-gather", "reduce-scatter"]:
        compiled_ones = [op for op in found if op.kind == kind and op.group_size == layout.tensor]
        ours = [c for c in planned if c.kind == kind and c.axis == "tensor"]
        times = sum(op.executions for op in compiled_ones if op.executions == ticks * slots)
        counted = sum(c.count for c in ours if "parallel" in c.purpose)
        # Where rings are run again, the compiler merges those for the weights' gradients with them
        # or not: at most two rings per layer more.
        more = 2 * (layout.tensor - 1) * slots if overlap else 0
        assert counted / units <= times / ticks <= counted / units + more, kind
        sizes = {c.output_bytes / c.count for c in ours}
        assert {op.bytes for op in compiled_ones} == sizes, kind
    sent = [op for op in found if op.kind == "collective-permute" and op.group_size == layout.pipe]
    ours = [c for c in planned if c.axis == "pipe" and c.kind == "collective-permute"]
    assert [op.executions for op in sent] == [ticks, ticks] == [c.count for c in ours]
    assert {op.bytes for op in sent} == {c.bytes for c in ours}

    plan, measured = memory_plan(model, layout, LENGTH, execution), compiled.memory_analysis()
    batch = 4 * layout.batch_rows * LENGTH * 4
    assert measured.argument_size_in_bytes == pytest.approx(plan.parameters + batch, rel=0.02)
    temporaries = plan.total - plan.parameters - plan.optimizer
    assert measured.temp_size_in_bytes == pytest.approx(temporaries, rel=0.35)


def _compiled(model, layout):
    mesh = layout_mesh(layout, jax.devices()[: layout.devices])
    program = DecoderProgram(model, layout, mesh)
    shardings = program.param_shardings()
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.stages.abstract(), shardings,
    )  # fmt: skip
    rows = NamedSharding(mesh, PartitionSpec("data", "context"))
    batch = {
        name: jax.ShapeDtypeStruct((layout.batch_rows, LENGTH), jnp.int32, sharding=rows)
        for name in ("tokens", "labels", "segment_ids", "positions")
    }
    return jax.jit(program.loss_and_grad).lower(params, batch).compile()
