"""Speed of RMSNorm and of the residual step: each implementation, against the copying rate.

    python benchmarks/rms_norm.py --rows=1024 --widths=768
    python benchmarks/rms_norm.py --rows=8192 --widths=2048,7680 --dtype=bf16 --repeats=30 \
        --implementations=xla,pallas_tpu
    python benchmarks/rms_norm.py --rows=32768 --widths=2048 --dtype=bf16 --repeats=15 \
        --modes=forward,backward --implementations=xla,pallas_gpu

One JSON line per measurement on stdout. `gbytes_per_s` counts what must be read and written at
least: the arrays of rows that go in and come out, once each (training: of both passes, with the
rows that are kept counted where they are read again; backward: that pass by itself, from what the
implementation kept). `share` divides it by the rate of x + 1 over
a large array in the same type, measured in the same run, and `share_of_equal_copy` by that of x + 1
over an array for which the same number of bytes moves: what starting and ending a kernel costs is
in there. `ms` is device time, `call_ms` the time of a single call on the clock of the host (see
pangu_jax/kernels/timing.py).
"""

from __future__ import annotations

import functools
import itertools
import json

import jax
import jax.numpy as jnp
from absl import app, flags

from pangu_jax.kernels.rms_norm import fused_sandwich_step, rms_norm
from pangu_jax.kernels.timing import alone, compile_all, copy_gbytes, measure

_ROWS = flags.DEFINE_integer("rows", 8192, "Rows.", lower_bound=1)
_WIDTHS = flags.DEFINE_list("widths", ["2048"], "Widths D.")
_OPERATIONS = flags.DEFINE_list("operations", ["norm", "step"], "Of norm, step.")
_IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", ["xla"], "Of xla, pallas_gpu, pallas_tpu, auto."
)
_MODES = flags.DEFINE_list("modes", ["forward", "training"], "Of forward, backward, training.")
_DTYPE = flags.DEFINE_enum("dtype", "f32", ["f32", "bf16"], "Type of the rows.")
_LOCK = flags.DEFINE_string(
    "lock", "", "File to lock while the clock runs: several of these can compile side by side."
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls; the fastest counts.", lower_bound=1)

# Arrays of rows read and written: forward, and backward on top (kept rows, cotangents, gradients).
ARRAYS = {"norm": (2, 3), "step": (4, 6)}
MODES = ("forward", "backward", "training")


def cases():
    """Every (operation, width, implementation, mode) asked for."""
    return itertools.product(
        _OPERATIONS.value, map(int, _WIDTHS.value), _IMPLEMENTATIONS.value, _MODES.value
    )


def arguments(width, dtype):
    """Operation -> (its arguments, cotangents of its outputs, each an array of its own)."""
    shape = (_ROWS.value, width)
    x, branch, *cotangents = (jax.random.normal(jax.random.key(n), shape, dtype) for n in range(4))
    gain, post = jnp.full(width, 0.5), jnp.ones(width)
    return {
        "norm": ((x, gain), cotangents[0]),
        "step": ((x, branch, post, gain), tuple(cotangents)),
    }


def call(operation, implementation, mode, args, cotangents):
    """(function, its arguments) to be timed."""
    function = {"norm": rms_norm, "step": fused_sandwich_step}[operation]
    function = functools.partial(function, eps=1e-6, implementation=implementation)

    def training(args, cotangents):
        out, pull = jax.vjp(function, *args)
        return out, pull(cotangents)

    if mode == "forward":
        return function, args
    if mode == "training":
        return training, (args, cotangents)
    _, pull = jax.jit(lambda *args: jax.vjp(function, *args))(*args)
    return lambda pull, cotangents: pull(cotangents), (pull, cotangents)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if unknown := set(_OPERATIONS.value) - set(ARRAYS):
        raise app.UsageError(f"--operations={unknown.pop()} is unknown; allowed: norm, step.")
    if unknown := set(_MODES.value) - set(MODES):
        raise app.UsageError(f"--modes={unknown.pop()} is unknown; allowed: {', '.join(MODES)}.")
    dtype = jnp.bfloat16 if _DTYPE.value == "bf16" else jnp.float32
    args = {width: arguments(width, dtype) for width in map(int, _WIDTHS.value)}
    calls, failed = {}, {}
    for case in cases():
        operation, width, implementation, mode = case
        try:
            calls[case] = call(operation, implementation, mode, *args[width][operation])
        except Exception as error:  # The forward pass of a backward one; the others go on.
            failed[case] = error
    compiled = compile_all(calls) | failed
    with alone(_LOCK.value):
        report(compiled, calls, dtype)


def report(compiled, calls, dtype):
    """Measures and prints."""
    top = copy_gbytes(dtype, _REPEATS.value)
    equal = functools.cache(lambda size: copy_gbytes(dtype, _REPEATS.value, size))
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "copy_gbytes_per_s": round(top)}))
    for case, function in compiled.items():
        operation, width, implementation, mode = case
        row = {
            'operation': operation, 'rows': _ROWS.value, 'width': width, 'mode': mode,
            'implementation': implementation, 'dtype': str(jnp.dtype(dtype)),
        }  # fmt: skip
        if isinstance(function, Exception):
            print(json.dumps(row | {"skipped": str(function)}), flush=True)
            continue
        timing = measure(function, *calls[case][1], repeats=_REPEATS.value)
        ahead, back = ARRAYS[operation]
        arrays = {"forward": ahead, "backward": back, "training": ahead + back}[mode]
        rate = arrays * _ROWS.value * width * jnp.dtype(dtype).itemsize / timing.device / 1e6
        row |= {
            'ms': round(timing.device, 4), 'median_ms': round(timing.median, 4),
            'call_ms': round(timing.wall, 4), 'first_call_ms': round(timing.first),
            'gbytes_per_s': round(rate, 2), 'share': round(rate / top, 4),
            'share_of_equal_copy': round(rate / equal(arrays * _ROWS.value * width // 2), 4),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
