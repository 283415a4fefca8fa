"""RMSNorm and the residual step as Mosaic GPU kernels for Hopper: one pass over the rows, each way.

The walk over the rows, and where everything lies, is in `pallas_gpu_rows`; here are what happens to
one row, and the derivatives. The formulas are in `pallas_tpu`.

Status: run on an H100 against the float32 definition; speed in docs/kernels.md.

Letters: R rows (all axes but the last), D width.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.kernels import mosaic_gpu
from pangu_jax.kernels.rms_norm.pallas_gpu_rows import LANES, Spec, over_rows

_MAX_WIDTH = 256 * LANES


def rms_norm_pallas_gpu(
    x: jax.Array, scale: jax.Array, *, eps: float, interpret: bool = False
) -> jax.Array:
    """Arguments and value as in `api.rms_norm`.

    Raises:
      NotImplementedError: for types, widths or devices the kernel does not serve.
    """
    spec = _spec(x, eps, False, interpret)
    return _norm(spec, _rows(x), scale).reshape(x.shape)


def fused_sandwich_step_pallas_gpu(
    x: jax.Array,
    branch: jax.Array,
    post_scale: jax.Array | None,
    next_scale: jax.Array,
    *,
    eps: float,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Arguments and values as in `api.fused_sandwich_step`.

    Raises:
      NotImplementedError: as `rms_norm_pallas_gpu`, and for unequal types of x and branch.
    """
    if branch.dtype != x.dtype:
        raise NotImplementedError(f"x is {x.dtype} and branch {branch.dtype}; they must be equal")
    spec = _spec(x, eps, post_scale is not None, interpret)
    stream, following = _step(spec, _rows(x), _rows(branch), post_scale, next_scale)
    return stream.reshape(x.shape), following.reshape(x.shape)


def _rows(x):
    return x.reshape(-1, x.shape[-1])


def _spec(x, eps, post, interpret):
    types = (jnp.float32, jnp.bfloat16, jnp.float16)
    mosaic_gpu.check_supported(x, interpret, types)
    width = x.shape[-1]
    if width % LANES or width > _MAX_WIDTH:
        raise NotImplementedError(
            f"width {width}; the kernel takes multiples of {LANES} up to {_MAX_WIDTH}"
        )
    rows = x.size // width
    return Spec(float(eps), post, rows, width // LANES, np.dtype(x.dtype), interpret)


# Every pass over a row goes chunk by chunk and reads again what an earlier pass has read: registers
# are for gains and sums.


def _inverse_rms(row, name):
    (square,) = row.means(lambda n: (row.read(name, n) ** 2,))
    return row.inverse(square)


def _norm_body(row, sums):
    inverse = _inverse_rms(row, "x")
    for n in range(len(row.chunks)):
        row.write("x", n, row.read("x", n) * inverse * row.gain("gain", n))
    return sums


def _step_body(row, sums, post):
    inverse = _inverse_rms(row, "branch") if post else None

    def stream_squared(n):
        branch = row.read("branch", n)
        if post:
            branch = branch * inverse * row.gain("post", n)
        # The second norm sees the rounded stream.
        return (row.write("x", n, row.read("x", n) + branch) ** 2,)

    (square,) = row.means(stream_squared)
    inverse_next = row.inverse(square)
    for n in range(len(row.chunks)):
        row.write("branch", n, row.read("x", n) * inverse_next * row.gain("gain", n))
    return sums


def _norm_gradient_body(row, sums):
    def terms(n):
        x = row.read("x", n)
        return x * x, row.read("dy", n) * row.gain("gain", n) * x

    square, product = row.means(terms)
    inverse = row.inverse(square)
    factor = product * inverse * inverse * inverse
    totals = []
    for n, total in enumerate(sums["gain"]):
        x, dy = row.read("x", n), row.read("dy", n)
        totals.append(row.add(total, dy * (x * inverse)))
        row.write("dy", n, dy * row.gain("gain", n) * inverse - x * factor)
    return {"gain": totals}


def _step_gradient_body(row, sums, post):
    totals = {name: list(chunks) for name, chunks in sums.items()}

    def terms(n):
        stream = row.read("stream", n)
        pair = stream * stream, row.read("d_following", n) * row.gain("gain", n) * stream
        return (*pair, row.read("branch", n) ** 2) if post else pair

    square, product, *square_b = row.means(terms)
    inverse = row.inverse(square)
    factor = product * inverse * inverse * inverse
    inverse_b = row.inverse(square_b[0]) if post else None

    def through_stream(n):
        stream, d_following = row.read("stream", n), row.read("d_following", n)
        totals["gain"][n] = row.add(totals["gain"][n], d_following * (stream * inverse))
        value = d_following * row.gain("gain", n) * inverse - stream * factor
        value = value + row.read("d_stream", n)
        # From here on rounded, as the unfused operations have it.
        return row.write("d_stream", n, value)

    if not post:
        for n in range(len(row.chunks)):
            through_stream(n)
        return totals

    def terms_b(n):
        d_stream, branch = through_stream(n), row.read("branch", n)
        weighted = d_stream * branch
        totals["post"][n] = row.add(totals["post"][n], weighted * inverse_b)
        return (weighted * row.gain("post", n),)

    (product_b,) = row.means(terms_b)
    factor_b = product_b * inverse_b * inverse_b * inverse_b
    for n in range(len(row.chunks)):
        value = row.read("d_stream", n) * row.gain("post", n) * inverse_b
        value = value - row.read("branch", n) * factor_b
        row.write("branch", n, value)
    return totals


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _norm(spec, x, scale):
    return _norm_forward(spec, x, scale)[0]


def _norm_forward(spec, x, scale):
    (y,) = over_rows(spec, _norm_body, 1, {"x": x}, {"gain": scale}, ["x"])
    return y, (x, scale)


def _norm_backward(spec, residuals, dy):
    x, scale = residuals
    rows = {"x": x, "dy": dy}
    dx, total = over_rows(spec, _norm_gradient_body, 1, rows, {"gain": scale}, ["dy"], ("gain",))
    return dx, total.astype(scale.dtype)


_norm.defvjp(_norm_forward, _norm_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _step(spec, x, branch, post_scale, next_scale):
    return _step_forward(spec, x, branch, post_scale, next_scale)[0]


def _gains(post_scale, next_scale):
    return {"gain": next_scale} | ({} if post_scale is None else {"post": post_scale})


def _step_forward(spec, x, branch, post_scale, next_scale):
    body = functools.partial(_step_body, post=spec.post)
    rows, gains = {"x": x, "branch": branch}, _gains(post_scale, next_scale)
    out = over_rows(spec, body, 1 + spec.post, rows, gains, ["x", "branch"])
    return out, (out[0], branch if spec.post else None, post_scale, next_scale)


def _step_backward(spec, residuals, cotangents):
    stream, branch, post_scale, next_scale = residuals
    body = functools.partial(_step_gradient_body, post=spec.post)
    rows = {"stream": stream, "d_stream": cotangents[0], "d_following": cotangents[1]}
    gains = _gains(post_scale, next_scale)
    if not spec.post:
        dx, d_gain = over_rows(spec, body, 1, rows, gains, ["d_stream"], ("gain",))
        return dx, dx, None, d_gain.astype(next_scale.dtype)
    rows["branch"] = branch
    dx, d_branch, d_gain, d_post = over_rows(
        spec, body, 2, rows, gains, ["d_stream", "branch"], ("gain", "post")
    )
    return dx, d_branch, d_post.astype(post_scale.dtype), d_gain.astype(next_scale.dtype)


_step.defvjp(_step_forward, _step_backward)
