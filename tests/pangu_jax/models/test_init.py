"""The state at step 0: deviations, gains, residual growth, the first loss, and the trap of eps."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import PRESETS, Decoder, cross_entropy, preset
from pangu_jax.models.init import post_norm_gain, weight_std


def test_numbers_of_ultra():
    """Specification 7.2: gains 0.02919 and 0.04456, deviation 6.579e-4; 1.4 for 'traditional'."""
    config = PRESETS["ultra_135b"]
    assert post_norm_gain(config, "attn") == pytest.approx(0.0291892, rel=1e-5)
    assert post_norm_gain(config, "mlp") == pytest.approx(0.0445574, rel=1e-5)
    assert weight_std(config) == weight_std(config, residual=True)
    assert weight_std(config) == pytest.approx(6.5793e-4, rel=1e-4)
    old = preset("ultra_135b", init="traditional")
    assert weight_std(old) == pytest.approx(5.7054e-3, rel=1e-4)
    assert weight_std(old, residual=True) == pytest.approx(5.8847e-4, rel=1e-4)


def test_closed_form_of_the_two_constants():
    """Reconstructed (specification 1.2): sqrt(0.08) and sqrt(0.08 F / D), equal to three digits."""
    config = PRESETS["ultra_135b"]
    assert round(math.sqrt(0.08), 3) == config.c_attn
    assert round(math.sqrt(0.08 * config.mlp_dim / config.hidden_dim), 3) == config.c_mlp


def draw(config, seed=0):
    model = Decoder(config)
    tokens = jnp.zeros((1, 2), jnp.int32)
    return nn.unbox(jax.jit(model.init)(jax.random.key(seed), tokens))["params"]


@pytest.mark.parametrize("init", ["tiny", "traditional"])
def test_every_matrix_has_its_deviation_and_is_normal(init):
    config = preset("debug", init=init, hidden_dim=96, num_layers=3)
    for path, x in jax.tree_util.tree_leaves_with_path(draw(config)):
        keys = [key.key for key in path]
        if keys[-1] == "scale":
            continue
        std = weight_std(config, residual=keys[-2] in ("o", "down"))
        if keys[0] == "embed":
            std = 0.5
        slack = 4 / math.sqrt(2 * x.size)  # four deviations of a sample's deviation
        assert np.std(x) == pytest.approx(std, rel=slack), keys
        # Truncation at two deviations would leave nothing beyond; a normal has 4.6 percent.
        assert np.mean(np.abs(x) > 2 * std) == pytest.approx(0.0455, abs=0.01), keys


@pytest.mark.parametrize(
    "scheme, gamma, attn, mlp",
    [
        ("dssn", "one", 0.283 / math.sqrt(3), 0.432 / math.sqrt(3)),
        ("sandwich", "one", 1.0, 1.0),
        ("sandwich", "c", 0.283, 0.432),
    ],
)
def test_gains(scheme, gamma, attn, mlp):
    config = preset("debug", norm_scheme=scheme, sandwich_gamma=gamma, num_layers=3)
    params = draw(config)
    layers = params["layers"]
    np.testing.assert_allclose(layers["post_attn_norm"]["scale"], attn, rtol=1e-6)
    np.testing.assert_allclose(layers["post_mlp_norm"]["scale"], mlp, rtol=1e-6)
    for one in (layers["attn_norm"], layers["mlp_norm"], params["final_norm"]):
        assert (one["scale"] == 1).all()


def captured(config, rows=4, length=32):
    params = draw(config)
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 0, config.vocab_size)
    run = jax.jit(lambda p: Decoder(config).apply({"params": p}, tokens, method="run",
                                                  capture=("hidden", "statistics")))  # fmt: skip
    return tokens, run(params)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


WIDE = dict(hidden_dim=192, mlp_dim=448, num_heads=4, head_dim=48, num_kv_heads=2)


@pytest.mark.parametrize("layers", [2, 8, 24])
def test_residual_stream_ends_at_the_same_size_at_every_depth(layers):
    """DSSN, eps that does not interfere, traditional weights: sqrt(0.25 + 0.0801 + 0.1866) = 0.719."""  # noqa: E501
    config = preset("debug", num_layers=layers, init="traditional", norm_eps=1e-12, **WIDE)
    _, out = captured(config)
    assert rms(out.captured["hidden"][0]) == pytest.approx(0.5, rel=0.02)
    assert rms(out.captured["hidden"][-1]) == pytest.approx(0.719, rel=0.06)


def test_plain_sandwich_grows_with_depth():
    """Gain 1: sqrt(0.25 + 2 L); gain c: sqrt(0.25 + L (c_attn^2 + c_mlp^2))."""
    shared = dict(num_layers=8, init="traditional", norm_eps=1e-12, norm_scheme="sandwich", **WIDE)
    for gamma, want in (("one", math.sqrt(16.25)), ("c", math.sqrt(0.25 + 8 * 0.2667))):
        _, out = captured(preset("debug", sandwich_gamma=gamma, **shared))
        assert rms(out.captured["hidden"][-1]) == pytest.approx(want, rel=0.12)


def test_first_loss_is_that_of_a_uniform_guess():
    """TinyInit head: logits of deviation 1 / sqrt(2 L), so ln V + 1 / (4 L)."""
    config = preset("debug", vocab_size=4096, num_layers=4)
    tokens, out = captured(config, rows=8, length=64)
    sums = cross_entropy(out.hidden, out.head, jnp.roll(tokens, -1, 1))
    assert float(sums.total / sums.weight) == pytest.approx(math.log(4096) + 1 / 16, abs=0.03)
    # The same sum for Ultra is the specification's 11.943.
    assert math.log(153_376) + 1 / (4 * 94) == pytest.approx(11.943, abs=5e-4)


def test_usual_eps_stops_the_post_norms_from_normalising_under_tiny_init():
    """The trap of specification 1.5: branch outputs of a deep TinyInit network are of eps's size.

    With eps 1e-5 the stream barely grows over 48 layers; with 1e-12 it reaches the 0.719 of the
    paper's formula. The branch's own size follows 1/2 * 1/(2 L) * sqrt(F / (2 D L)).
    """
    shared = dict(num_layers=48, init="tiny", **WIDE)
    _, tiny = captured(preset("debug", norm_eps=1e-12, **shared))
    _, usual = captured(preset("debug", norm_eps=1e-5, **shared))
    branch = np.asarray(tiny.captured["statistics"]["mlp"]["std"])
    want = 0.5 / (2 * 48) * math.sqrt(448 / 192 / (2 * 48))
    np.testing.assert_allclose(branch.mean(), want, rtol=0.15)
    assert branch.mean() ** 2 < 1e-5
    assert rms(tiny.captured["hidden"][-1]) == pytest.approx(0.719, rel=0.08)
    grown = rms(usual.captured["hidden"][-1]) ** 2 - 0.25
    assert grown < 0.35 * (0.719**2 - 0.25)
