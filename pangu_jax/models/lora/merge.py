"""An adapter added into the weights of its base, and taken out again without a trace.

Floating-point addition cannot be undone: (W + d) - d differs from W wherever W + d was rounded. So
a merge keeps the kernels that it replaced, and unmerging puts those back. While a merge lasts, the
merged layers' kernels exist twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.models.lora.adapter import Adapter
from pangu_jax.models.lora.config import TARGETS, LoraError
from pangu_jax.models.lora.targets import get_target, path_of, set_target


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Merged:
    """Parameters with adapters in them.

    params: what a decoder is applied with. originals: the kernels of the base that were replaced,
    in a tree like that of the parameters. adapters: (name, weight) of each merge, oldest first.
    """

    params: Any
    originals: Any
    adapters: tuple[tuple[str, float], ...] = dataclasses.field(metadata={"static": True})


def merge(base: Mapping[str, Any] | Merged, adapter: Adapter, weight: float = 1.0) -> Merged:
    """Kernels become W + weight * scale * A B, summed in float32 or wider, in the type of W.

    Args:
      base: parameters of a stacked decoder, or an earlier merge. adapter: of that base.

    Raises:
      LoraError: kernels that are not arrays (int8), missing or of another shape.
    """
    before = base if isinstance(base, Merged) else Merged(nn.unbox(base), {}, ())
    params, originals = before.params, before.originals
    for name in TARGETS:
        factors = get_target(nn.unbox(adapter.params), name)
        if factors is None:
            continue
        held = get_target(params, name)
        kernel = None if held is None else held["kernel"]
        _check(adapter, name, kernel, factors)
        if get_target(originals, name) is None:
            originals = _replaced(originals, name, {"kernel": kernel})
        delta = weight * adapter.config.scale * _product(kernel.dtype, factors)
        merged = (kernel.astype(delta.dtype) + delta).astype(kernel.dtype)
        params = _replaced(params, name, {**held, "kernel": merged})
    return Merged(params, originals, (*before.adapters, (adapter.name, float(weight))))


def unmerge(merged: Merged) -> dict[str, Any]:
    """The parameters before the first merge, bit for bit."""
    params = merged.params
    for name in TARGETS:
        original = get_target(merged.originals, name)
        if original is not None:
            params = _replaced(params, name, {**get_target(params, name), **original})
    return params


def _product(dtype, factors) -> jax.Array:
    """A B (L, I..., O...) of every layer, in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    a, b = factors["a"].astype(wide), factors["b"].astype(wide)
    flat = jnp.einsum(
        "lir,lro->lio",
        a.reshape(a.shape[0], -1, a.shape[-1]),
        b.reshape(*b.shape[:2], -1),
        precision=jax.lax.Precision.HIGHEST,
    )
    return flat.reshape(*a.shape[:-1], *b.shape[2:])


def _replaced(tree: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A copy of the tree, shared except on the way to the target."""
    copy = dict(tree)
    node = copy
    for key in path_of(name)[:-1]:
        node[key] = dict(node.get(key, {}))
        node = node[key]
    set_target(copy, name, value)
    return copy


def _check(adapter: Adapter, name: str, kernel: Any, factors: Mapping[str, Any]) -> None:
    path = "/".join((*path_of(name), "kernel"))
    if not hasattr(kernel, "dtype") or not jnp.issubdtype(kernel.dtype, jnp.floating):
        found = (
            "missing" if kernel is None else f"a {type(kernel).__name__}, not an array of floats"
        )
        raise LoraError(
            f"{path} is {found}; merge adapter {adapter.name!r} into float weights and quantise "
            "the result, or run it beside the base with `bind`."
        )
    shape = (*factors["a"].shape[:-1], *factors["b"].shape[2:])
    if shape != tuple(kernel.shape):
        raise LoraError(
            f"{path} has shape {list(kernel.shape)}, adapter {adapter.name!r} makes {list(shape)}: "
            "it belongs to another base."
        )
