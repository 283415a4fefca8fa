"""A tiny base, adapters with random contents, and runs of the decoder with them."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models import Decoder, preset
from pangu_jax.models.lora import Adapter, LoraConfig, fingerprint, init_lora

CONFIG = preset(
    "debug", vocab_size=32, num_layers=2, hidden_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2,
    head_dim=6, qkv_bias=True, out_bias=True,
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 32, (4, 7)).astype(np.int32)


@functools.cache
def base(config=CONFIG):
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), TOKENS[:1])
    rng = np.random.default_rng(3)

    def draw(path, x):
        gain = path[-1].key == "scale"
        return jnp.asarray(gain + 0.3 * rng.normal(size=x.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, nn.unbox(boxed)["params"])


@functools.cache
def adapter(name="a", rank=3, seed=1, config=CONFIG, **choices):
    """An adapter whose A and B are both random."""
    lora = LoraConfig(**({"rank": rank, "alpha": 1.5 * rank} | choices))
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32),
        init_lora(config, lora, jax.random.key(0)),
    )
    return Adapter(name, lora, params, fingerprint(config, base(config)))


@functools.cache
def _jitted(config):
    return jax.jit(Decoder(config).apply)


def logits(variables=None, tokens=TOKENS, params=None, config=CONFIG, **kwargs):
    """Of the base, with the collection 'lora' given."""
    params = base(config) if params is None else params
    collections = {"params": params} | ({} if variables is None else {"lora": variables})
    return np.asarray(_jitted(config)(collections, tokens, **kwargs))


def close(got, want, tolerance=2e-5):
    np.testing.assert_allclose(got, want, atol=tolerance, rtol=tolerance)
