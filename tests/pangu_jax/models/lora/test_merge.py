"""Adapters inside the weights: the same model, and the base back bit for bit."""

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

from pangu_jax.models.lora import LoraError, bind, merge, unmerge  # noqa: E402
from pangu_jax.models.quantized import quantize  # noqa: E402

ADAPTERS = make.adapter("a"), make.adapter("b", rank=5, seed=2, targets=("q", "down"), rslora=True)


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@settings(max_examples=5)
@given(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_merged_is_adapted(first, second):
    merged = merge(merge(make.base(), ADAPTERS[0], first), ADAPTERS[1], second)
    weights = np.array([[first, second]], np.float32)
    make.close(make.logits(params=merged.params), make.logits(bind(ADAPTERS, weights)), 1e-4)
    assert merged.adapters == (("a", first), ("b", second))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_unmerging_restores_every_bit(dtype):
    base = jax.tree.map(lambda x: x.astype(dtype), make.base())
    once = merge(base, ADAPTERS[1], 1.7)
    twice = merge(once, ADAPTERS[0], -0.3)
    assert not same_bits(twice.params, base)
    assert jax.tree.map(lambda x: x.dtype, twice.params) == jax.tree.map(lambda x: x.dtype, base)
    assert same_bits(unmerge(twice), base) and same_bits(unmerge(once), base)


def test_subtracting_would_not_restore_it():
    """The reason why the replaced kernels are kept."""
    there = merge(make.base(), ADAPTERS[0])
    back = merge(there.params, ADAPTERS[0], -1.0)
    assert not same_bits(back.params, make.base())


def test_a_merge_keeps_no_more_than_it_replaces():
    merged = merge(make.base(), ADAPTERS[1])
    assert set(merged.originals["layers"]) == {"attn", "mlp"}
    assert list(merged.originals["layers"]["attn"]) == ["q"]
    layers = merged.params["layers"], make.base()["layers"]
    assert layers[0]["attn"]["k"]["kernel"] is layers[1]["attn"]["k"]["kernel"]


def test_int8_and_foreign_bases_are_refused():
    layers = make.base()["layers"]
    q = jax.vmap(lambda kernel: quantize(kernel, 1))(layers["attn"]["q"]["kernel"])
    attn = layers["attn"] | {"q": layers["attn"]["q"] | {"kernel": q}}
    base = make.base() | {"layers": layers | {"attn": attn}}
    with pytest.raises(LoraError, match="layers/attn/q/kernel is a Int8Kernel"):
        merge(base, ADAPTERS[0])
    small = jax.tree.map(lambda x: x[:1], make.base())
    with pytest.raises(LoraError, match="belongs to another base"):
        merge(small, ADAPTERS[0])
    with pytest.raises(LoraError, match="is missing"):
        merge({"embed": jnp.zeros(3)}, ADAPTERS[0])
