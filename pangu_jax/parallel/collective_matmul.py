"""Products with weights that are divided over a mesh axis, with the exchange of activations.

A block's way in multiplies with column shards and needs the whole sequence; its way back multiplies
with row shards and leaves partial sums. With sequence parallelism the residual stream between the
two is divided by positions: `gather_products` collects them before the products, and
`product_scatter` sums and divides the result again. Without it the stream is whole on every rank:
`copy_products` and `product_sum`.

With `overlap`, the collectives are rings of C - 1 hops, each beside the product with the chunk at
hand: the counterpart of MC2 in Pangu Ultra (arXiv 2504.07866, section 4.3), by the decomposition of
Wang et al. (ASPLOS 2023). Values are the same up to the order and the rounding of sums.

All run inside `jax.shard_map(..., check_vma=False)` and write out what the backward pass exchanges:
JAX transposes no communication here. The way in keeps its input divided and gathers it a second
time for the gradient of the kernels: 1 / C of the memory for one more all-gather, which does not
wait for the cotangent. Where both passes stand in one computation, as in a layer that is
rematerialised, XLA merges two gathers without `overlap`, and the whole x lives as long as that
layer.

Types: what travels, forward and backward, has the type of x. Partial sums in the ring are added in
float32 (float64 for float64) and rounded to the type of x for every hop: a 16-bit ring moves no
more bytes than a 16-bit reduce-scatter, and rounds as often as there are hops.

Letters: B rows, T positions, S = T / C positions of a rank, D hidden width, F columns (any number
of axes) of a rank, C ranks of the axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.parallel.mesh import MeshError

_SEQUENCE = 1


def gather_products(
    x: jax.Array,
    kernels: Sequence[jax.Array],
    *,
    equations: Sequence[str],
    axis_name: str,
    overlap: bool,
) -> tuple[jax.Array, ...]:
    """Products of the whole sequence with column shards of kernels.

    Args:
      x: [B, S, D], this rank's positions.
      kernels: the local column shards, each [D, F].
      equations: one einsum per kernel, such as 'btd,df->btf'; axis 1 is the sequence.
      axis_name: mesh axis that divides both positions and columns.
      overlap: a ring of chunks instead of one all-gather.

    Returns:
      One [B, T, F] per kernel.

    Backward: dx is summed over the ranks and divided by positions (the ring or one
    reduce-scatter); the kernels' gradients come from x gathered anew.

    Raises:
      ValueError: an equation whose second axis is not that of a sequence.
    """
    equations = _parsed(equations, kernels)
    with jax.named_scope("gather_products"):
        return _gather_products(equations, axis_name, overlap, x, tuple(kernels))


def product_scatter(
    equation: str, x: jax.Array, kernel: jax.Array, *, axis_name: str, overlap: bool
) -> jax.Array:
    """Product with a row shard of a kernel, summed over the ranks and divided by positions.

    Args:
      equation: an einsum such as 'btf,fd->btd'; axis 1 is the sequence.
      x: [B, T, F], the whole sequence of this rank's columns.
      kernel: [F, D], the local row shard.
      axis_name: mesh axis that divides columns and, in the result, positions.
      overlap: a ring in which the sums travel, instead of one reduce-scatter.

    Returns:
      [B, S, D] in the type of x.

    Backward: dy is gathered (the ring or one all-gather).

    Raises:
      MeshError: the axis does not divide the sequence.
      ValueError: as in `gather_products`.
    """
    (parsed,) = _parsed((equation,), (kernel,))
    ranks = jax.lax.axis_size(axis_name)
    if x.shape[_SEQUENCE] % ranks:
        raise MeshError(
            f"A sequence of {x.shape[_SEQUENCE]} positions cannot be divided over the {ranks} "
            f"devices of mesh axis {axis_name!r}; make its length a multiple of {ranks}, or turn "
            "sequence parallelism off."
        )
    with jax.named_scope("product_scatter"):
        return _product_scatter(parsed, axis_name, overlap, x, kernel)


def copy_products(
    x: jax.Array, kernels: Sequence[jax.Array], *, equations: Sequence[str], axis_name: str
) -> tuple[jax.Array, ...]:
    """`gather_products` for an x [B, T, D] that every rank holds whole: no exchange forward.

    Backward, dx is summed over the ranks by one all-reduce. There is no form with overlap: what
    hides communication behind chunks of the sequence needs the sequence divided.
    """
    with jax.named_scope("copy_products"):
        return _copy_products(_parsed(equations, kernels), axis_name, x, tuple(kernels))


def product_sum(equation: str, x: jax.Array, kernel: jax.Array, *, axis_name: str) -> jax.Array:
    """`product_scatter` with the whole sum [B, T, D] on every rank, by one all-reduce.

    Backward, dy is taken to be the same on every rank; nothing is exchanged.
    """
    (parsed,) = _parsed((equation,), (kernel,))
    with jax.named_scope("product_sum"):
        return _product_sum(parsed, axis_name, x, kernel)


class _Equation(NamedTuple):
    """Axes of an einsum x, kernel -> y, and the products that its gradients are.

    The kernel's gradient is formed in the kernel's own order, as `models.projection.product` does.
    """

    of_x: str
    of_kernel: str
    of_y: str

    def product(self, x, kernel, **options):
        return jnp.einsum(f"{self.of_x},{self.of_kernel}->{self.of_y}", x, kernel, **options)

    def d_x(self, dy, kernel, **options):
        return jnp.einsum(f"{self.of_y},{self.of_kernel}->{self.of_x}", dy, kernel, **options)

    def d_kernel(self, x, dy, kernel):
        d_kernel = jnp.einsum(f"{self.of_x},{self.of_y}->{self.of_kernel}", x, dy)
        return d_kernel.astype(kernel.dtype)


def _parsed(equations, kernels):
    if len(equations) != len(kernels):
        raise ValueError(f"There are {len(equations)} equations for {len(kernels)} kernels.")
    parsed = []
    for equation in equations:
        operands, of_y = equation.replace(" ", "").split("->")
        of_x, of_kernel = operands.split(",")
        if of_x[:2] != of_y[:2] or of_x[1] in of_kernel:
            raise ValueError(
                f"equation {equation!r} must begin with the same two axes, rows and sequence, in x "
                "and in the result, such as 'btd,df->btf', and the kernel must lack them."
            )
        parsed.append(_Equation(of_x, of_kernel, of_y))
    return tuple(parsed)


def _after(x: jax.Array, done: Sequence[jax.Array]) -> jax.Array:
    """x, not to be used before `done` is there.

    Holds the steps of a ring in a row. Products of several chunks with one kernel do not depend on
    each other, and XLA's compiler for GPUs would merge them into one that waits for the last chunk,
    or send all chunks before the first product.
    """
    return jax.lax.optimization_barrier((x, *done))[0] if done else x


def _assembled(
    parts: Iterator[tuple[jax.Array, tuple[jax.Array, ...]]], ranks: int
) -> tuple[jax.Array, ...]:
    """Whole sequences [B, T, ...] from (rank, chunks [B, S, ...]), each written into its place."""
    whole: list[jax.Array] = []
    for rank, chunks in parts:
        if not whole:
            shapes = [(x.shape[0], x.shape[1] * ranks, *x.shape[2:]) for x in chunks]
            whole = [jnp.zeros(s, x.dtype) for s, x in zip(shapes, chunks, strict=True)]
        for n, chunk in enumerate(chunks):
            start = rank * chunk.shape[_SEQUENCE]
            whole[n] = jax.lax.dynamic_update_slice_in_dim(whole[n], chunk, start, _SEQUENCE)
    return tuple(whole)


def _gather(x, axis_name, overlap, then=None):
    """The whole sequence [B, T, ...] of x [B, S, ...], and of what `then` makes of its chunks.

    `then` takes positions [B, s, ...] to a tuple of arrays [B, s, ...], position by position.
    """
    then = then or (lambda chunk: ())
    if not overlap:
        x = jax.lax.all_gather(x, axis_name, axis=_SEQUENCE, tiled=True)
        return x, *then(x)

    def parts(chunk):
        ranks, rank = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
        pairs = [(a, (a + 1) % ranks) for a in range(ranks)]
        done = ()
        for hop in range(ranks):
            chunk = _after(chunk, done)
            following = jax.lax.ppermute(chunk, axis_name, pairs) if hop < ranks - 1 else None
            done = then(chunk)
            yield (rank - hop) % ranks, (chunk, *done)
            chunk = following

    return _assembled(parts(x), jax.lax.axis_size(axis_name))


def _scatter(summand: Callable, axis_name, overlap, length, dtype):
    """Sum over the ranks of `summand`, divided by positions.

    Args:
      summand: from a function on [B, T, ...] arrays that takes this chunk's positions out of them,
        to this rank's part of the sum for those positions.
      axis_name, overlap: as in `product_scatter`.
      length: T.
      dtype: of what travels and of the result.
    """
    if not overlap:
        whole = summand(lambda x: x).astype(dtype)
        return jax.lax.psum_scatter(whole, axis_name, scatter_dimension=_SEQUENCE, tiled=True)
    ranks, rank = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
    size = length // ranks
    # Against the direction of `_gather`, so that the two rings of a backward pass can use both
    # directions of a link.
    pairs = [(a, (a - 1) % ranks) for a in range(ranks)]
    total, done = None, ()
    for hop in range(ranks):
        arrived = None if total is None else jax.lax.ppermute(total.astype(dtype), axis_name, pairs)
        start = (rank + 1 + hop) % ranks * size

        def chunk(x, start=start, done=done):
            return jax.lax.dynamic_slice_in_dim(_after(x, done), start, size, _SEQUENCE)

        # A product that is fused with the sum, as XLA for TPUs would, waits for the hop.
        part = jax.lax.optimization_barrier(summand(chunk))
        total, done = (part if arrived is None else arrived.astype(part.dtype) + part), (part,)
    return total.astype(dtype)


def _summed_d_x(equations, dys, kernels, dtype):
    """Sum of the products' gradients by their common x, in float32 if there is anything to add."""
    acc = jnp.promote_types(dtype, jnp.float32)
    terms = zip(equations, dys, kernels, strict=True)
    return sum(e.d_x(dy, kernel, preferred_element_type=acc) for e, dy, kernel in terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gather_products(equations, axis_name, overlap, x, kernels):
    def products(x):
        return tuple(e.product(x, kernel) for e, kernel in zip(equations, kernels, strict=True))

    return _gather(x, axis_name, overlap, products)[1:]


def _gather_products_forward(equations, axis_name, overlap, x, kernels):
    return _gather_products(equations, axis_name, overlap, x, kernels), (x, kernels)


def _gather_products_backward(equations, axis_name, overlap, residuals, dys):
    x, kernels = residuals
    (whole,) = _gather(x, axis_name, overlap)

    def summand(chunk):
        return _summed_d_x(equations, [chunk(dy) for dy in dys], kernels, x.dtype)

    dx = _scatter(summand, axis_name, overlap, whole.shape[_SEQUENCE], x.dtype)
    terms = zip(equations, dys, kernels, strict=True)
    return dx, tuple(e.d_kernel(whole, dy, kernel) for e, dy, kernel in terms)


_gather_products.defvjp(_gather_products_forward, _gather_products_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _product_scatter(equation, axis_name, overlap, x, kernel):
    # The sum over ranks goes on from float32 in the ring alone; XLA's own takes 16-bit summands.
    options = {}
    if overlap:
        options["preferred_element_type"] = jnp.promote_types(x.dtype, jnp.float32)

    def summand(chunk):
        return equation.product(chunk(x), kernel, **options)

    return _scatter(summand, axis_name, overlap, x.shape[_SEQUENCE], x.dtype)


def _product_scatter_forward(equation, axis_name, overlap, x, kernel):
    return _product_scatter(equation, axis_name, overlap, x, kernel), (x, kernel)


def _product_scatter_backward(equation, axis_name, overlap, residuals, dy):
    x, kernel = residuals
    whole, dx = _gather(dy, axis_name, overlap, lambda dy: (equation.d_x(dy, kernel),))
    return dx.astype(x.dtype), equation.d_kernel(x, whole, kernel)


_product_scatter.defvjp(_product_scatter_forward, _product_scatter_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _copy_products(equations, axis_name, x, kernels):
    return tuple(e.product(x, kernel) for e, kernel in zip(equations, kernels, strict=True))


def _copy_products_forward(equations, axis_name, x, kernels):
    return _copy_products(equations, axis_name, x, kernels), (x, kernels)


def _copy_products_backward(equations, axis_name, residuals, dys):
    x, kernels = residuals
    dx = _summed_d_x(equations, dys, kernels, x.dtype).astype(x.dtype)
    terms = zip(equations, dys, kernels, strict=True)
    d_kernels = tuple(e.d_kernel(x, dy, kernel) for e, dy, kernel in terms)
    return jax.lax.psum(dx, axis_name), d_kernels


_copy_products.defvjp(_copy_products_forward, _copy_products_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product_sum(equation, axis_name, x, kernel):
    return jax.lax.psum(equation.product(x, kernel), axis_name)


def _product_sum_forward(equation, axis_name, x, kernel):
    return _product_sum(equation, axis_name, x, kernel), (x, kernel)


def _product_sum_backward(equation, axis_name, residuals, dy):
    x, kernel = residuals
    return equation.d_x(dy, kernel).astype(x.dtype), equation.d_kernel(x, dy, kernel)


_product_sum.defvjp(_product_sum_forward, _product_sum_backward)
