"""Data parallelism and row-sharded item tables equal one device, without gathering the table."""

from __future__ import annotations

import pathlib
import re
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest

from pangu_jax.parallel.mesh import MeshConfig, make_mesh
from pangu_jax.parallel.sharding import global_batch, shardings_for
from recsys_jax.sequential.fuxi_alpha import FuXiAlphaConfig
from recsys_jax.sequential.losses import LossConfig
from recsys_jax.sequential.model import build_model

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import sequence_batches as helpers  # noqa: E402

ITEMS = 1000
KINDS = {
    "per_position": LossConfig(num_negatives=16),
    "per_row": LossConfig(num_negatives=16, negatives="per_row"),
    "shared": LossConfig(num_negatives=16, negatives="shared"),
    "full": LossConfig(kind="full_softmax"),
}


def problem(loss):
    config = FuXiAlphaConfig(
        max_len=12, embedding_dim=16, qk_dim=16, v_dim=16, num_layers=1, implementation="xla"
    )
    model = build_model(
        "fuxi_alpha", config, loss, num_items=ITEMS, num_users=8, row_multiple=8, packed=False
    )
    batch = helpers.padded(helpers.histories([12, 5, 9, 1, 7, 12, 3, 10], ITEMS), 12)
    return model, batch


@pytest.mark.parametrize("data, model_axis", [(4, 2), (1, 8), (8, 1)])
@pytest.mark.parametrize("kind", list(KINDS))
def test_loss_and_gradients_equal_one_device(kind, data, model_axis):
    if (data, model_axis) != (4, 2) and kind in ("shared", "full"):
        pytest.skip("one mesh is enough for this loss; the others differ in sampling alone")
    model, batch = problem(KINDS[kind])
    key = jax.random.key(3)
    boxed = jax.jit(model.init)(jax.random.key(0), batch)
    params = nn.unbox(boxed)

    def value(p, b):
        sums = model.loss(p, b, key)
        return sums.total / sums.weight

    plain = jax.jit(jax.value_and_grad(value))(params, batch)
    mesh = make_mesh(MeshConfig(data=data, model=model_axis))
    placed = jax.device_put(params, shardings_for(boxed, mesh))
    table = placed["input"]["items"]["embedding"]
    assert table.sharding.shard_shape(table.shape)[0] == table.shape[0] // model_axis
    with jax.set_mesh(mesh):
        sharded = jax.jit(jax.value_and_grad(value))(placed, global_batch(batch, mesh))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * (1 + np.abs(a).max()), rtol=1e-4)


@pytest.mark.parametrize("kind", ["per_row", "shared", "full"])
def test_no_collective_moves_the_whole_item_table(kind):
    """In the compiled step no all-gather produces the (rows, D) table."""
    model, batch = problem(KINDS[kind])
    boxed = jax.jit(model.init)(jax.random.key(0), batch)
    mesh = make_mesh(MeshConfig(data=1, model=8))
    placed = jax.device_put(nn.unbox(boxed), shardings_for(boxed, mesh))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(lambda p, b: model.loss(p, b, jax.random.key(3)).total))
        text = step.lower(placed, global_batch(batch, mesh)).compile().as_text()
    rows = placed["input"]["items"]["embedding"].shape[0]
    gathers = re.findall(r"= (\S+) all-gather", text)
    assert not [g for g in gathers if f"[{rows},16]" in g], gathers
