"""Weights of any rank, the product with them, and the constraints on activations.

A kernel is an array, or one of the things that stand for one in a product: `FlatKernel`,
`Int8Kernel`, and `LoraKernel`, which is any of these with adapters beside it.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax

from pangu_jax.models.contraction import contraction
from pangu_jax.models.init import constant, normal
from pangu_jax.models.lora.kernel import LoraKernel, adapted, low_rank_product
from pangu_jax.models.quantized import Int8Kernel, input_axes, int8_product, rows_product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlatKernel:
    """A weight (I..., O...) as one matrix (I, O), which XLA on CPU multiplies without copying it.

    matrix: (I, O). shape: of the weight.
    """

    matrix: jax.Array
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})


Kernel = jax.Array | FlatKernel | Int8Kernel | LoraKernel

# Of the residual stream (B, T, D). Its sequence axis has a name of its own, so that it can be
# split where norms and residual sums run (sequence parallelism) and whole inside attention.
RESIDUAL = ("batch", "residual_sequence", None)


class Weights(nn.Module):
    """A kernel and, with `bias_rank`, a bias of its trailing axes, cast to `dtype`: (kernel, bias).

    bias is None for bias_rank 0. What stands for an array under 'kernel' is returned as it is;
    where the collection 'lora' holds adapters for it, a `LoraKernel` is.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    std: float
    dtype: str
    bias_rank: int = 0

    @nn.compact
    def __call__(self) -> tuple[Kernel, jax.Array | None]:
        kernel = adapted(self, self._kernel(), self.shape)
        if not self.bias_rank:
            return kernel, None
        axes, shape = self.axes[-self.bias_rank :], self.shape[-self.bias_rank :]
        return kernel, self.param("bias", constant(0.0, *axes), shape).astype(self.dtype)

    def _kernel(self) -> Kernel:
        stored = self.get_variable("params", "kernel") if not self.is_initializing() else None
        if isinstance(stored, FlatKernel | Int8Kernel):
            return stored
        return self.param("kernel", normal(self.std, *self.axes), self.shape).astype(self.dtype)


def product(equation: str, x: jax.Array, kernel: Kernel) -> jax.Array:
    """einsum(equation, x, kernel), in which the kernel's axes are inputs first, then outputs."""
    if isinstance(kernel, LoraKernel):
        base = product(equation, x, kernel.base)
        return (base + low_rank_product(equation, x, kernel)).astype(base.dtype)
    if isinstance(kernel, Int8Kernel):
        return int8_product(x, kernel)
    if isinstance(kernel, FlatKernel):
        return _flat_product(x, kernel)
    return contraction(equation, x, kernel)


def _flat_product(x: jax.Array, kernel: FlatKernel) -> jax.Array:
    """In the type of the matrix, summed in float32, returned in the type of x."""
    inputs = kernel.matrix.shape[0]
    axes = input_axes(kernel.shape, inputs)
    rows = x.reshape(-1, inputs).astype(kernel.matrix.dtype)
    y = rows_product(rows, kernel.matrix, (((1,), (0,)), ((), ())))
    return y.astype(x.dtype).reshape(*x.shape[: x.ndim - axes], *kernel.shape[axes:])


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """x with its sharding constrained by logical names; nothing without rules and a mesh."""
    return nn.with_logical_constraint(x, axes)
