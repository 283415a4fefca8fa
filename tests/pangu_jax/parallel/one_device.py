"""The step divided by hand beside the one on a single device: shared by the tests of both kinds."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models import Decoder
from pangu_jax.models.presets import preset
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.document_zigzag import zigzag
from pangu_jax.parallel.layout import layout_mesh
from pangu_jax.parallel.sharding import unbox
from pangu_jax.pretraining.objective import make_loss
from pangu_jax.training.step import loss_and_grad

LENGTH = 32


def small_model(**changes):
    sizes = dict(
        vocab_size=50, num_layers=3, hidden_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=4,
        head_dim=4, loss_chunk=8, norm_scheme="dssn",
    )  # fmt: skip
    return preset("debug", **sizes | changes)


def packed_batch(rows, multiple, seed=0, vocab=50):
    """Packed rows of random documents, whose lengths are multiples of `multiple`, and padding."""
    rng = np.random.default_rng(seed)
    batch = {
        name: np.zeros((rows, LENGTH), np.int32)
        for name in ("tokens", "labels", "segment_ids", "positions")
    }
    batch["labels"] -= 1
    for row in range(rows):
        start, segment = 0, 0
        while start < LENGTH and segment < 3:
            length = min(LENGTH - start, multiple * int(rng.integers(1, 12 // multiple + 2)))
            segment += 1
            here = slice(start, start + length)
            tokens = rng.integers(0, vocab, length)
            batch["tokens"][row, here] = tokens
            batch["labels"][row, here] = np.append(tokens[1:], -1)
            batch["segment_ids"][row, here] = segment
            batch["positions"][row, here] = np.arange(length)
            start += length
    return batch


def both(model, layout, *, z_loss=0.0, seed=0, scale=3):
    """((sums, gradients) of one device, the same of the layout in the model's own order)."""
    batch = packed_batch(layout.batch_rows, 2 * layout.context, seed, vocab=model.vocab_size)
    params = unbox(jax.jit(Decoder(model).init)(jax.random.key(seed), batch["tokens"])["params"])
    # By default larger weights than at the start, so that every gradient matters.
    params = jax.tree.map(lambda x: x * scale, params)
    key = jax.random.key(1)
    reference = jax.jit(lambda p, b: loss_and_grad(make_loss(model, z_loss), p, b, key))
    # Not side by side with what follows: collectives that wait for the first device block threads
    # of the pool that this program needs to get done there.
    expected = jax.block_until_ready(reference(params, batch))
    mesh = layout_mesh(layout, jax.devices()[: layout.devices])
    program = DecoderProgram(model, layout, mesh, z_loss=z_loss)
    stages = program.stages
    staged = jax.device_put(
        jax.jit(stages.to_stages)(params), stages.shardings(mesh, stages.specs())
    )
    if layout.context > 1:
        batch = zigzag(batch, layout.context)
    sums, grads = jax.jit(program.loss_and_grad)(staged, batch)
    placed = stages.shardings(mesh, stages.moment_specs())
    for g, where in zip(jax.tree.leaves(grads), jax.tree.leaves(placed), strict=True):
        assert g.sharding.is_equivalent_to(where, g.ndim)
    grads = jax.jit(stages.from_stages)(jax.device_get(grads))
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, expected[1])
    return expected, (sums, grads)


def relative_errors(got, wanted):
    """Path of every array -> norm of the difference over that of `wanted`."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(wanted), strict=True)
    return {
        jax.tree_util.keystr(path): float(
            jnp.linalg.norm((a - b).ravel()) / (jnp.linalg.norm(b.ravel()) + 1e-30)
        )
        for (path, a), b in pairs
    }


def check_equals_one_device(model, layout, **options):
    """Asserts that loss, sums and every gradient agree in float64; options: see `both`.

    In float32 either program is off by up to 3e-5 of a gradient, more than they differ.
    """
    with jax.enable_x64(True):
        wide = dataclasses.replace(model, dtype="float64")
        (wanted, expected), (sums, grads) = both(wide, layout, **options)
        assert {x.dtype.name for x in jax.tree.leaves(grads)} == {"float64"}
        chex.assert_trees_all_close(sums, wanted, rtol=1e-12)
        for path, error in relative_errors(grads, expected).items():
            assert error < 1e-11, f"{path}: relative error {error:.1e}"
