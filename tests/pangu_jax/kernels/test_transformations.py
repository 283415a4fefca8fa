"""Kernels under JAX's transformations: vmap, rematerialisation, rows divided over devices.

Letters: B rows, T positions, N and K heads, H head width, D width.
"""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pangu_jax.kernels.rms_norm import fused_sandwich_step, rms_norm
from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.kernels.segment_attention.xla import segment_attention_xla
from pangu_jax.models.remat import checkpointed

B, T, N, K, H, D = 8, 40, 4, 2, 8, 16


def attention(implementation):
    def call(rows, q, k, v):
        return segment_attention(
            q, k, v, q_segment_ids=rows, kv_segment_ids=rows, scale=H**-0.5,
            implementation=implementation,
        )  # fmt: skip

    return call


def looped_attention(implementation):
    """As longer rows take it: the loop over pairs of blocks."""
    assert implementation == "xla"

    def call(rows, q, k, v):
        return segment_attention_xla(
            q, k, v, q_segment_ids=rows, kv_segment_ids=rows, scale=H**-0.5
        )  # fmt: skip

    return call


def norm(implementation):
    def call(rows, x, scale):
        return rms_norm(x, scale, eps=1e-6, implementation=implementation)

    return call


def sandwich(implementation):
    def call(rows, x, branch, post, scale):
        return fused_sandwich_step(x, branch, post, scale, eps=1e-6, implementation=implementation)

    return call


# Operation -> shapes of its differentiable arguments; those with B rows are divided or mapped.
OPERATIONS = {
    "segment_attention": (attention, [(B, T, N, H), (B, T, K, H), (B, T, K, H)]),
    "rms_norm": (norm, [(B, T, D), (D,)]),
    "fused_sandwich_step": (sandwich, [(B, T, D), (B, T, D), (D,), (D,)]),
}


def problem(name, seed=0):
    """Segment ids [B, T] of two documents and padding, and the arguments, float32."""
    rng = np.random.default_rng(seed)
    ids = np.ones((B, T), np.int32)
    for row in range(B):
        ids[row, 5 + 3 * row :] = 2
        ids[row, T - row :] = 0
    shapes = OPERATIONS[name][1]
    return jnp.asarray(ids), [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


def value_and_gradients(call, rows, arguments):
    def total(*arguments):
        out = call(rows, *arguments)
        leaves = jax.tree.leaves(out)
        return sum(jnp.sum(jnp.sin(x)) for x in leaves), out

    run = jax.value_and_grad(total, argnums=tuple(range(len(arguments))), has_aux=True)
    (_, out), gradients = run(*arguments)
    return out, gradients


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


@pytest.mark.parametrize("implementation", ["xla", "interpret"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_vmap_is_a_loop(name, implementation):
    """Over a new leading axis, forward and gradients; gains are shared by what is mapped."""
    call = OPERATIONS[name][0](implementation)
    problems = [problem(name, seed) for seed in range(2)]
    rows = problems[0][0]
    shared = [x.ndim == 1 for x in problems[0][1]]
    arguments = [
        problems[0][1][i] if one else jnp.stack([p[1][i] for p in problems])
        for i, one in enumerate(shared)
    ]
    axes = tuple(None if one else 0 for one in shared)
    mapped = jax.vmap(
        lambda *arguments: value_and_gradients(call, rows, arguments), in_axes=axes
    )(*arguments)  # fmt: skip
    for index in range(2):
        own = [x if one else x[index] for x, one in zip(arguments, shared, strict=True)]
        want = value_and_gradients(call, rows, own)
        assert_close(jax.tree.map(lambda x, i=index: x[i], mapped), want)


@pytest.mark.parametrize("name", [*OPERATIONS, "looped_attention"])
def test_rows_divided_over_devices_change_nothing(name):
    """The automatic path; gains on every device, their gradients summed over all."""
    name, build = (
        ("segment_attention", looped_attention)
        if name == "looped_attention"
        else (name, OPERATIONS[name][0])
    )
    call = build("xla")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, arguments = problem(name)
    want = value_and_gradients(call, rows, arguments)
    placed = [
        jax.device_put(x, NamedSharding(mesh, P("data") if x.shape[:1] == (B,) else P()))
        for x in (rows, *arguments)
    ]
    run = jax.jit(lambda rows, *arguments: value_and_gradients(call, rows, arguments))
    got = run(placed[0], *placed[1:])
    assert got[0] is not None and got[1][0].sharding.spec[0] == "data"
    assert_close(got, want)


def count(jaxpr, counts):
    """Primitives of a jaxpr and of all inside it."""
    for equation in jaxpr.eqns:
        counts[equation.primitive.name] += 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    count(inner, counts)
    return counts


def products(call, policy):
    rows, arguments = problem("segment_attention")
    run = checkpointed(call, policy)

    def gradients(*arguments):
        return jax.grad(lambda *a: jnp.sum(jnp.sin(run(rows, *a))), argnums=(0, 1, 2))(*arguments)

    jaxpr = jax.make_jaxpr(gradients)(*arguments).jaxpr
    return count(jaxpr, collections.Counter())["dot_general"]


@pytest.mark.parametrize("build", [attention, looped_attention])
def test_remat_runs_the_forward_of_attention_once(build):
    """Under 'products' the backward pass finds attention's result and log-sums; under 'nothing'
    it needs the forward a second time, which shows that the count would see it."""
    call = build("xla")
    plain = products(call, "none")
    assert products(call, "products") == plain
    rows, arguments = problem("segment_attention")
    forward = count(jax.make_jaxpr(call)(rows, *arguments).jaxpr, collections.Counter())
    forward = forward["dot_general"]
    assert forward >= 2  # of a block: with the keys, with the values
    assert products(call, "nothing") == plain + forward


@pytest.mark.parametrize("policy", ["nothing", "dots", "products"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_remat_changes_no_gradient(name, policy):
    call = OPERATIONS[name][0]("xla")
    rows, arguments = problem(name)
    want = value_and_gradients(call, rows, arguments)
    assert_close(value_and_gradients(checkpointed(call, policy), rows, arguments), want)
