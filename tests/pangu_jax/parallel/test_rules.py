"""Logical rules of layouts: the automatic path equals one device; ZeRO's sharding over data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.linen import logical_axis_rules
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pangu_jax.models import Decoder, cross_entropy, preset
from pangu_jax.parallel.document_zigzag import zigzag
from pangu_jax.parallel.layout import Layout, LayoutError, abstract_mesh, layout_mesh
from pangu_jax.parallel.rules import rules_for, shards, zero_sharding
from pangu_jax.parallel.sharding import shardings_for, unbox

MODEL = Decoder(preset("debug", num_layers=1))


@pytest.fixture(scope="module")
def problem():
    """(boxed shapes, parameters, batch, loss and gradients on one device)."""
    rng = np.random.default_rng(0)
    text = rng.integers(0, 512, (8, 33))
    batch = {
        "tokens": text[:, :-1],
        "labels": text[:, 1:].copy(),
        "segment_ids": np.repeat(np.array([[1, 2]]), [24, 8], axis=1).repeat(8, axis=0),
        "positions": np.concatenate([np.arange(24), np.arange(8)])[None].repeat(8, axis=0),
    }
    batch["labels"][:, [23, 31]] = -1
    batch = {name: values.astype(np.int32) for name, values in batch.items()}
    boxed = jax.eval_shape(MODEL.init, jax.random.key(0), batch["tokens"])
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape, scale=0.2).astype(leaf.dtype), unbox(boxed)
    )
    return boxed, params, batch, jax.jit(jax.value_and_grad(loss))(params, batch)


def loss(params, batch):
    out = MODEL.apply(
        params, batch["tokens"], batch["segment_ids"], batch["positions"], method="run"
    )
    sums = cross_entropy(out.hidden, out.head, batch["labels"])
    return sums.total / sums.weight


@pytest.mark.parametrize(
    "layout",
    [
        Layout(data=2, context=2, tensor=2),
        Layout(data=4, tensor=2, zero=3, sequence_parallel=False),
    ],
    ids=["data-context-tensor-sequence", "zero3-tensor"],
)
def test_automatic_path_equals_one_device(problem, layout):
    boxed, params, batch, (value, gradients) = problem
    mesh, rules = layout_mesh(layout), rules_for(layout)
    shardings = shardings_for(boxed, mesh, rules)
    kernel = shardings["params"]["layers"]["mlp"]["gate"]["kernel"].spec
    assert kernel == P(None, "data" if layout.zero == 3 else None, "tensor")
    rows = NamedSharding(mesh, P("data", "context"))
    placed = jax.device_put(zigzag(batch, layout.context), rows)
    with jax.set_mesh(mesh), logical_axis_rules(rules):
        found, found_gradients = jax.jit(jax.value_and_grad(loss))(
            jax.device_put(params, shardings), placed
        )
    np.testing.assert_allclose(found, value, rtol=1e-5)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        other = found_gradients
        for key in path:
            other = other[key.key]
        error = np.linalg.norm(other - gradient) / np.linalg.norm(gradient)
        assert error < 1e-5, jax.tree_util.keystr(path)


def test_rules_for_sequence_parallel():
    table = dict(rules_for(Layout(context=2, tensor=2)))
    assert table["residual_sequence"] == ("context", "tensor")
    assert dict(rules_for(Layout(sequence_parallel=False)))["residual_sequence"] == "context"
    assert table["embed"] is None


def test_the_automatic_path_has_no_pipeline():
    with pytest.raises(LayoutError, match="layout.pipe=2: .*set pipe to 1"):
        rules_for(Layout(pipe=2))


@pytest.mark.parametrize(
    "spec, shape, expected",
    [
        (P(), (8, 6), P("data", None)),
        (P(), (6, 8), P(None, "data")),
        (P("tensor"), (8, 12), P("tensor", "data")),
        (P(None, ("context", "tensor")), (7, 16, 8), P(None, ("context", "tensor"), "data")),
        (P("data"), (8, 8), P("data")),
        (P(("data", "tensor")), (8, 8), P(("data", "tensor"))),
        (P("tensor"), (8,), P("tensor")),
        (P(), (6,), P()),
        (P(), (), P()),
    ],
)
def test_zero_takes_the_first_free_dimension(spec, shape, expected):
    layout = Layout(data=4, tensor=2)
    assert zero_sharding(spec, shape, abstract_mesh(layout)) == expected
    assert zero_sharding(spec, shape, dict(data=4, pipe=1, context=1, tensor=2)) == expected


@given(
    shape=st.lists(st.integers(0, 12), max_size=3).map(tuple),
    taken=st.lists(st.sampled_from([None, "tensor"]), max_size=3),
    data=st.integers(1, 6),
)
def test_zero_divides_evenly_or_not_at_all(shape, taken, data):
    spec = P(*taken[: len(shape)])
    if list(spec).count("tensor") > 1:
        spec = P()
    sizes = {"data": data, "tensor": 2}
    found = zero_sharding(spec, shape, sizes)
    assert shards(found, sizes) in (shards(spec, sizes), data * shards(spec, sizes))
    for dim, entry in enumerate(found):
        if entry == "data":
            assert shape[dim] % data == 0
    free = [n for n, e in zip(shape, list(spec) + [None] * 3, strict=False) if e is None and n]
    assert ("data" in list(found)) == (data > 1 and any(n % data == 0 for n in free))


def test_zero_without_data_parallelism():
    assert zero_sharding(P(), (8,), abstract_mesh(Layout(tensor=2))) == P()


def test_divided_optimizer_state_gives_the_same_step():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(6, 8)), "scale": rng.normal(size=6)}
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    gradients = jax.tree.map(np.square, params)
    optimizer = optax.adamw(1e-2)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    expected, _ = jax.jit(step)(params, optimizer.init(params), gradients)
    mesh = layout_mesh(Layout(data=4, tensor=2))

    def divided(leaf):
        return NamedSharding(mesh, zero_sharding(P(), jnp.shape(leaf), mesh))

    state = jax.tree.map(lambda x: jax.device_put(x, divided(x)), optimizer.init(params))
    whole = jax.device_put(params, NamedSharding(mesh, P()))
    found, after = jax.jit(step, out_shardings=(None, jax.tree.map(divided, state)))(
        whole, state, jax.device_put(gradients, jax.tree.map(divided, gradients))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    assert after[0].mu["kernel"].addressable_shards[0].data.shape == (6, 2)
    assert after[0].nu["scale"].addressable_shards[0].data.shape == (6,)
