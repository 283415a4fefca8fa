"""The whole decoder against a naive NumPy one, and the invariances that packing relies on."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import Decoder, RopeScaling, cross_entropy, preset

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import numpy_decoder  # noqa: E402

TINY = dict(
    vocab_size=40, num_layers=2, hidden_dim=12, mlp_dim=20, num_heads=4, num_kv_heads=2, head_dim=6
)
STRETCH = RopeScaling(factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64)
VARIANTS = {
    "pre_ln": dict(norm_scheme="pre_ln"),
    "sandwich_tied": dict(norm_scheme="sandwich", tie_embeddings=True),
    "dssn_interleaved": dict(norm_scheme="dssn", rope_layout="interleaved"),
    "biases": dict(norm_scheme="pre_ln", qkv_bias=True, out_bias=True),
    "qk_norm_stretched": dict(norm_scheme="dssn", qk_norm=True, rope_scaling=STRETCH),
    "one_kv_head": dict(norm_scheme="dssn", num_kv_heads=1, rope_base=100.0),
}
LENGTHS = ((5, 1, 4), (9,))  # documents of two rows of 11; the rest is padding


def config_of(variant, **changes):
    return preset("debug", **(TINY | VARIANTS[variant] | changes))


def parameters(config, dtype=np.float64):
    """Every parameter random and of a size that matters, biases and gains included."""
    model = Decoder(dataclasses.replace(config, dtype="float32"))
    boxed = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    shapes = nn.unbox(boxed)["params"]
    rng = np.random.default_rng(0)

    def draw(path, x):
        name = jax.tree_util.keystr(path)
        values = rng.normal(size=x.shape) * 0.4
        return (1 + values if "scale" in name else values).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def packed(lengths=LENGTHS, width=11, vocab=40):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, vocab, (len(lengths), width)).astype(np.int32)
    ids, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, sizes in enumerate(lengths):
        start = 0
        for number, size in enumerate(sizes):
            ids[row, start : start + size] = number + 1
            positions[row, start : start + size] = np.arange(size)
            start += size
    return tokens, ids, positions


def documents(lengths=LENGTHS):
    """(row, slice of columns) of every document."""
    for row, sizes in enumerate(lengths):
        start = 0
        for size in sizes:
            yield row, slice(start, start + size)
            start += size


@functools.cache
def applied(config, **kwargs):
    return jax.jit(functools.partial(Decoder(config).apply, **kwargs))


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_packed_rows_equal_a_naive_decoder_one_document_at_a_time(variant):
    """Float64; with positions that restart in each document and with those of the row."""
    config = config_of(variant, dtype="float64")
    params = parameters(config)
    tokens, ids, positions = packed()
    with jax.enable_x64(True):
        given = applied(config)({"params": params}, tokens, ids, positions)
        by_row = applied(config)({"params": params}, tokens, ids)
    for row, part in documents():
        want = numpy_decoder.document_logits(tokens[row, part], params, config)
        np.testing.assert_allclose(given[row, part], want, atol=1e-11)
        np.testing.assert_allclose(by_row[row, part], want, atol=1e-11)
    assert np.isfinite(given).all()


def value_and_grad(config, params, tokens, ids, positions=None):
    def loss(params):
        out = Decoder(config).apply({"params": params}, tokens, ids, positions, method="run")
        labels = np.where((ids > 0) & (np.roll(ids, -1, 1) == ids), np.roll(tokens, -1, 1), -1)
        labels[:, -1] = -1
        return cross_entropy(out.hidden, out.head, labels, chunk=config.loss_chunk).total

    return jax.jit(jax.value_and_grad(loss))(params)


def assert_trees_close(got, want, tolerance):
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)
        assert error < tolerance, f"{jax.tree_util.keystr(path)}: {error:.1e}"


@pytest.mark.parametrize(
    "changes",
    [
        dict(scan_unroll=True),
        dict(remat="nothing"),
        dict(remat="attention"),
        dict(remat="dots"),
        dict(remat="products"),
        dict(attention_implementation="dense", loss_chunk=3),
        dict(remat="nothing", scan_unroll=True),
    ],
    ids=str,
)
def test_how_it_is_run_changes_neither_loss_nor_gradients(changes):
    config = config_of("dssn_interleaved", dtype="float64")
    params, (tokens, ids, _) = parameters(config), packed()
    with jax.enable_x64(True):
        want = _plain(config, params, tokens, ids)
        got = value_and_grad(dataclasses.replace(config, **changes), params, tokens, ids)
    assert_trees_close(got, want, 1e-12)


@pytest.mark.parametrize("name", ["dssn_interleaved", "pre_ln"])
def test_row_order_says_what_positions_say(name):
    config = config_of(name, dtype="float64")
    params, (tokens, ids, positions) = parameters(config), packed()
    with jax.enable_x64(True):

        def hidden(params, **order):
            run = Decoder(config).apply(
                {"params": params}, tokens, ids, positions, method="run", **order
            )
            real = (ids > 0)[..., None]
            return jnp.sum(jnp.sin(run.hidden) * real), run.hidden * real

        want = jax.grad(hidden, has_aux=True)(params)
        got = jax.grad(lambda p: hidden(p, row_order=True), has_aux=True)(params)
    assert_trees_close(got, want, 1e-11)


def _products(config, params, tokens, ids):
    """(weight products, products of attention) in loss and gradient together."""

    def loss(params):
        run = Decoder(config).apply({"params": params}, tokens, ids, method="run")
        return jnp.sum(run.hidden)

    counts = {True: 0, False: 0}

    def count(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                counts["segment_attention" in str(equation.source_info.name_stack)] += 1
            for value in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    count(inner)

    count(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    return counts[False], counts[True]


@pytest.mark.parametrize(
    "policy, weights, attention",
    [("nothing", 7, 2), ("attention", 7, 0), ("dots", 0, 2), ("products", 0, 0)],
)
def test_policies_do_again_what_they_say(policy, weights, attention):
    # With norms behind the branches all seven products of a block are read again.
    config = config_of("dssn_interleaved")
    params, (tokens, ids, _) = parameters(config), packed()
    plain = _products(config, params, tokens, ids)
    forward = plain[1] / 7 * 2  # two of attention's seven
    found = _products(dataclasses.replace(config, remat=policy), params, tokens, ids)
    assert found == (plain[0] + weights, plain[1] + attention / 2 * forward)


_CACHE = {}


def _plain(config, params, tokens, ids):
    if config not in _CACHE:
        _CACHE[config] = value_and_grad(config, params, tokens, ids)
    return _CACHE[config]


def test_columns_may_be_permuted_when_positions_are_given():
    """What context parallelism does to a row: mask and rotary angle follow positions alone."""
    config = config_of("dssn_interleaved", dtype="float64")
    params, (tokens, ids, positions) = parameters(config), packed()
    shuffle = np.random.default_rng(2).permutation(tokens.shape[1])
    with jax.enable_x64(True):
        want = applied(config)({"params": params}, tokens, ids, positions)
        got = applied(config)(
            {"params": params}, tokens[:, shuffle], ids[:, shuffle], positions[:, shuffle]
        )
    np.testing.assert_allclose(got, want[:, shuffle], atol=1e-12)


def test_what_stands_in_padding_and_later_changes_nothing_earlier():
    config = config_of("pre_ln")
    params, (tokens, ids, _) = parameters(config, np.float32), packed()
    want = applied(config)({"params": params}, tokens, ids)
    other = np.where(ids == 0, (tokens + 7) % 40, tokens)
    got = applied(config)({"params": params}, other, ids)
    np.testing.assert_array_equal(got[ids > 0], want[ids > 0])
    later = tokens.copy()
    later[:, 6:] = (later[:, 6:] + 3) % 40
    got = applied(config)({"params": params}, later, ids)
    np.testing.assert_array_equal(got[:, :6], want[:, :6])
    assert np.abs(got[:, 6:] - want[:, 6:]).max() > 0.1


def test_rows_do_not_depend_on_their_neighbours_or_on_padding_to_the_right():
    config = config_of("biases")
    params, (tokens, ids, _) = parameters(config, np.float32), packed()
    want = applied(config)({"params": params}, tokens, ids)
    wide = np.pad(tokens[1:], ((0, 0), (0, 5))), np.pad(ids[1:], ((0, 0), (0, 5)))
    got = applied(config)({"params": params}, *wide)[:, : tokens.shape[1]]
    np.testing.assert_allclose(got[ids[1:] > 0], want[1:][ids[1:] > 0], atol=2e-5)


def test_bfloat16_is_close_to_float32():
    config = config_of("dssn_interleaved")
    params, (tokens, ids, _) = parameters(config, np.float32), packed()
    want = applied(config)({"params": params}, tokens, ids)
    half = dataclasses.replace(config, dtype="bfloat16")
    got = applied(half)({"params": params}, tokens, ids)
    assert got.dtype == want.dtype == jnp.float32
    error = np.abs(got - want)[ids > 0]
    # Not equal (that would mean float32 was used), and a few of the 8-bit mantissa's steps off.
    assert 1e-4 < error.max() / np.abs(want).max() < 0.05
    grads = [value_and_grad(c, params, tokens, ids)[1] for c in (config, half)]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        cosine = np.sum(a * b) / (np.linalg.norm(a) * np.linalg.norm(b))
        assert cosine > 0.98


def test_capture_changes_no_result_and_holds_what_it_says():
    config = config_of("dssn_interleaved")
    params, (tokens, ids, _) = parameters(config, np.float32), packed()
    plain = applied(config, method="run")({"params": params}, tokens, ids)
    with_all = applied(config, method="run", capture=("statistics", "hidden"))
    out = with_all({"params": params}, tokens, ids)
    np.testing.assert_array_equal(out.hidden, plain.hidden)
    assert plain.captured == {}
    hidden = np.asarray(out.captured["hidden"])
    assert hidden.shape == (3, 2, 11, 12)
    np.testing.assert_array_equal(hidden[0], params["embed"]["embedding"][tokens])
    final = numpy_decoder.rms_norm(hidden[-1], params["final_norm"]["scale"], config.norm_eps)
    np.testing.assert_allclose(out.hidden, final, rtol=1e-5, atol=1e-6)
    statistics = out.captured["statistics"]
    assert set(statistics) == {"attention", "mlp", "residual"}
    for layer in range(2):
        values = hidden[layer + 1][ids > 0]
        np.testing.assert_allclose(statistics["residual"]["std"][layer], values.std(), rtol=1e-5)
        top = np.abs(values).max()
        np.testing.assert_allclose(statistics["residual"]["top1"][layer], top, rtol=1e-6)


def test_hidden_and_logits_methods_agree():
    config = config_of("sandwich_tied")
    params, (tokens, ids, _) = parameters(config, np.float32), packed()
    hidden = applied(config, method="hidden")({"params": params}, tokens, ids)
    logits = applied(config)({"params": params}, tokens, ids)
    assert logits.shape == (2, 11, 40) and logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, hidden @ params["embed"]["embedding"].T, atol=1e-4)


def test_arguments_that_do_not_fit():
    config = config_of("pre_ln")
    tokens, ids, _ = packed()
    apply = functools.partial(Decoder(config).apply, {"params": parameters(config, np.float32)})
    with pytest.raises(ValueError, match="tokens is float32"):
        apply(tokens.astype(np.float32))
    with pytest.raises(ValueError, match="segment_ids has shape"):
        apply(tokens, ids[:, :-1])
    with pytest.raises(ValueError, match="capture='hiden' is unknown"):
        apply(tokens, capture=("hiden",), method="run")
