"""Adapters beside a base: definition, weights per example, ranks, targets, layers, errors."""

import dataclasses
import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import adapters as make  # noqa: E402

from pangu_jax.models import Decoder  # noqa: E402
from pangu_jax.models.context import AttentionContext  # noqa: E402
from pangu_jax.models.decoder import Block  # noqa: E402
from pangu_jax.models.lora import (  # noqa: E402
    TARGETS,
    LoraConfig,
    LoraError,
    bind,
    init_lora,
    layer_slice,
    select,
    stack,
    with_weights,
)
from pangu_jax.models.lora.targets import get_target, target_specs  # noqa: E402
from pangu_jax.models.rope import rope_tables  # noqa: E402

ADAPTERS = (
    make.adapter("a", rank=3),
    make.adapter("b", rank=5, seed=2, targets=("q", "o", "down")),
    make.adapter("c", rank=1, seed=3, rslora=True, alpha=0.7, targets=("k", "v", "gate", "up")),
)
WEIGHTS = st.lists(
    st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3), min_size=4, max_size=4
)


def by_hand(pairs):
    """Logits of a base into whose kernels the adapters were added with NumPy, layer by layer."""
    params = jax.tree.map(np.array, make.base())
    for adapter, weight in pairs:
        rank, alpha = adapter.config.rank, adapter.config.alpha
        scale = alpha / np.sqrt(rank) if adapter.config.rslora else alpha / rank
        for name in adapter.config.targets:
            group = "attn" if name in "qkvo" else "mlp"
            factors = adapter.params["layers"][group][name]
            kernel = params["layers"][group][name]["kernel"]
            for layer in range(len(kernel)):
                a, b = (np.asarray(factors[leaf][layer], np.float64) for leaf in "ab")
                delta = a.reshape(-1, rank) @ b.reshape(rank, -1)
                kernel[layer] += weight * scale * delta.reshape(kernel[layer].shape)
    return make.logits(params=params)


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.name)
def test_an_adapter_adds_its_product_to_the_weights(adapter):
    want = by_hand([(adapter, 1.0)])
    make.close(make.logits(bind([adapter])), want)
    assert np.abs(want - make.logits()).max() > 0.05


@pytest.mark.parametrize("remat", ["none", "nothing", "dots"])
def test_a_new_adapter_is_the_base_exactly(remat):
    config = dataclasses.replace(make.CONFIG, remat=remat)
    params = init_lora(config, LoraConfig(rank=4), jax.random.key(5))
    new = dataclasses.replace(make.adapter(rank=4), params=params)
    with_it = make.logits(bind([new]), params=make.base(), config=config)
    assert np.array_equal(with_it, make.logits(params=make.base(), config=config))
    a = [np.asarray(get_target(params, name)["a"]) for name in TARGETS]
    bounds = [1 / np.sqrt(spec.fan_in) for spec in target_specs(config).values()]
    for values, bound in zip(a, bounds, strict=True):
        assert 0.8 * bound < np.abs(values).max() <= bound and abs(values.mean()) < 0.3 * bound


def test_a_target_draws_the_same_whatever_other_targets_there_are():
    key = jax.random.key(1)
    alone = init_lora(make.CONFIG, LoraConfig(targets=("v",)), key)
    among = init_lora(make.CONFIG, LoraConfig(), key)
    assert np.array_equal(get_target(alone, "v")["a"], get_target(among, "v")["a"])
    assert not np.array_equal(get_target(among, "k")["a"], get_target(among, "v")["a"])


def test_no_collection_traces_nothing():
    """The program of a model without adapters is the one that it had before there were any."""

    def trace(variables):
        return str(jax.make_jaxpr(Decoder(make.CONFIG).apply)(variables, make.TOKENS))

    plain = trace({"params": make.base()})
    assert plain == trace({"params": make.base(), "lora": bind([])})
    assert len(trace({"params": make.base(), "lora": bind([ADAPTERS[0]])})) > len(plain)


@settings(max_examples=8)
@given(WEIGHTS)
def test_each_example_runs_with_its_own_weights_alone(weights):
    mixed = make.logits(bind(ADAPTERS, np.array(weights, np.float32)))
    for row, own in enumerate(weights):
        alone = make.logits(
            bind(ADAPTERS, np.array([own] * 4, np.float32)), np.tile(make.TOKENS[row], (4, 1))
        )
        make.close(mixed[row], alone[0], 1e-4)


def test_weighted_sum_is_the_sum_of_weighted_products():
    weights = (0.6, -1.5, 2.0)
    got = make.logits(bind(ADAPTERS, np.array([weights], np.float32)))
    make.close(got, by_hand(zip(ADAPTERS, weights, strict=True)), 1e-4)


@settings(max_examples=8)
@given(st.permutations(range(4)), st.permutations(range(3)), st.integers(0, 2**16))
def test_order_of_rows_and_of_adapters_does_not_matter(rows, columns, seed):
    weights = np.random.default_rng(seed).normal(size=(4, 3)).astype(np.float32)
    want = make.logits(bind(ADAPTERS, weights))
    moved = bind([ADAPTERS[i] for i in columns], weights[rows][:, columns])
    make.close(make.logits(moved, make.TOKENS[rows]), want[rows], 1e-4)


def test_weight_zero_is_the_base_and_one_row_serves_all():
    assert np.array_equal(make.logits(bind(ADAPTERS, np.zeros((4, 3)))), make.logits())
    one = np.array([[0.5, 1.0, -1.0]], np.float32)
    make.close(make.logits(bind(ADAPTERS, one)), make.logits(bind(ADAPTERS, one.repeat(4, 0))))


def test_a_lone_product_is_linear_in_the_weights():
    from pangu_jax.models.lora import LoraKernel
    from pangu_jax.models.projection import product

    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    x, w, a, b = draw(4, 5, 3, 2), draw(3, 2, 6), draw(2, 3, 2, 4), draw(2, 4, 6)
    scale, mixes = draw(2), (draw(4, 2), draw(4, 2))

    def added(mix):
        kernel = LoraKernel(base=w, a=a, b=b, scale=scale, mix=mix)
        return product("btnh,nhd->btd", x, kernel) - jnp.einsum("btnh,nhd->btd", x, w)

    both = added(2 * mixes[0] - 3 * mixes[1])
    make.close(both, 2 * added(mixes[0]) - 3 * added(mixes[1]), 2e-4)
    want = np.einsum("btnh,bm,m,mnhr,mrd->btd", x, mixes[0], scale, a, b)
    make.close(added(mixes[0]), want, 2e-4)


def test_filling_up_ranks_with_zeros_changes_nothing():
    lone = bind([ADAPTERS[0]])
    wide = bind(ADAPTERS, select(["a", "b", "c"], ["a"] * 4))
    assert wide["layers"]["attn"]["q"]["a"].shape == (2, 3, 16, 5)
    make.close(make.logits(wide), make.logits(lone))


def test_scanned_layers_equal_lone_blocks():
    """What an engine does that goes through layers one by one."""
    config, weights = make.CONFIG, np.random.default_rng(0).normal(size=(4, 3))
    variables = bind(ADAPTERS, weights.astype(np.float32))
    collections = {"params": make.base(), "lora": variables}
    run = functools.partial(Decoder(config).apply, method="run", capture=("hidden",))
    hidden = jax.jit(run)(collections, make.TOKENS).captured["hidden"]
    order = jnp.arange(make.TOKENS.shape[1])[None]
    context = AttentionContext(rope_tables(config, order), None, None, None, None)
    kept = stack(ADAPTERS)
    block = jax.jit(Block(config).apply)
    for layer in range(config.num_layers):
        params = layer_slice(make.base(), layer)
        for lora in (
            layer_slice(variables, layer),
            with_weights(layer_slice(kept, layer), weights.astype(np.float32)),
        ):
            collections = {"params": params, "lora": lora}
            (x, _), _ = block(collections, (hidden[layer], None), layer, context)
            make.close(x, hidden[layer + 1])
    assert layer_slice(bind([]), 0) == {}


def test_select_reads_what_requests_say():
    rows = select(["x", "y"], [None, "y", {"x": 0.5}, (("x", 1.0), ("y", -2.0)), ()])
    assert rows.tolist() == [[0, 0], [0, 1], [0.5, 0], [1, -2], [0, 0]]
    assert rows.dtype == np.float32 and select(["x"], []).shape == (0, 1)
    with pytest.raises(LoraError, match="no adapter 'z'; loaded are: x, y"):
        select(["x", "y"], ["z"])


def test_wrong_uses_are_named():
    a, b = ADAPTERS[:2]
    with pytest.raises(LoraError, match="weights is None with 2 adapters"):
        bind([a, b])
    with pytest.raises(LoraError, match=r"\(4, 3\); \(rows, 2\) is needed"):
        bind([a, b], np.ones((4, 3)))
    with pytest.raises(LoraError, match="Two adapters are called 'a'"):
        bind([a, a], np.ones((1, 2)))
    with pytest.raises(ValueError, match="given for 3 rows, but the batch has 4"):
        make.logits(bind([a], np.ones((3, 1))))
    with pytest.raises(LoraError, match="trained on the base other, this model is sha256"):
        other = dataclasses.replace(b, base_fingerprint="other")
        bind([other], config=make.CONFIG, base_fingerprint=a.base_fingerprint)
    with pytest.raises(LoraError, match="need one base"):
        bind([a, other], np.ones((1, 2)))


def test_an_adapter_for_another_base_is_refused():
    config = dataclasses.replace(make.CONFIG, hidden_dim=12)
    other = make.adapter("other", config=config)
    with pytest.raises(LoraError, match=r"layers/attn/q/a is \[2, 12, 3\].*needs \[2, 16, 3\]"):
        bind([other], config=make.CONFIG)
    with pytest.raises(LoraError, match="different bases"):
        bind(
            [make.adapter("a"), dataclasses.replace(other, base_fingerprint=None)], np.ones((1, 2))
        )
    with pytest.raises(ValueError, match="belong to another base model"):
        make.logits(bind([other]))
    deeper = dataclasses.replace(make.CONFIG, num_layers=3)
    with pytest.raises(LoraError, match="another base"):
        bind([make.adapter("a")], config=deeper)
    lacking = dataclasses.replace(make.adapter("a"), config=LoraConfig(rank=3, targets=("q",)))
    with pytest.raises(LoraError, match="holds 14 arrays; its targets q make 2"):
        bind([lacking], config=make.CONFIG)


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("rank", 0, "lora.rank=0"),
        ("rank", 2.5, "whole number"),
        ("rank", True, "lora.rank=True"),
        ("alpha", -1.0, "positive"),
        ("alpha", float("nan"), "positive"),
        ("dropout", 1.0, "lora.dropout=1.0"),
        ("targets", ("q", "head"), "q, k, v, o, gate, up, down"),
        ("targets", (), "one or more"),
    ],
)
def test_config_errors_name_field_and_choices(field, value, said):
    with pytest.raises(LoraError, match=said):
        LoraConfig(**{field: value})


def test_config_orders_targets_and_scales():
    assert LoraConfig(targets=["down", "q"]).targets == ("q", "down")
    assert (
        LoraConfig(rank=4, alpha=8).scale == 2
        and LoraConfig(alpha=8, rslora=True, rank=4).scale == 4
    )


def test_fingerprint_tells_bases_apart_but_not_their_types():
    from pangu_jax.models.lora import fingerprint

    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make.base())
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    mine = fingerprint(make.CONFIG, params)
    assert (
        mine
        == fingerprint(make.CONFIG, wide)
        == fingerprint(make.CONFIG, jax.tree.map(np.asarray, wide))
    )
    changed = dict(wide) | {"final_norm": {"scale": wide["final_norm"]["scale"] + 0.1}}
    table = {"embedding": wide["embed"]["embedding"].at[5, 3].add(0.1)}
    others = {
        fingerprint(make.CONFIG, changed),
        fingerprint(make.CONFIG, dict(wide) | {"embed": table}),
        fingerprint(dataclasses.replace(make.CONFIG, qk_norm=True), wide),
    }
    assert len(others | {mine}) == 4
