"""Public entry of RMSNorm and of the fused residual step: checks, choice of implementation.

Contract for an implementation module: the functions of `reference.py` with the same arguments and
values, differentiable with respect to every array. It may rely on checked arguments, and raises
``NotImplementedError('why')``, while tracing, for what it cannot do.
"""

from __future__ import annotations

import jax

from pangu_jax.kernels import implementation as implementation_lib
from pangu_jax.kernels import measured

# What `auto` may take beside XLA; variants are the names of the operations, sizes the width D. The
# numbers behind a rule stand in docs/kernels.md.
MEASURED: tuple[measured.Rule, ...] = (measured.Rule("NVIDIA H100", "pallas_gpu", at_least=2048),)
# Fewer rows are bound by the launch of a kernel, which XLA can spare by fusing: decoding.
_ENOUGH_ROWS = 1024


def _xla_rms_norm():
    from pangu_jax.kernels.rms_norm.xla import rms_norm_xla

    return rms_norm_xla


def _xla_step():
    from pangu_jax.kernels.rms_norm.xla import fused_sandwich_step_xla

    return fused_sandwich_step_xla


def _tpu(name):
    def load():
        from pangu_jax.kernels.rms_norm import pallas_tpu

        return getattr(pallas_tpu, name)

    return load


def _gpu(name):
    def load():
        try:
            from pangu_jax.kernels.rms_norm import pallas_gpu
        except ImportError as error:
            raise NotImplementedError(f"its module cannot be imported here: {error}") from error
        return getattr(pallas_gpu, name)

    return load


_RMS_NORM = {
    "xla": _xla_rms_norm,
    "pallas_tpu": _tpu("rms_norm_pallas_tpu"),
    "pallas_gpu": _gpu("rms_norm_pallas_gpu"),
    "interpret": _tpu("rms_norm_interpret"),
}
_STEP = {
    "xla": _xla_step,
    "pallas_tpu": _tpu("fused_sandwich_step_pallas_tpu"),
    "pallas_gpu": _gpu("fused_sandwich_step_pallas_gpu"),
    "interpret": _tpu("fused_sandwich_step_interpret"),
}


def _dispatch(operation, table, implementation, *args, **kwargs):
    if implementation == "auto":
        x = args[0]
        width = x.shape[-1] if x.size >= _ENOUGH_ROWS * x.shape[-1] else 0
        table = measured.allowed(table, MEASURED, width, operation)
    return implementation_lib.dispatch(operation, table, implementation, *args, **kwargs)


def rms_norm(
    x: jax.Array, scale: jax.Array, *, eps: float, implementation: str = "auto"
) -> jax.Array:
    """scale * x / sqrt(mean(x^2) + eps) over the last axis.

    Args:
      x: [..., D], floating.
      scale: [D], the gain itself (not gain - 1).
      eps: added to the mean square; positive.
      implementation: 'auto', 'xla', 'pallas_tpu', 'pallas_gpu', or 'interpret' (the TPU kernel in
        interpret mode, for tests).

    Returns:
      [..., D] in the type of x; computed in float32 (float64 for float64 inputs).

    Raises:
      ValueError: for shapes that do not fit.
      ImplementationUnavailableError: if a demanded implementation cannot serve the call.

    Source: Zhang and Sennrich (arXiv 1910.07467), Eq. 4.
    """
    _check_scale("scale", scale, x)
    return _dispatch("rms_norm", _RMS_NORM, implementation, x, scale, eps=eps)


def fused_sandwich_step(
    x: jax.Array,
    branch: jax.Array,
    post_scale: jax.Array | None,
    next_scale: jax.Array,
    *,
    eps: float,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]:
    """Residual sum with the branch's post-norm, and the norm before the next branch.

        x'   = x + RMSNorm(branch) * post_scale        (x + branch where post_scale is None)
        next = RMSNorm(x') * next_scale

    Args:
      x: [..., D], the residual stream.
      branch: [..., D], output of attention or MLP.
      post_scale: [D], or None for schemes without a post-norm.
      next_scale: [D], gain of the norm that comes next.
      eps: of both norms.
      implementation: as in `rms_norm`.

    Returns:
      (x', next), both [..., D] in the type of x. x' is rounded once, and `next` is computed from
      the rounded values.

    Raises:
      ValueError: for shapes that do not fit.
      ImplementationUnavailableError: if a demanded implementation cannot serve the call.

    Source: Pangu Ultra (arXiv 2504.07866), Eq. 1; specification 1.2.
    """
    if branch.shape != x.shape:
        raise ValueError(f"branch has shape {branch.shape} and x {x.shape}; they must be equal.")
    if post_scale is not None:
        _check_scale("post_scale", post_scale, x)
    _check_scale("next_scale", next_scale, x)
    return _dispatch(
        "fused_sandwich_step", _STEP, implementation, x, branch, post_scale, next_scale, eps=eps
    )


def _check_scale(name, scale, x):
    if x.ndim < 1 or scale.shape != x.shape[-1:]:
        raise ValueError(
            f"{name} has shape {scale.shape}; {x.shape[-1:]} is needed to fit x of {x.shape}."
        )
