"""The hash behind dropout and negatives: uniform, uncorrelated, a function of key and index."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from recsys_jax.sequential.randomness import dropout, hash_bits, uniform_items

N = 1 << 18


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_bits_are_uniform_in_high_and_low_bytes(seed):
    bits = np.asarray(hash_bits(jax.random.key(seed), (N,)))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((bits >> shift) & 255, minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-4


def test_each_bit_is_fair_and_neighbours_are_uncorrelated():
    bits = np.asarray(hash_bits(jax.random.key(3), (512, 512)))
    ones = (bits[None] >> np.arange(32)[:, None, None] & 1).reshape(32, -1).astype(float)
    error = np.abs(ones.mean(1) - 0.5) * 2 * np.sqrt(ones.shape[1])
    assert error.max() < 5
    uniform = bits / 2.0**32
    for a, b in ((uniform[:, 1:], uniform[:, :-1]), (uniform[1:], uniform[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_consecutive_keys_give_uncorrelated_streams():
    base = jax.random.key(7)
    streams = [
        np.asarray(hash_bits(jax.random.fold_in(base, step), (N,))) / 2.0**32 for step in range(6)
    ]
    for i in range(6):
        for j in range(i):
            assert abs(np.corrcoef(streams[i], streams[j])[0, 1]) < 5 / np.sqrt(N)
            assert np.mean(streams[i] == streams[j]) < 1e-4


def test_same_numbers_under_any_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    key = jax.random.key(1)
    plain = hash_bits(key, (64, 33))
    sharded = jax.jit(lambda k: hash_bits(k, (64, 33)), out_shardings=sharding)(key)
    np.testing.assert_array_equal(plain, sharded)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_and_the_rate(rate):
    out = np.asarray(dropout(jax.random.key(0), jnp.ones(N), rate))
    standard_error = np.sqrt(rate * (1 - rate) / N)
    assert abs((out == 0).mean() - rate) < 5 * standard_error
    assert abs(out.mean() - 1) < 5 * standard_error / (1 - rate)


def test_items_cover_the_catalogue_evenly():
    items = np.asarray(uniform_items(jax.random.key(5), (N,), 1683))
    assert items.min() == 1 and items.max() == 1683
    assert stats.chisquare(np.bincount(items, minlength=1684)[1:]).pvalue > 1e-4


def test_too_many_numbers_are_refused():
    with pytest.raises(ValueError, match="fewer than 2\\^32"):
        jax.eval_shape(lambda k: hash_bits(k, (2**16, 2**16)), jax.random.key(0))
