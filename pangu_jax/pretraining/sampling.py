"""Text out of a decoder: prefill, then one token at a time with the key-value cache."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from pangu_jax.models import Decoder, DecoderConfig
from pangu_jax.models.cache import create_cache


def sample_tokens(
    config: DecoderConfig, params: Any, prompt: list[int], *, max_tokens: int, eod_id: int,
    temperature: float = 1.0, top_k: int = 0, seed: int = 0,
) -> list[int]:  # fmt: skip
    """Continues `prompt` by up to `max_tokens` tokens, stopping before `eod_id`.

    Args:
      temperature: 0 takes the most probable token. top_k: 0 keeps all tokens.

    Raises:
      ValueError: an empty prompt, or ids beyond the vocabulary.
    """
    if not prompt:
        raise ValueError("the prompt has no tokens; give --config.generate.prompt some text.")
    if max(prompt) >= config.vocab_size or min(prompt) < 0:
        raise ValueError(
            f"the prompt has token {max(prompt)}, but the model's vocabulary ends at "
            f"{config.vocab_size - 1}: tokenizer and checkpoint do not belong together."
        )
    capacity = len(prompt) + max_tokens
    run = functools.partial(_sample, config, max_tokens, eod_id, top_k, capacity)
    tokens = run(
        params, jnp.asarray([prompt], jnp.int32), jnp.float32(temperature), jax.random.key(seed)
    )
    out = tokens.tolist()
    return out[: out.index(eod_id)] if eod_id in out else out


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _sample(config, max_tokens, eod_id, top_k, capacity, params, prompt, temperature, key):
    model = Decoder(config)

    def choose(logits, key):
        if top_k:
            least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
            logits = jnp.where(logits < least, -jnp.inf, logits)
        drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, drawn, jnp.argmax(logits, -1)).astype(jnp.int32)

    cache = create_cache(config, 1, capacity)
    logits, cache = model.apply({"params": params}, prompt, cache=cache)
    first = choose(logits[:, -1], jax.random.fold_in(key, 0))
    tokens = jnp.full((max_tokens,), eod_id, jnp.int32).at[0].set(first[0])

    def more(carry):
        index, tokens, _ = carry
        return (index < max_tokens) & (tokens[index - 1] != eod_id)

    def step(carry):
        index, tokens, cache = carry
        logits, cache = model.apply({"params": params}, tokens[index - 1][None, None], cache=cache)
        token = choose(logits[:, -1], jax.random.fold_in(key, index))
        return index + 1, tokens.at[index].set(token[0]), cache

    return jax.lax.while_loop(more, step, (jnp.int32(1), tokens, cache))[1]
