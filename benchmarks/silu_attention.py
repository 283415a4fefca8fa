"""Speed of SiLU attention: each implementation, forward and training, against a plain version.

    python benchmarks/silu_attention.py --configs=ml1m,ml1m_large --batch=32
    python benchmarks/silu_attention.py --configs=long_8k --lengths=200,1024,4096,8192 --dtype=bf16

One JSON line per measurement on stdout. `tflops` counts the causal half of the matrix products
(`arg_specs.ArgSpec.matmul_flops`); `share` divides it by the rate of a large square product in
the same type, measured in the same run. 'naive' is the dense jnp version under automatic
differentiation. `ms` is device time and `call_ms` the time of a single call on the clock of the
host (see pangu_jax/kernels/timing.py), minima over `--repeats`; `cpu_ms` is the time of all
threads, which means something only on a CPU.
"""

from __future__ import annotations

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pangu_jax.kernels.timing import alone, compile_all, matmul_tflops, measure
from recsys_jax.kernels.silu_attention import silu_attention
from recsys_jax.kernels.silu_attention.arg_specs import CONFIGS, ArgSpec, by_name
from recsys_jax.kernels.silu_attention.output import SiluAttentionOutput

_CONFIGS = flags.DEFINE_list(
    "configs", ["ml1m", "ml1m_large"], f"Of {', '.join(spec.name for spec in CONFIGS)}."
)
_LENGTHS = flags.DEFINE_list("lengths", [], "Positions, in place of the configs' own.")
_BATCH = flags.DEFINE_integer("batch", 0, "Rows, in place of the configs' own; 0 keeps those.")
_BIAS = flags.DEFINE_list("bias", ["separate", "added"], "Of separate, added.")
_IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", ["naive", "xla"], "Of naive, xla, pallas_tpu, pallas_gpu, auto."
)
_DTYPE = flags.DEFINE_enum("dtype", "f32", ["f32", "bf16"], "Type of q, k, v.")
_LOCK = flags.DEFINE_string(
    "lock", "", "File to lock while the clock runs: several of these can compile side by side."
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls; the fastest counts.", lower_bound=1)


def naive(q, k, v, *, segment_ids, position_weights, time_weights, timestamps, query_times,
          scale, bias, implementation=None):  # fmt: skip
    """What one writes first: dense maps, float32 buckets, automatic differentiation."""
    del implementation
    n = v.shape[1]
    i, j = jnp.arange(n)[:, None], jnp.arange(n)[None]
    mask = ((j <= i) & (segment_ids[:, None] > 0) & (segment_ids[..., None] > 0)).astype(v.dtype)
    dt = query_times[:, :, None] - timestamps[:, None]
    log = jnp.log(jnp.maximum(jnp.abs(dt), 1).astype(jnp.float32))
    bucket = jnp.clip((log / 0.301).astype(jnp.int32), 0, time_weights.shape[0] - 1)
    times = time_weights[bucket].astype(v.dtype)
    positions = position_weights[jnp.clip(i - j, 0)].astype(v.dtype)
    s = jnp.einsum("bihc,bjhc->bhij", q, k)
    if bias == "added":
        s = s + (positions + times)[:, None]
    out = jnp.einsum("bhij,bjhd->bihd", jax.nn.silu(s) * scale * mask[:, None], v)
    if bias == "added":
        return SiluAttentionOutput(out, None, None)
    return SiluAttentionOutput(
        out,
        jnp.einsum("bij,bjhd->bihd", times * mask, v),
        jnp.einsum("bij,bjhd->bihd", positions * mask, v),
    )


def inputs(spec: ArgSpec, dtype):
    """Random arguments; lengths uniform in [n / 2, n]."""
    rng = np.random.default_rng(0)
    shapes = spec.abstract_args(dtype)
    args = {}
    for name, shape in shapes.items():
        if shape.dtype != jnp.int32:
            args[name] = jnp.asarray(rng.normal(size=shape.shape) * 0.5, shape.dtype)
    lengths = rng.integers(spec.n // 2, spec.n + 1, (spec.batch, 1))
    clock = np.cumsum(rng.integers(0, 20_000, (spec.batch, spec.n + 1)), 1)
    ids = {
        "segment_ids": np.arange(spec.n)[None] < lengths,
        "timestamps": clock[:, :-1],
        "query_times": clock[:, 1:],
    }
    return args, {name: jnp.asarray(x, jnp.int32) for name, x in ids.items()}


def cases():
    """Every (config, bias, implementation, mode) asked for."""
    for name in _CONFIGS.value:
        spec = by_name(name)
        for n in [int(x) for x in _LENGTHS.value] or [spec.n]:
            sized = dataclasses.replace(spec, batch=_BATCH.value or spec.batch, n=n)
            yield from itertools.product(
                [sized], _BIAS.value, _IMPLEMENTATIONS.value, ("forward", "training")
            )


def call(spec, bias, implementation, mode):
    """The function of (differentiable arguments, ids) that is timed."""
    function = naive if implementation == "naive" else silu_attention

    def forward(x, ids):
        return function(**x, **ids, scale=1.0 / spec.n, bias=bias, implementation=implementation)

    def training(x, ids):
        out, pull = jax.vjp(lambda x: forward(x, ids), x)
        return out, pull(out)

    return forward if mode == "forward" else training


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    dtype = jnp.bfloat16 if _DTYPE.value == "bf16" else jnp.float32
    args = {spec: inputs(spec, dtype) for spec, *_ in cases()}
    compiled = compile_all({case: (call(*case), args[case[0]]) for case in cases()})
    with alone(_LOCK.value):
        report(compiled, args, dtype)


def report(compiled, args, dtype):
    """Measures and prints."""
    top = matmul_tflops(dtype, _REPEATS.value)
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "matmul_tflops": round(top, 3)}))
    for case, function in compiled.items():
        spec, bias, implementation, mode = case
        row = {
            'config': spec.name, 'batch': spec.batch, 'n': spec.n, 'heads': spec.heads,
            'width': spec.width_v, 'bias': bias, 'mode': mode, 'implementation': implementation,
            'dtype': str(jnp.dtype(dtype)),
        }  # fmt: skip
        if isinstance(function, Exception):
            print(json.dumps(row | {"skipped": str(function)}), flush=True)
            continue
        timing = measure(function, *args[spec], repeats=_REPEATS.value)
        flops = spec.matmul_flops(bias)
        if mode == "training":
            flops += spec.matmul_flops(bias, backward=True)
        rate = flops / timing.device / 1e9
        row |= {
            'ms': round(timing.device, 4), 'median_ms': round(timing.median, 4),
            'call_ms': round(timing.wall, 4), 'cpu_ms': round(timing.cpu, 3),
            'first_call_ms': round(timing.first), 'tflops': round(rate, 4),
            'share': round(rate / top, 4),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
