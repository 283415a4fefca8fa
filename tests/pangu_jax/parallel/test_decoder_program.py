"""The step divided by hand equals the one on a single device: loss, sums, every gradient."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import Decoder
from pangu_jax.models.presets import preset
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.document_zigzag import zigzag
from pangu_jax.parallel.layout import Layout, layout_mesh
from pangu_jax.parallel.sharding import unbox
from pangu_jax.pretraining.objective import make_loss
from pangu_jax.training.step import loss_and_grad

LENGTH = 32


def _model(**changes):
    sizes = dict(
        vocab_size=50, num_layers=3, hidden_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=4,
        head_dim=4, loss_chunk=8, norm_scheme="dssn",
    )  # fmt: skip
    return preset("debug", **sizes | changes)


def _batch(rows, multiple, seed=0, vocab=50):
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


def _check(model, layout, *, z_loss=0.0, tolerance=1e-5, seed=0):
    batch = _batch(layout.batch_rows, 2 * layout.context, seed)
    params = unbox(jax.jit(Decoder(model).init)(jax.random.key(seed), batch["tokens"])["params"])
    # Larger weights than at the start, so that every gradient matters.
    params = jax.tree.map(lambda x: x * 3, params)
    key = jax.random.key(1)
    reference = jax.jit(lambda p, b: loss_and_grad(make_loss(model, z_loss), p, b, key))
    expected = reference(params, batch)
    mesh = layout_mesh(layout, jax.devices()[: layout.devices])
    program = DecoderProgram(model, layout, mesh, z_loss=z_loss)
    stages = program.stages
    staged = jax.device_put(
        jax.jit(stages.to_stages)(params), stages.shardings(mesh, stages.specs())
    )
    if layout.context > 1:
        batch = zigzag(batch, layout.context)
    sums, grads = jax.jit(program.loss_and_grad)(staged, batch)
    for g, spec in zip(jax.tree.leaves(grads), jax.tree.leaves(
            stages.shardings(mesh, stages.moment_specs())), strict=True):  # fmt: skip
        assert g.sharding.is_equivalent_to(spec, g.ndim)
    grads = jax.jit(stages.from_stages)(jax.device_get(grads))
    chex.assert_trees_all_close(sums, expected[0], rtol=tolerance)
    chex.assert_trees_all_equal_shapes_and_dtypes(grads, expected[1])
    for (path, got), wanted in zip(
        jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected[1]), strict=True
    ):
        error = jnp.linalg.norm((got - wanted).ravel()) / (jnp.linalg.norm(wanted.ravel()) + 1e-30)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"


LAYOUTS = {
    "one device": dict(),
    "micro-batches": dict(microbatches=3, microbatch_rows=2),
    "data": dict(data=2, zero=0),
    "zero 1": dict(data=4, zero=1),
    "zero 2": dict(data=2, zero=2, microbatches=2),
    "zero 3": dict(data=2, zero=3, microbatches=2),
    "tensor": dict(tensor=2, sequence_parallel=False),
    "sequence": dict(tensor=4),
    "sequence, overlapped": dict(tensor=2, overlap=True),
    "context ring": dict(context=2),
    "context gather": dict(context=4, context_strategy="gather"),
    "pipeline v=1": dict(pipe=2, microbatches=4),
    "pipeline v=2": dict(pipe=2, virtual_stages=2, microbatches=4),
    "pipeline v=3, deep": dict(pipe=2, virtual_stages=3, microbatches=3),
    "four ranks": dict(pipe=4, microbatches=6),
    "data pipe tensor": dict(data=2, pipe=2, tensor=2, microbatches=2, virtual_stages=2),
    "data context tensor": dict(data=2, context=2, tensor=2, zero=2),
    "pipe context tensor": dict(pipe=2, context=2, tensor=2, microbatches=3, overlap=True),
    "zero 3 pipe tensor": dict(data=2, pipe=2, tensor=2, microbatches=2, zero=3),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_equals_one_device(name):
    _check(_model(num_layers=7 if "deep" in name else 3), Layout(**LAYOUTS[name]))


@pytest.mark.parametrize(
    "changes",
    [
        dict(tie_embeddings=True, num_layers=4),
        dict(norm_scheme="pre_ln", qkv_bias=True, out_bias=True),
        dict(norm_scheme="sandwich", qk_norm=True, num_kv_heads=2, remat="nothing"),
        dict(remat="products", vocab_size=51),
    ],
    ids=["tied", "biases", "qk norm, GQA, remat", "padded vocabulary"],
)
def test_every_kind_of_model(changes):
    layout = Layout(pipe=2, tensor=2, data=2, microbatches=2)
    _check(_model(**changes), layout, z_loss=1e-3)


def test_biases_and_norms_without_sequence_parallelism():
    layout = Layout(pipe=2, tensor=2, microbatches=2, sequence_parallel=False)
    _check(_model(qkv_bias=True, out_bias=True, qk_norm=True), layout)


def test_bfloat16_is_close():
    model = _model(dtype="bfloat16")
    _check(model, Layout(pipe=2, tensor=2, data=2, microbatches=2), tolerance=0.05)


def test_orders_of_layers_are_inverse():
    layout = Layout(pipe=2, virtual_stages=2, microbatches=2, tensor=4)
    program_layers = dataclasses.replace(_model(num_layers=5), vocab_size=50)
    from pangu_jax.parallel.decoder import StageLayout

    stages = StageLayout(program_layers, layout)
    params = unbox(
        Decoder(program_layers).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    )
    staged = stages.to_stages(params)
    assert staged["embed"]["embedding"].shape[0] == 52
    chex.assert_trees_all_equal(stages.from_stages(staged), params)
