"""Memory of the compiled pipeline: that of 1F1B, whatever the number of micro-batches."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from pangu_jax.models.presets import preset
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.layout import Layout, layout_mesh
from pangu_jax.planning.pipeline import pipeline_schedule

LENGTH, HIDDEN = 512, 64


def temporaries(microbatches):
    """(bytes of temporaries on a device, layout) of loss and gradients over two pipeline ranks."""
    model = preset(
        "debug", num_layers=6, hidden_dim=HIDDEN, mlp_dim=64, num_heads=2, num_kv_heads=1,
        head_dim=16, vocab_size=64, loss_chunk=64, remat="nothing",
    )  # fmt: skip
    layout = Layout(pipe=2, virtual_stages=2, microbatches=microbatches)
    mesh = layout_mesh(layout, jax.devices()[: layout.devices])
    program = DecoderProgram(model, layout, mesh)
    params = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        program.stages.abstract(),
        program.param_shardings(),
    )
    rows = NamedSharding(mesh, PartitionSpec("data", "context"))
    batch = {
        name: jax.ShapeDtypeStruct((layout.batch_rows, LENGTH), jnp.int32, sharding=rows)
        for name in ("tokens", "labels", "segment_ids", "positions")
    }
    compiled = jax.jit(program.loss_and_grad).lower(params, batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes, layout


def test_activations_in_flight_do_not_grow_with_microbatches():
    few, layout = temporaries(4)
    many, wide = temporaries(16)
    chunk_input = LENGTH * HIDDEN * 4
    # All forward before all backward would keep every unit's input: v chunks of 12 more.
    assert wide.virtual_stages * (16 - 4) * chunk_input > 0.25 * few
    slots = [pipeline_schedule(x).num_stash_slots for x in (layout, wide)]
    assert slots[0] == slots[1] == 5
    # What grows are rotary tables and ids of the rows themselves.
    rows = (16 - 4) * LENGTH * (4 * 4 + 2 * 16 * 4)
    assert many - few <= rows + chunk_input
