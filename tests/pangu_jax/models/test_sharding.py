"""Loss and gradients on 8 devices equal one device: data, tensor, fully sharded, sequence."""

from __future__ import annotations

import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import Decoder, cross_entropy, preset
from pangu_jax.parallel.mesh import MeshConfig, MeshError, make_mesh
from pangu_jax.parallel.sharding import DEFAULT_RULES, global_batch, shardings_for

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_decoder as helpers  # noqa: E402

CONFIG = preset(
    "debug", vocab_size=64, hidden_dim=16, mlp_dim=32, num_heads=4, num_kv_heads=2, head_dim=4,
    qkv_bias=True, out_bias=True, loss_chunk=4, remat="nothing",
)  # fmt: skip
# The first rule for a name wins.
FULLY_SHARDED = (("embed", "data"), *DEFAULT_RULES)
SEQUENCE_PARALLEL = (("residual_sequence", "model"), *DEFAULT_RULES)


def batch():
    tokens, ids, positions = helpers.packed(lengths=((5, 1, 4), (12,), (), (3, 9)) * 2, width=12)
    labels = np.where((ids > 0) & (np.roll(ids, -1, 1) == ids), np.roll(tokens, -1, 1), -1)
    return {"tokens": tokens, "ids": ids, "positions": positions, "labels": labels}


def loss(params, batch):
    out = Decoder(CONFIG).apply(
        {"params": params}, batch["tokens"], batch["ids"], batch["positions"], method="run"
    )
    return cross_entropy(out.hidden, out.head, batch["labels"], chunk=CONFIG.loss_chunk).total


@functools.cache
def one_device():
    init = jax.jit(Decoder(CONFIG).init)
    boxed = init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    params = nn.unbox(boxed)
    return boxed, params, jax.jit(jax.value_and_grad(loss))(params, batch())


MESHES = {
    "data": (8, 1, DEFAULT_RULES),
    "data_tensor": (4, 2, DEFAULT_RULES),
    "fully_sharded": (4, 2, FULLY_SHARDED),
    "sequence_parallel": (4, 2, SEQUENCE_PARALLEL),
}


@pytest.mark.parametrize("data, model, rules", MESHES.values(), ids=MESHES)
def test_loss_and_gradients_equal_one_device(data, model, rules):
    boxed, params, plain = one_device()
    mesh = make_mesh(MeshConfig(data=data, model=model))
    placed = jax.device_put(params, shardings_for(boxed, mesh, rules))
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        sharded = jax.jit(jax.value_and_grad(loss))(placed, global_batch(batch(), mesh))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(sharded), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * (1 + np.abs(a).max()), rtol=1e-4)


def test_what_each_axis_splits():
    boxed, params, _ = one_device()
    mesh = make_mesh(MeshConfig(data=4, model=2))

    def shard(path, rules):
        tree = jax.tree.map(
            lambda x, s: s.shard_shape(x.shape), params, shardings_for(boxed, mesh, rules)
        )
        for key in path.split("/"):
            tree = tree[key]
        return tree

    assert shard("layers/attn/q/kernel", DEFAULT_RULES) == (2, 16, 2, 4)
    assert shard("layers/attn/k/bias", DEFAULT_RULES) == (2, 1, 4)
    assert shard("layers/attn/o/kernel", FULLY_SHARDED) == (2, 2, 4, 4)
    assert shard("layers/mlp/down/kernel", FULLY_SHARDED) == (2, 16, 4)
    assert shard("head/kernel", FULLY_SHARDED) == (4, 32)
    assert shard("embed/embedding", DEFAULT_RULES) == (32, 16)
    assert shard("layers/post_mlp_norm/scale", FULLY_SHARDED) == (2, 16)


def test_too_few_key_value_heads_are_named():
    boxed, _, _ = one_device()
    with pytest.raises(MeshError, match=r"\['k'\].*kv_heads"):
        shardings_for(boxed, make_mesh(MeshConfig(data=2, model=4)))
