"""The step against float64 NumPy, and its invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.parallel import MeshConfig, global_batch, make_mesh
from pangu_jax.training.optimizer import OptimizerConfig, build_optimizer
from pangu_jax.training.state import LossSums, create_state
from pangu_jax.training.step import gradients_of, loss_and_grad, make_dispatch

RATE, ROWS, DIM = 0.1, 8, 5


def init(key):
    return {"w": jax.random.normal(key, (DIM,))}


def weighted_loss(params, batch, rng):
    error = batch["x"] @ params["w"] - batch["y"]
    return LossSums(
        jnp.sum(batch["m"] * error**2), jnp.sum(batch["m"]), {"bias": jnp.sum(batch["m"] * error)}
    )


def make_batch(seed, rows=ROWS):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, DIM)).astype(np.float32),
        "y": rng.normal(size=rows).astype(np.float32),
        "m": rng.integers(0, 3, rows).astype(np.float32),
    }


def numpy_gradient(w, batch):
    b = {k: v.astype(np.float64) for k, v in batch.items()}
    error = b["x"] @ w - b["y"]
    return 2 * (b["m"] * error) @ b["x"] / b["m"].sum()


def stacked(*batches):
    return jax.tree.map(lambda *x: np.stack(x), *batches)


@functools.cache
def compiled(accumulation=1, guard="stop"):
    optimizer = build_optimizer(OptimizerConfig(name="sgd", learning_rate=RATE, b1=0.0), 100)
    state = create_state(init, optimizer, jax.random.key(0))
    dispatch = jax.jit(
        make_dispatch(gradients_of(weighted_loss, accumulation), optimizer, guard=guard)
    )
    return state, dispatch


def test_steps_follow_float64_numpy():
    state, dispatch = compiled()
    batches = [make_batch(i) for i in range(4)]
    w = np.asarray(state.params["w"], np.float64)
    totals = []
    for batch in batches:
        error = batch["x"].astype(np.float64) @ w - batch["y"]
        totals.append((batch["m"] * error**2).sum())
        w = w - RATE * numpy_gradient(w, batch)
    state, bad, outputs = dispatch(state, jnp.int32(-1), stacked(*batches))
    np.testing.assert_allclose(state.params["w"], w, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.total, totals, rtol=2e-5)
    np.testing.assert_array_equal(outputs.weight, [b["m"].sum() for b in batches])
    assert int(state.step) == 4 and int(bad) == -1


@given(seed=st.integers(0, 1000), accumulation=st.sampled_from([2, 4, 8]))
def test_accumulation_is_exact_with_uneven_weights(seed, accumulation):
    batch, params = make_batch(seed), init(jax.random.key(seed))
    key = jax.random.key(1)
    one = jax.jit(functools.partial(loss_and_grad, weighted_loss))(params, batch, key)
    many = _accumulated(accumulation)(params, batch, key)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@functools.cache
def _accumulated(accumulation):
    return jax.jit(functools.partial(loss_and_grad, weighted_loss, accumulation=accumulation))


def test_batch_without_weight_changes_nothing():
    state, dispatch = compiled()
    batch = make_batch(0) | {"m": np.zeros(ROWS, np.float32)}
    after, bad, _ = dispatch(state, jnp.int32(-1), stacked(batch))
    np.testing.assert_array_equal(after.params["w"], state.params["w"])
    assert int(bad) == -1 and int(after.step) == 1


def test_several_steps_per_dispatch_equal_single_ones():
    state, dispatch = compiled()
    batches = [make_batch(i) for i in range(4)]
    together, _, _ = dispatch(state, jnp.int32(-1), stacked(*batches))
    for batch in batches:
        state, _, _ = dispatch(state, jnp.int32(-1), stacked(batch))
    # Equal up to rounding: XLA may fuse a loop body otherwise than a single step.
    np.testing.assert_allclose(together.params["w"], state.params["w"], rtol=1e-6)
    assert int(together.step) == int(state.step) == 4


@pytest.mark.parametrize("poison", ["x", "y"])
def test_guard_stop_freezes_the_state_before_the_bad_batch(poison):
    start, dispatch = compiled()
    good = [make_batch(i) for i in range(2)]
    bad_batch = make_batch(2)
    bad_batch[poison] = bad_batch[poison].copy()
    bad_batch[poison].flat[0] = np.nan
    bad_batch["m"] = np.ones(ROWS, np.float32)
    before, _, _ = dispatch(start, jnp.int32(-1), stacked(*good))
    state, bad, outputs = dispatch(start, jnp.int32(-1), stacked(*good, bad_batch, make_batch(3)))
    # A dispatch that was already on its way changes nothing either.
    state, bad, later = dispatch(state, bad, stacked(make_batch(4)))
    assert int(bad) == 2 and int(state.step) == 2
    np.testing.assert_allclose(state.params["w"], before.params["w"], rtol=1e-6)
    np.testing.assert_array_equal(outputs.applied, [1, 1, 0, 0])
    np.testing.assert_array_equal(later.applied, [0])


def test_guard_skip_leaves_one_update_out():
    start, dispatch = compiled(guard="skip")
    bad_batch = make_batch(1) | {"m": np.full(ROWS, np.inf, np.float32)}
    skipped, bad, outputs = dispatch(
        start, jnp.int32(-1), stacked(make_batch(0), bad_batch, make_batch(2))
    )
    assert int(skipped.step) == 3 and int(bad) == -1
    np.testing.assert_array_equal(outputs.applied, [1, 0, 1])
    without, _, _ = dispatch(start, jnp.int32(-1), stacked(make_batch(0), make_batch(2)))
    np.testing.assert_allclose(skipped.params["w"], without.params["w"], rtol=1e-6)


def test_random_numbers_depend_on_the_step_only():
    optimizer = optax.sgd(1.0)

    def noise_loss(params, batch, rng):
        return LossSums(params["w"].sum() * jax.random.normal(rng, ()), jnp.float32(1))

    dispatch = jax.jit(make_dispatch(gradients_of(noise_loss), optimizer))
    state = create_state(init, optimizer, jax.random.key(5))
    batch = {"x": np.zeros((4, 1), np.float32)}
    _, _, whole = dispatch(state, jnp.int32(-1), stacked(*[batch] * 4))
    state, _, first = dispatch(state, jnp.int32(-1), stacked(*[batch] * 2))
    _, _, second = dispatch(state, jnp.int32(-1), stacked(*[batch] * 2))
    noise = np.concatenate([first.grad_norm, second.grad_norm])
    np.testing.assert_array_equal(whole.grad_norm, noise)
    assert len(set(noise.tolist())) == 4


@pytest.mark.parametrize("accumulation", [1, 2])
def test_sharded_step_equals_unsharded(accumulation):
    state, dispatch = compiled(accumulation)
    batch = stacked(make_batch(0), make_batch(1))
    plain, _, outputs = dispatch(state, jnp.int32(-1), batch)
    mesh = make_mesh(MeshConfig(data=4, model=2))
    with jax.set_mesh(mesh):
        sharded, _, sharded_outputs = dispatch(
            state, jnp.int32(-1), global_batch(batch, mesh, batch_axis=1)
        )
    np.testing.assert_allclose(plain.params["w"], sharded.params["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs.total, sharded_outputs.total, rtol=1e-5)
