"""Models against independent NumPy references, parameter counts of the spec, invariances."""

from __future__ import annotations

import pathlib
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.sequential.losses import LossConfig
from recsys_jax.sequential.model import MODELS, build_model, model_spec

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import sequence_batches as helpers  # noqa: E402

SEQUENCE_MODELS = [name for name, spec in MODELS.items() if spec.trains_on == "sequences"]
ITEMS, MAX_LEN = 40, 24
LENGTHS = (24, 13, 1, 7, 9)


def make(name, *, num_items=ITEMS, num_users=10, max_len=MAX_LEN, packed=False, loss=None, **over):
    config = MODELS[name].config_class(max_len=max_len, **over)
    return build_model(
        name, config, loss or LossConfig(), num_items=num_items, num_users=num_users, packed=packed
    )


def encode(model, params, batch):
    return jax.jit(model.encode)(params, batch)


def initialise(model, batch, seed=0, noise=0.05):
    """Initial parameters plus noise, so that biases and small tables matter."""
    params = nn.unbox(jax.jit(model.init)(jax.random.key(seed), batch))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [x + noise * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, leaves)


@pytest.mark.parametrize(
    "name, over, encoder, table",
    [
        ("fuxi_alpha", {}, 61_200, 197_650),
        ("fuxi_alpha", dict(num_layers=8, num_heads=2, qk_dim=25, v_dim=25), 244_800, 197_650),
        ("hstu", {}, 26_200, 197_650),
        ("hstu", dict(num_layers=8, num_heads=2, qk_dim=25, v_dim=25), 104_800, 197_650),
        (
            "fuxi_alpha",
            dict(embedding_dim=256, num_heads=4, qk_dim=64, v_dim=64, ffn_multiple=4),
            2_754_124,
            None,
        ),
        (
            "fuxi_alpha",
            dict(embedding_dim=256, num_layers=8, num_heads=8, qk_dim=32, v_dim=32, ffn_multiple=4),
            11_016_496,
            None,
        ),
        ("hstu", dict(embedding_dim=256, num_heads=4, qk_dim=64, v_dim=64), 656_972, None),
        (
            "hstu",
            dict(embedding_dim=256, num_layers=8, num_heads=8, qk_dim=32, v_dim=32),
            2_627_888,
            None,
        ),
    ],
)
def test_parameter_counts_equal_the_released_models(name, over, encoder, table):
    """Spec section 2.1; position embeddings and the item table are counted apart."""
    model = make(name, num_items=3952, max_len=200, **over)
    batch = helpers.padded(helpers.histories((5,), 3952), 8)
    params = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), batch)))
    blocks = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params["blocks"]))
    assert blocks == encoder
    if table:
        assert params["input"]["items"]["embedding"].size == table
    assert params["input"]["positions"].shape == (211, over.get("embedding_dim", 50))


# ---- independent references: one user at a time, float64, no padding, loops where they help ----


def np_rms(x):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)


def np_ln(x, eps=1e-6):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def np_silu(x):
    return x / (1 + np.exp(-x))


def np_time_bucket(dt):
    # The released code works in float32; its rounding decides the bucket of a few large values.
    value = np.log(np.maximum(np.abs(dt), 1).astype(np.float32)) / np.float32(0.301)
    return np.clip(np.floor(value).astype(int), 0, 128)


def np_tables(p, layer, n_slots, times, request_times):
    length = len(times)
    position = np.zeros((length, length))
    time = np.zeros((length, length))
    for i in range(length):
        for j in range(i + 1):
            position[i, j] = p["bias"]["position"][layer][j - i + n_slots - 1]
            bucket = np_time_bucket(np.array(request_times[i] - times[j]))
            time[i, j] = p["bias"]["time"][layer][bucket]
    return position, time


def np_input(params, items, dim):
    e = params["input"]["items"]["embedding"][items] * np.sqrt(dim)
    return e + params["input"]["positions"][: len(items)]


def np_fuxi(params, cfg, items, times, request_times):
    x = np_input(params, items, cfg.embedding_dim)
    p, n, heads = params["blocks"], cfg.num_slots, cfg.num_heads
    length = len(items)
    tril = np.tril(np.ones((length, length)))
    for layer in range(cfg.num_layers):
        uvqk = np_silu(np_rms(x) @ p["uvqk"]["kernel"][layer])
        w = heads * cfg.v_dim
        u, v, q, k = np.split(uvqk, [3 * w, 4 * w, 4 * w + heads * cfg.qk_dim], -1)
        position, time = np_tables(p, layer, n, times, request_times)
        parts = []
        for h in range(heads):
            vh = v[:, h * cfg.v_dim : (h + 1) * cfg.v_dim]
            qh = q[:, h * cfg.qk_dim : (h + 1) * cfg.qk_dim]
            kh = k[:, h * cfg.qk_dim : (h + 1) * cfg.qk_dim]
            semantic = np_silu(qh @ kh.T) / n * tril
            parts += [position @ vh, time @ vh, semantic @ vh]
        hidden = u * np_rms(np.concatenate(parts, -1))
        y = hidden @ p["w0"]["kernel"][layer] + p["w0"]["bias"][layer] + x
        f = np_rms(y)
        gate = np_silu(f @ p["w1"]["kernel"][layer]) * (f @ p["w3"]["kernel"][layer])
        x = gate @ p["w2"]["kernel"][layer] + y
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def np_hstu(params, cfg, items, times, request_times):
    x = np_input(params, items, cfg.embedding_dim)
    p, n, heads = params["blocks"], cfg.num_slots, cfg.num_heads
    tril = np.tril(np.ones((len(items), len(items))))
    for layer in range(cfg.num_layers):
        uvqk = np_silu(np_ln(x) @ p["uvqk"]["kernel"][layer])
        w = heads * cfg.v_dim
        u, v, q, k = np.split(uvqk, [w, 2 * w, 2 * w + heads * cfg.qk_dim], -1)
        position, time = np_tables(p, layer, n, times, request_times)
        parts = []
        for h in range(heads):
            vh = v[:, h * cfg.v_dim : (h + 1) * cfg.v_dim]
            qh = q[:, h * cfg.qk_dim : (h + 1) * cfg.qk_dim]
            kh = k[:, h * cfg.qk_dim : (h + 1) * cfg.qk_dim]
            parts.append((np_silu(qh @ kh.T + position + time) / n * tril) @ vh)
        hidden = u * np_ln(np.concatenate(parts, -1))
        x = hidden @ p["out"]["kernel"][layer] + p["out"]["bias"][layer] + x
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def np_softmax_attention(q, k, v, heads):
    length, dim = q.shape
    d = dim // heads
    out = np.zeros_like(q)
    for h in range(heads):
        s = slice(h * d, (h + 1) * d)
        logits = q[:, s] @ k[:, s].T / np.sqrt(d)
        logits = np.where(np.tril(np.ones((length, length))) > 0, logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        out[:, s] = weights / weights.sum(-1, keepdims=True) @ v[:, s]
    return out


def np_sasrec(params, cfg, items, times, request_times):
    x = np_input(params, items, cfg.embedding_dim)
    p = params["blocks"]

    def linear(name, layer, y):
        return y @ p[name]["kernel"][layer] + p[name]["bias"][layer]

    for layer in range(cfg.num_layers):
        normed = np_ln(x, 1e-8)
        a = np_softmax_attention(
            linear("q", layer, normed), linear("k", layer, x), linear("v", layer, x), cfg.num_heads
        )
        y = np_ln(normed + linear("out", layer, a), 1e-8)
        x = y + linear("w2", layer, np.maximum(linear("w1", layer, y), 0))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def np_rotate(x, heads, base):
    length, dim = x.shape
    half = dim // heads // 2
    out = np.zeros_like(x)
    for t in range(length):
        for h in range(heads):
            for i in range(half):
                angle = t * base ** (-i / half)
                a, b = x[t, h * 2 * half + i], x[t, h * 2 * half + half + i]
                out[t, h * 2 * half + i] = a * np.cos(angle) - b * np.sin(angle)
                out[t, h * 2 * half + half + i] = a * np.sin(angle) + b * np.cos(angle)
    return out


def np_llama(params, cfg, items, times, request_times):
    x = params["input"]["items"]["embedding"][items] * np.sqrt(cfg.embedding_dim)
    p = params["blocks"]
    for layer in range(cfg.num_layers):
        q, k, v = np.split(np_rms(x) @ p["qkv"]["kernel"][layer], 3, -1)
        q, k = (np_rotate(y, cfg.num_heads, cfg.rope_base) for y in (q, k))
        x = x + np_softmax_attention(q, k, v, cfg.num_heads) @ p["out"]["kernel"][layer]
        f = np_rms(x)
        gate = np_silu(f @ p["w1"]["kernel"][layer]) * (f @ p["w3"]["kernel"][layer])
        x = x + gate @ p["w2"]["kernel"][layer]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def np_gru(params, cfg, items):
    x = params["input"]["items"]["embedding"][items] * np.sqrt(cfg.embedding_dim)
    for layer in range(cfg.num_layers):
        p, h, states = params[f"gru_{layer}"], np.zeros(cfg.hidden_dim), []
        for row in x:
            g = row @ p["input"]["kernel"] + p["input"]["bias"]
            r = h @ p["recurrent"]
            n = cfg.hidden_dim
            reset = 1 / (1 + np.exp(-(g[:n] + r[:n])))
            update = 1 / (1 + np.exp(-(g[n : 2 * n] + r[n : 2 * n])))
            new = np.tanh(g[2 * n :] + reset * (r[2 * n :] + p["recurrent_bias"]))
            h = (1 - update) * new + update * h
            states.append(h)
        x = np.array(states)
    return x


def np_gru4rec(params, cfg, items, times, request_times):
    x = np_gru(params, cfg, items) @ params["out"]["kernel"]
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def np_narm(params, cfg, items, times, request_times):
    h = np_gru(params, cfg, items)
    a1, a2 = h @ params["a1"]["kernel"], h @ params["a2"]["kernel"]
    out = []
    for t in range(len(h)):
        local = np.zeros(cfg.hidden_dim)
        for j in range(t + 1):
            local += params["score"] @ (1 / (1 + np.exp(-(a1[t] + a2[j])))) * h[j]
        out.append(np.concatenate([h[t], local]) @ params["decoder"]["kernel"])
    out = np.array(out)
    return out / np.linalg.norm(out, axis=-1, keepdims=True)


REFERENCES = {
    "fuxi_alpha": (np_fuxi, dict(num_heads=2, qk_dim=6, v_dim=10, ffn_multiple=1.5)),
    "hstu": (np_hstu, dict(num_heads=2, qk_dim=6, v_dim=10)),
    "sasrec": (np_sasrec, dict(num_heads=2, ffn_dim=28)),
    "llama": (np_llama, dict(num_heads=2)),
    "gru4rec": (np_gru4rec, dict(num_layers=2, hidden_dim=18)),
    "narm": (np_narm, dict(hidden_dim=18, block_columns=5)),
}


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
@pytest.mark.parametrize("is_packed", [False, True])
def test_encoder_equals_numpy_reference_one_user_at_a_time(name, is_packed):
    """Also proves padding and packing invariance: the reference knows neither."""
    reference, over = REFERENCES[name]
    model = make(name, embedding_dim=20, **over)
    events = helpers.histories(LENGTHS, ITEMS)
    batch = helpers.padded(events, MAX_LEN)
    params = initialise(model, batch)
    spots = [(row, 0) for row in range(len(events))]
    if is_packed:
        batch, spots = helpers.packed(events, MAX_LEN + 9)
    apply = jax.jit(lambda p, b: model.module.apply({"params": p}, b, packed=is_packed))
    users = apply(params, batch)
    p64 = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for (row, start), (items, times) in zip(spots, events, strict=True):
        n = len(items) - 1
        want = reference(p64, model.config, items[:-1], times[:-1], times[1:])
        got = np.asarray(users[row, start : start + n])
        np.testing.assert_allclose(got, want, atol=3e-5, rtol=0)
    filler = np.asarray(users)[batch["segment_ids"] == 0]
    np.testing.assert_array_equal(filler, 0)


@pytest.mark.parametrize("name", SEQUENCE_MODELS)
def test_no_gradient_flows_from_a_position_to_later_inputs(name):
    """Causality through the input embedding's gradient: exact zeros for later items."""
    model = make(name, embedding_dim=16)
    # Distinct items, so that a row of the table stands for one column.
    items = np.arange(1, 12, dtype=np.int32)
    times = np.cumsum(np.full(11, 5000, np.int32)).astype(np.int32)
    batch = helpers.padded([(items, times)], 10)
    params = initialise(model, batch)

    def value(table, column):
        replaced = {**params, "input": {**params["input"], "items": {"embedding": table}}}
        users = model.module.apply({"params": replaced}, batch, deterministic=True)
        return jnp.sum(users[0, column] * jnp.arange(16.0))

    table = params["input"]["items"]["embedding"]
    gradient = np.asarray(jax.jit(jax.grad(value), static_argnums=1)(table, 6))
    assert np.abs(gradient[1:8]).sum(-1).min() > 0
    np.testing.assert_array_equal(gradient[8:], 0)


@pytest.mark.parametrize("name", ["fuxi_alpha", "hstu"])
def test_time_difference_option_chooses_which_clock_the_query_reads(name):
    events = helpers.histories((12,), ITEMS, seed=3)
    batch = helpers.padded(events, 12)
    moved = {**batch, "query_times": batch["query_times"] + 10_000_000}
    request = make(name, embedding_dim=16, time_difference="request")
    items = make(name, embedding_dim=16, time_difference="items")
    params = initialise(request, batch)

    def last(model, b):
        return np.asarray(encode(model, params, b))[0, -1]

    assert np.abs(last(request, batch) - last(request, moved)).max() > 1e-4
    np.testing.assert_array_equal(last(items, batch), last(items, moved))


def test_semantic_divisor_length_equals_slots_at_full_length():
    """With a history of exactly n columns both divisors are n."""
    events = helpers.histories((16,), ITEMS, seed=4)
    batch = helpers.padded(events, 16)
    slots = make("fuxi_alpha", max_len=16, extra_slots=0, embedding_dim=16)
    length = make(
        "fuxi_alpha", max_len=16, extra_slots=0, embedding_dim=16, semantic_divisor="length"
    )
    params = initialise(slots, batch)
    full = encode(slots, params, batch), encode(length, params, batch)
    np.testing.assert_allclose(*full, atol=1e-6)
    short = helpers.padded(helpers.histories((5,), ITEMS, seed=5), 16)
    difference = np.abs(encode(slots, params, short) - encode(length, params, short)).max()
    assert difference > 1e-5


@pytest.mark.parametrize(
    "channels, width", [(("time",), 1), (("position", "semantic"), 2), (("semantic",), 1)]
)
def test_channel_ablations_shrink_the_block_and_ignore_the_channel(channels, width):
    model = make("fuxi_alpha", embedding_dim=16, v_dim=8, qk_dim=8, channels=channels)
    batch = helpers.padded(helpers.histories((9,), ITEMS), 9)
    params = initialise(model, batch)
    assert params["blocks"]["w0"]["kernel"].shape[1] == width * 8
    later = {**batch, "query_times": batch["query_times"] + 10_000_000}
    same = np.allclose(encode(model, params, batch), encode(model, params, later), atol=1e-7)
    assert same == ("time" not in channels)


@pytest.mark.parametrize("over", [dict(remat="nothing"), dict(remat="dots", scan_unroll=False)])
def test_remat_and_scan_change_nothing(over):
    batch = helpers.padded(helpers.histories((9, 4), ITEMS), 9)
    plain, other = (
        make("fuxi_alpha", embedding_dim=16),
        make("fuxi_alpha", embedding_dim=16, **over),
    )
    params = initialise(plain, batch)
    rng = jax.random.key(5)
    grads = [
        jax.jit(jax.grad(lambda p, m=m: m.loss(p, batch, rng).total))(params)
        for m in (plain, other)
    ]
    for a, b in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * (1 + np.abs(a).max()))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="unknown model 'fuxi'; did you mean 'fuxi_alpha'"):
        model_spec("fuxi")
    with pytest.raises(ValueError, match="channels=.*subset"):
        make("fuxi_alpha", channels=("tim",))
    with pytest.raises(ValueError, match="time_difference='now' is not one of request, items"):
        make("hstu", time_difference="now")
    with pytest.raises(ValueError, match="embedding_dim=50 is not divisible by num_heads=3"):
        make("sasrec", num_heads=3)
    with pytest.raises(ValueError, match="remat='all' is not a policy; allowed: none"):
        make("hstu", remat="all")
