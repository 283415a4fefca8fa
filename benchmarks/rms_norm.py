"""Speed of RMSNorm and of the residual step: each implementation, against the copying rate.

    python benchmarks/rms_norm.py --rows=1024 --widths=768
    python benchmarks/rms_norm.py --rows=8192 --widths=2048,7680 --dtype=bf16 --repeats=30 \
        --implementations=xla,pallas_tpu

One JSON line per measurement on stdout. `gbytes_per_s` counts what must be read and written at
least: the arrays of rows that go in and come out, once each (training: of both passes, with the
rows that are kept counted where they are read again). `share` divides it by the rate of x + 1 over
a large array in the same type, measured in the same run.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
from absl import app, flags

from pangu_jax.kernels.rms_norm import fused_sandwich_step, rms_norm
from pangu_jax.kernels.timing import copy_gbytes, measure

_ROWS = flags.DEFINE_integer("rows", 8192, "Rows.", lower_bound=1)
_WIDTHS = flags.DEFINE_list("widths", ["2048"], "Widths D.")
_OPERATIONS = flags.DEFINE_list("operations", ["norm", "step"], "Of norm, step.")
_IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", ["xla"], "Of xla, pallas_gpu, pallas_tpu, auto."
)
_DTYPE = flags.DEFINE_enum("dtype", "f32", ["f32", "bf16"], "Type of the rows.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls; the fastest counts.", lower_bound=1)

# Arrays of rows read and written: forward, and backward on top (kept rows, cotangents, gradients).
ARRAYS = {"norm": (2, 3), "step": (4, 6)}


def run(operation, width, implementation, dtype, top):
    """The two measurements of a case, as dictionaries."""
    shape = (_ROWS.value, width)
    rows = [jax.random.normal(jax.random.key(n), shape, dtype) for n in range(2)]
    gains = [jnp.ones(width), jnp.full(width, 0.5)]

    def forward(x, branch, post, gain):
        if operation == "norm":
            return rms_norm(x, gain, eps=1e-6, implementation=implementation)
        return fused_sandwich_step(x, branch, post, gain, eps=1e-6, implementation=implementation)

    def training(*args):
        out, pull = jax.vjp(forward, *args)
        return out, pull(out)

    ahead, back = ARRAYS[operation]
    for mode, step, arrays in (("forward", forward, ahead), ("training", training, ahead + back)):
        timing = measure(jax.jit(step), *rows, *gains, repeats=_REPEATS.value)
        rate = arrays * rows[0].nbytes / timing.wall / 1e6
        yield {
            'operation': operation, 'rows': _ROWS.value, 'width': width, 'mode': mode,
            'implementation': implementation, 'dtype': str(jnp.dtype(dtype)),
            'ms': round(timing.wall, 4), 'first_call_ms': round(timing.first),
            'gbytes_per_s': round(rate, 2), 'share': round(rate / top, 4),
        }  # fmt: skip


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    if unknown := set(_OPERATIONS.value) - set(ARRAYS):
        raise app.UsageError(f"--operations={unknown.pop()} is unknown; allowed: norm, step.")
    dtype = jnp.bfloat16 if _DTYPE.value == "bf16" else jnp.float32
    top = copy_gbytes(dtype, _REPEATS.value)
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "copy_gbytes_per_s": round(top)}))
    for operation in _OPERATIONS.value:
        for width in map(int, _WIDTHS.value):
            for implementation in _IMPLEMENTATIONS.value:
                try:
                    for row in run(operation, width, implementation, dtype, top):
                        print(json.dumps(row), flush=True)
                except NotImplementedError as error:
                    row = {"operation": operation, "implementation": implementation}
                    print(json.dumps(row | {"skipped": str(error)}), flush=True)


if __name__ == "__main__":
    app.run(main)
