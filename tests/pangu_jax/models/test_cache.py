"""Prefill and decoding with a cache equal one pass over the whole rows."""

from __future__ import annotations

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.models import Decoder, create_cache

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import test_decoder as helpers  # noqa: E402


def problem(variant="qk_norm_stretched"):
    config = helpers.config_of(variant)
    params = {"params": helpers.parameters(config, np.float32)}
    tokens = np.random.default_rng(5).integers(0, 40, (3, 9)).astype(np.int32)
    apply = jax.jit(Decoder(config).apply)
    return config, params, tokens, apply


@pytest.mark.parametrize("pieces", [(9,), (4, 1, 1, 1, 1, 1), (1,) * 9, (5, 4)], ids=str)
def test_pieces_equal_the_whole(pieces):
    config, params, tokens, apply = problem()
    want = apply(params, tokens)
    cache = create_cache(config, 3, 12)
    start = 0
    for size in pieces:
        logits, cache = apply(params, tokens[:, start : start + size], cache=cache)
        np.testing.assert_allclose(logits, want[:, start : start + size], atol=3e-5)
        start += size
    assert int(cache.length) == 9
    assert (cache.segment_ids[:, 9:] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_unequal_length(side):
    """Prompts padded on either side, then decoded together at their own positions."""
    config, params, tokens, apply = problem()
    lengths, width = np.array([2, 5, 3]), 5
    want = apply(params, tokens)
    prompt, ids, positions = (np.zeros((3, width), np.int32) for _ in range(3))
    for row, size in enumerate(lengths):
        part = slice(width - size, width) if side == "left" else slice(0, size)
        prompt[row, part] = tokens[row, :size]
        ids[row, part] = 1
        positions[row, part] = np.arange(size)
    cache = create_cache(config, 3, 10)
    logits, cache = apply(params, prompt, ids, positions, cache=cache)
    for row, size in enumerate(lengths):
        last = width - 1 if side == "left" else size - 1
        np.testing.assert_allclose(logits[row, last], want[row, size - 1], atol=3e-5)
    for step in range(3):
        at = (lengths + step)[:, None].astype(np.int32)
        new = np.take_along_axis(tokens, at, 1)
        logits, cache = apply(params, new, np.ones_like(new), at, cache=cache)
        for row in range(3):
            np.testing.assert_allclose(logits[row, 0], want[row, lengths[row] + step], atol=3e-5)


def test_cache_of_another_type_and_the_shape_of_its_arrays():
    config, params, tokens, apply = problem("pre_ln")
    cache = create_cache(config, 3, 16, dtype="bfloat16")
    assert cache.k.shape == (2, 3, 16, 2, 6) and cache.k.dtype == jnp.bfloat16
    assert cache.capacity == 16
    logits, cache = apply(params, tokens, cache=cache)
    assert cache.k.dtype == jnp.bfloat16
    want = apply(params, tokens)
    assert np.abs(logits - want).max() < 0.1 * np.abs(want).max()


def test_a_full_cache_is_refused():
    config, params, tokens, _ = problem("pre_ln")
    apply = functools.partial(Decoder(config).apply, params)
    cache = create_cache(config, 3, 8)
    with pytest.raises(ValueError, match="8 slots, 0 of them used, and 9 more"):
        apply(tokens, cache=cache)
    _, cache = apply(tokens[:, :6], cache=cache)
    with pytest.raises(ValueError, match="8 slots, 6 of them used, and 3 more"):
        apply(tokens[:, 6:], cache=cache)
