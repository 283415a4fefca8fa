"""The step divided by hand equals the one on a single device: loss, sums, every gradient."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import pytest

from pangu_jax.models import Decoder
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.sharding import unbox
from tests.pangu_jax.parallel.one_device import (
    both,
    check_equals_one_device,
    relative_errors,
    small_model,
)

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
    check_equals_one_device(
        small_model(num_layers=7 if "deep" in name else 3), Layout(**LAYOUTS[name])
    )


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
    check_equals_one_device(small_model(**changes), layout, z_loss=1e-3)


def test_biases_and_norms_without_sequence_parallelism():
    layout = Layout(pipe=2, tensor=2, microbatches=2, sequence_parallel=False)
    check_equals_one_device(small_model(qkv_bias=True, out_bias=True, qk_norm=True), layout)


@pytest.mark.parametrize(
    "layout",
    [
        Layout(pipe=2, tensor=2, data=2, microbatches=2),
        Layout(context=2, tensor=2, data=2, zero=3, overlap=True),
    ],
    ids=["pipe tensor data", "context overlapped zero 3"],
)
def test_short_types_are_as_near_to_float64_as_one_device(layout):
    with jax.enable_x64(True):
        truth = both(small_model(dtype="float64", qk_norm=True), layout, scale=1)[0][1]
    for dtype, rounding in (("float32", 3e-6), ("bfloat16", 0.005)):
        one, many = both(small_model(dtype=dtype, qk_norm=True), layout, scale=1)
        with jax.enable_x64(True):
            ours, theirs = relative_errors(many[1], truth), relative_errors(one[1], truth)
        for path, error in ours.items():
            limit = 1.5 * theirs[path] + rounding
            assert error < limit, f"{dtype} {path}: {error:.1e}, one {theirs[path]:.1e}"


def test_orders_of_layers_are_inverse():
    layout = Layout(pipe=2, virtual_stages=2, microbatches=2, tensor=4)
    program_layers = dataclasses.replace(small_model(num_layers=5), vocab_size=50)
    from pangu_jax.parallel.decoder import StageLayout

    stages = StageLayout(program_layers, layout)
    params = unbox(
        Decoder(program_layers).init(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))["params"]
    )
    staged = stages.to_stages(params)
    assert staged["embed"]["embedding"].shape[0] == 52
    chex.assert_trees_all_equal(stages.from_stages(staged), params)
