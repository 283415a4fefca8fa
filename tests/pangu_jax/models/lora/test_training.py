"""Gradients, dropout, int8 bases, other types and several devices."""

import dataclasses
import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import adapters as make  # noqa: E402

from pangu_jax.models import Decoder  # noqa: E402
from pangu_jax.models.lora import LoraKernel, bind, low_rank_product, with_logical_axes  # noqa: E402
from pangu_jax.models.projection import Weights, product  # noqa: E402
from pangu_jax.models.quantized import quantize  # noqa: E402
from pangu_jax.parallel.mesh import MeshConfig, make_mesh  # noqa: E402
from pangu_jax.parallel.sharding import DEFAULT_RULES, shardings_for  # noqa: E402

PROBE = np.random.default_rng(9).normal(size=(*make.TOKENS.shape, make.CONFIG.hidden_dim))


def loss(adapter, weights=None, params=None, config=make.CONFIG, probe=None):
    """A scalar that every logit's past has a part in."""
    collections = {
        "params": make.base() if params is None else params,
        "lora": bind([adapter] if not isinstance(adapter, tuple) else adapter, weights),
    }
    hidden = Decoder(config).apply(collections, make.TOKENS, method="hidden")
    return (hidden * (PROBE.astype(np.float32) if probe is None else probe)).mean()


@functools.cache
def gradient(remat="none"):
    config = dataclasses.replace(make.CONFIG, remat=remat)
    return jax.jit(jax.grad(functools.partial(loss, config=config)))(make.adapter())


def test_gradients_are_those_of_finite_differences():
    """Along a random direction of all of A and B, in float64."""
    rng, eps = np.random.default_rng(4), 1e-5
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)  # noqa: E731
        adapter, params = wide(make.adapter()), wide(make.base())
        config = dataclasses.replace(make.CONFIG, dtype="float64")
        run = jax.jit(functools.partial(loss, params=params, config=config, probe=PROBE))
        step = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), adapter)
        moved = [jax.tree.map(lambda x, d, s=s: x + s * d, adapter, step) for s in (eps, -eps)]
        want = (run(moved[0]) - run(moved[1])) / (2 * eps)
        grads = jax.jit(jax.grad(run))(adapter)
        got = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (grads, step)), strict=True))
        np.testing.assert_allclose(got, want, rtol=1e-6)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("remat", ["nothing", "products"])
def test_rematerialisation_changes_no_gradient(remat):
    for got, want in zip(*map(jax.tree.leaves, (gradient(remat), gradient())), strict=True):
        make.close(got, want)


def test_gradients_reach_what_is_asked_for_alone():
    """A new adapter's A waits for B; an adapter of weight 0 learns nothing, its weight does."""
    adapter = make.adapter()
    fresh = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.zeros_like(x) if path[-1].key == "b" else x, adapter
    )
    for path, g in jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(fresh)):
        assert (np.abs(g).max() > 0) == (path[-1].key == "b"), path
    pair = make.adapter("a"), make.adapter("b", seed=2, targets=("q", "up"))
    weights = jnp.array([[1.0, 0.0]])
    grads, of_weights = jax.jit(jax.grad(loss, argnums=(0, 1)))(pair, weights)
    assert all(np.abs(x).max() > 0 for x in jax.tree.leaves(grads[0]))
    assert all(np.abs(x).max() == 0 for x in jax.tree.leaves(grads[1]))
    assert np.abs(of_weights).min() > 0


def test_dropout_needs_the_rng_and_a_rate():
    plain = make.adapter()
    dropping = dataclasses.replace(plain, config=dataclasses.replace(plain.config, dropout=0.5))
    run = functools.partial(make.logits, bind([dropping]))
    assert np.array_equal(run(), make.logits(bind([plain])))
    one, two = (run(rngs={"dropout": jax.random.key(seed)}) for seed in (1, 2))
    assert np.abs(one - run()).max() > 1e-2 and np.abs(one - two).max() > 1e-2
    assert np.array_equal(one, run(rngs={"dropout": jax.random.key(1)}))
    without = make.logits(bind([plain]), rngs={"dropout": jax.random.key(1)})
    assert np.array_equal(without, make.logits(bind([plain])))


def test_dropout_zeroes_inputs_of_a_at_its_rate_and_keeps_the_mean():
    eye = jnp.eye(50)[None]
    rates = jnp.array([0.2, 0.7])
    kernel = LoraKernel(
        base=None, a=eye.repeat(2, 0), b=eye.repeat(2, 0), scale=jnp.ones(2),
        mix=jnp.array([[1.0, 0.0], [0.0, 1.0]]), dropout=rates, key=jax.random.key(0),
    )  # fmt: skip
    got = np.asarray(low_rank_product("btd,df->btf", jnp.ones((2, 400, 50)), kernel))
    for row, rate in enumerate([0.2, 0.7]):
        assert abs((got[row] == 0).mean() - rate) < 0.02  # 20,000 draws: 6 deviations
        np.testing.assert_allclose(got[row][got[row] != 0], 1 / (1 - rate), rtol=1e-5)


class QKeys(nn.Module):
    """One layer's q: gives the key that its dropout uses."""

    @nn.compact
    def __call__(self, carry):
        axes = ("embed", "heads", "head_dim")
        kernel, _ = Weights((16, 4, 6), axes, 1.0, "float32", name="q")()
        return carry, jax.random.key_data(kernel.key)


def test_layers_drop_different_inputs():
    plain = make.adapter()
    dropping = dataclasses.replace(plain, config=dataclasses.replace(plain.config, dropout=0.5))
    variables = {
        "params": {"q": {"kernel": make.base()["layers"]["attn"]["q"]["kernel"]}},
        "lora": {"q": bind([dropping])["layers"]["attn"]["q"]},
    }
    stack = nn.scan(
        QKeys, variable_axes={"lora": 0, "params": 0}, split_rngs={"dropout": True}, length=2
    )
    _, keys = stack().apply(variables, None, rngs={"dropout": jax.random.key(0)})
    assert keys.shape[0] == 2 and not np.array_equal(keys[0], keys[1])


@pytest.mark.parametrize("mode", ["weight_only", "dynamic"])
def test_an_int8_kernel_gets_the_same_addition(mode):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x, base = draw(4, 5, 8), quantize(draw(8, 3, 2), 1, mode)
    kernel = LoraKernel(
        base=base, a=draw(2, 8, 3), b=draw(2, 3, 3, 2), scale=draw(2), mix=draw(4, 2)
    )
    equation = "btd,dnh->btnh"
    added = product(equation, x, kernel) - product(equation, x, base)
    want = np.einsum(
        "btd,bm,m,mdr,mrnh->btnh", x, kernel.mix, kernel.scale, kernel.a, kernel.b, optimize=True
    )
    make.close(added, want, 5e-5)


@pytest.mark.parametrize("mode", ["weight_only", "dynamic"])
def test_adapters_beside_an_int8_base(mode):
    """The model is the one beside the weights that the integers stand for, but for activations.

    Those are rounded too: to 8 bits in 'dynamic', to about 16 on CPU in 'weight_only'.
    """
    layers = make.base()["layers"]
    integers, floats = {}, {}
    for group in ("attn", "mlp"):
        integers[group], floats[group] = {}, {}
        for name, held in layers[group].items():
            n = 2 if name == "o" else 1
            q = jax.vmap(lambda w, n=n: quantize(w, n, mode))(held["kernel"])
            integers[group][name] = held | {"kernel": q}
            floats[group][name] = held | {"kernel": jax.vmap(lambda q: q.dequantized())(q)}
    variables = bind([make.adapter()])
    got, want = (
        make.logits(variables, params=make.base() | {"layers": layers | changed})
        for changed in (integers, floats)
    )
    allowed = {"weight_only": 5e-4, "dynamic": 0.1}[mode]
    assert np.abs(got - want).mean() < allowed * want.std()
    assert np.abs(want - make.logits()).mean() > 0.3 * want.std()


def test_bfloat16_computes_in_bfloat16():
    config = dataclasses.replace(make.CONFIG, dtype="bfloat16")
    hidden = jax.jit(functools.partial(Decoder(config).apply, method="hidden"))(
        {"params": make.base(), "lora": bind([make.adapter()])}, make.TOKENS
    )
    assert hidden.dtype == jnp.bfloat16
    got, want = (
        make.logits(bind([make.adapter()]), config=config),
        make.logits(bind([make.adapter()])),
    )
    assert np.abs(got - want).mean() < 0.05 * want.std()


@pytest.mark.parametrize("rules", ["tensor", "fully_sharded"])
def test_eight_devices_equal_one(rules):
    table = DEFAULT_RULES if rules == "tensor" else (("embed", "data"), *DEFAULT_RULES)
    mesh = make_mesh(MeshConfig(data=4, model=2))
    pair = make.adapter("a"), make.adapter("b", seed=2, targets=("q", "o", "up"))
    weights = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    grad = jax.jit(jax.value_and_grad(loss))
    want, of_pair = grad(pair, weights)

    def place(tree):
        return jax.device_put(tree, shardings_for(with_logical_axes(tree), mesh, table))

    placed = tuple(dataclasses.replace(adapter, params=place(adapter.params)) for adapter in pair)
    b = placed[0].params["layers"]["attn"]["q"]["b"]
    assert b.sharding.shard_shape(b.shape) == (2, 3, 2, 6)  # heads over the axis 'model'
    with jax.set_mesh(mesh):
        got, of_placed = grad(placed, weights)
    make.close(got, want)
    for x, y in zip(jax.tree.leaves(of_placed), jax.tree.leaves(of_pair), strict=True):
        make.close(x, y)
    variables = bind(pair, weights)
    collection = place(variables)
    mix = collection["layers"]["attn"]["q"]["mix"]
    assert mix.sharding.shard_shape(mix.shape) == (2, 1, 2)  # rows over 'data'
    make.close(make.logits(collection), make.logits(variables))
