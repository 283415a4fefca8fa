"""SiLU attention under JAX's transformations: vmap, rematerialisation, rows over devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from recsys_jax.kernels.silu_attention import silu_attention

B, N, HEADS, WIDTH = 8, 24, 2, 4
FLOATS = ("q", "k", "v", "position_weights", "time_weights")


def problem(seed=0):
    """Packed rows of two segments and padding: name -> array."""
    rng = np.random.default_rng(seed)
    segments = np.ones((B, N), np.int32)
    for row in range(B):
        segments[row, 4 + 2 * row :] = 2
        segments[row, N - row :] = 0
    times = np.cumsum(rng.integers(0, 9000, (B, N + 1)), 1).astype(np.int32)
    arrays = {name: rng.normal(size=(B, N, HEADS, WIDTH)) for name in ("q", "k", "v")}
    arrays |= {"position_weights": rng.normal(size=N), "time_weights": rng.normal(size=129)}
    arrays = {name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}
    return arrays | {
        "segment_ids": jnp.asarray(segments),
        "timestamps": jnp.asarray(times[:, :-1]),
        "query_times": jnp.asarray(times[:, 1:]),
    }


def outputs_and_gradients(arguments, implementation="xla", wrap=lambda f: f):
    function = wrap(
        functools.partial(silu_attention, scale=1.0 / N, packed=True, implementation=implementation)
    )
    rest = {name: x for name, x in arguments.items() if name not in FLOATS}

    def total(floats):
        out = function(**floats, **rest)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(out)), out

    floats = {name: arguments[name] for name in FLOATS}
    (_, out), gradients = jax.value_and_grad(total, has_aux=True)(floats)
    return out, gradients


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


@pytest.mark.parametrize("implementation", ["xla", "interpret"])
def test_vmap_is_a_loop(implementation):
    problems = [problem(seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *problems)
    call = functools.partial(outputs_and_gradients, implementation=implementation)
    mapped = jax.jit(jax.vmap(call))(stacked)
    call = jax.jit(call)
    for index, one in enumerate(problems):
        assert_close(jax.tree.map(lambda x, i=index: x[i], mapped), call(one))


def test_rows_divided_over_devices_change_nothing():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    arguments = problem()
    want = outputs_and_gradients(arguments)
    placed = {
        name: jax.device_put(x, NamedSharding(mesh, P("data") if x.ndim > 1 else P()))
        for name, x in arguments.items()
    }
    got = jax.jit(outputs_and_gradients)(placed)
    assert got[1]["q"].sharding.spec[0] == "data"
    assert_close(got, want)


def test_remat_changes_nothing():
    arguments = problem()
    policy = jax.checkpoint_policies.nothing_saveable
    wrap = functools.partial(jax.checkpoint, policy=policy)
    assert_close(outputs_and_gradients(arguments, wrap=wrap), outputs_and_gradients(arguments))
