"""A kernel with low-rank adapters beside it, and what they add to the product.

Letters: B rows, M adapters, r rank (of the widest adapter), I... inputs and O... outputs of a
weight in its own axes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from pangu_jax.models.contraction import contraction

COLLECTION = "lora"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LoraKernel:
    """Stands for the weight  base + sum_m mix[b, m] * scale[m] * a[m] b[m]  of row b.

    base: the weight (I..., O...), an array or what else stands for one.
    a: (M, I..., r). b: (M, r, O...). scale: (M,). mix: (B, M), or (1, M) for all rows alike.
    dropout: (M,), chance to zero an input of a; used only where `key` is given.
    """

    base: Any
    a: jax.Array
    b: jax.Array
    scale: jax.Array
    mix: jax.Array
    dropout: jax.Array | None = None
    key: jax.Array | None = None


def adapted(module: nn.Module, base: Any, shape: tuple[int, ...]) -> Any:
    """`base`, or a `LoraKernel` where the module's scope holds adapters for it.

    Args:
      module: the owner of the kernel, bound. base: the kernel. shape: of the weight, (I..., O...).

    Raises:
      ValueError: adapters of another shape.
    """
    if not module.has_variable(COLLECTION, "a"):
        return base
    held = module.scope.variables()[COLLECTION]
    leaves = {name: nn.unbox(held[name]) for name in ("a", "b", "scale", "mix")}
    a, b = leaves["a"], leaves["b"]
    if (*a.shape[1:-1], *b.shape[2:]) != tuple(shape) or a.shape[-1] != b.shape[1]:
        raise ValueError(
            f"{'/'.join(module.path)} has shape {tuple(shape)}, but the adapters bound to it have "
            f"A {tuple(a.shape)} and B {tuple(b.shape)} (adapters, inputs, rank and adapters, "
            "rank, outputs): they belong to another base model."
        )
    dropout = key = None
    if "dropout" in held and module.has_rng("dropout"):
        dropout, key = held["dropout"], module.make_rng("dropout")
    return LoraKernel(base=base, **leaves, dropout=dropout, key=key)


def low_rank_product(equation: str, x: jax.Array, kernel: LoraKernel) -> jax.Array:
    """What the adapters add to einsum(equation, x, base), summed in float32 or wider.

    Both factors are multiplied in the type of x; rows are the first axis of x.

    Raises:
      ValueError: mix has another number of rows than x.
    """
    operands, of_y = equation.split("->")
    of_x, of_kernel = operands.split(",")
    inputs = "".join(axis for axis in of_kernel if axis in of_x)
    outputs = "".join(axis for axis in of_kernel if axis not in of_x)
    lead = "".join(axis for axis in of_x if axis not in inputs)
    if kernel.mix.shape[0] not in (1, x.shape[0]):
        raise ValueError(
            f"Adapter weights are given for {kernel.mix.shape[0]} rows, but the batch has "
            f"{x.shape[0]}; bind a row of weights per example, or one row for all."
        )
    wide = jnp.promote_types(x.dtype, jnp.float32)
    a, b = kernel.a.astype(x.dtype), kernel.b.astype(x.dtype)
    if kernel.key is None:
        down = f"{of_x},m{inputs}r->{lead}mr"
    else:
        x = _dropped(x, kernel.dropout, kernel.key)
        down = f"m{of_x},m{inputs}r->{lead}mr"
    hidden = contraction(down, x, a, wide)
    weight = kernel.mix.astype(wide) * kernel.scale.astype(wide)
    weight = jnp.expand_dims(weight, (*range(1, len(lead)), len(lead) + 1))
    hidden = (hidden * weight).astype(x.dtype)
    return contraction(f"{lead}mr,mr{outputs}->{of_y}", hidden, b, wide)


def _dropped(x: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """(M, *x.shape): x once per adapter, inputs zeroed with its rate, the others scaled up."""
    keep = (1 - rate).reshape(-1, *(1,) * x.ndim)
    mask = jax.random.bernoulli(key, keep, (rate.shape[0], *x.shape))
    return jnp.where(mask, x / keep.astype(x.dtype), 0)
