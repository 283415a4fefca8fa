"""Checkpoints of one layout restore on any other, every array of the state bit for bit."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import Decoder
from pangu_jax.models.presets import preset
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.layout import Layout, layout_mesh
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.division import DividedState
from pangu_jax.training.optimizer import OptimizerConfig, build_optimizer
from pangu_jax.training.state import create_state

MODEL = preset(
    "debug", num_layers=5, vocab_size=51, hidden_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=4,
    head_dim=4,
)  # fmt: skip
LAYOUTS = {
    "one": Layout(),
    "deep": Layout(data=2, pipe=2, tensor=2, virtual_stages=3),
    "zero 3": Layout(data=4, tensor=2, zero=3),
    "long": Layout(context=2, pipe=4, zero=2),
}


@pytest.fixture(scope="module")
def state():
    """Parameters and moments that all differ from one another and from zero."""
    optimizer = build_optimizer(OptimizerConfig(clip_norm=1.0), 1)
    tokens = jnp.zeros((1, 8), jnp.int32)

    def create(key):
        return create_state(lambda key: Decoder(MODEL).init(key, tokens)["params"], optimizer, key)

    made = nn.unbox(create(jax.random.key(0)))
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(
        lambda x: (
            jnp.asarray(rng.normal(size=x.shape), x.dtype)
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        ),
        made,
    )
    return dataclasses.replace(noisy, step=jnp.int32(7))


@pytest.fixture(scope="module")
def divided(state):
    abstract = jax.eval_shape(lambda: state)
    found = {}
    for name, layout in LAYOUTS.items():
        mesh = layout_mesh(layout, jax.devices()[: layout.devices])
        found[name] = DividedState(DecoderProgram(MODEL, layout, mesh), abstract)
    return found


@pytest.mark.parametrize(("one", "other"), itertools.permutations(LAYOUTS, 2))
def test_every_array_bit_for_bit(tmp_path, state, divided, one, other):
    first, second = divided[one], divided[other]
    arranged = first.arrange_placed(state)
    store = Checkpoints(tmp_path / "latest")
    store.save(first.restore_order(arranged), extra={})
    store.wait()
    restored = store.restore(second.abstract_stored).state
    store.close()
    back = second.restore_order(second.arrange_placed(restored))
    wanted = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    got = jax.tree.leaves(jax.device_get(back))
    assert len(wanted) == len(got) > 3 * 10
    for (path, a), b in zip(wanted, got, strict=True):
        np.testing.assert_array_equal(b, a, err_msg=jax.tree_util.keystr(path))
