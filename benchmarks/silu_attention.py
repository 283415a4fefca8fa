"""Speed of SiLU attention: each implementation, forward and training, against a plain version.

    python benchmarks/silu_attention.py --configs=ml1m,ml1m_large --batch=32
    python benchmarks/silu_attention.py --configs=long_8k --lengths=200,1024,4096,8192 --dtype=bf16

One JSON line per measurement on stdout. `tflops` counts the causal half of the matrix products
(`arg_specs.ArgSpec.matmul_flops`); `share` divides it by the rate of a large square product in
the same type, measured in the same run. 'naive' is the dense jnp version under automatic
differentiation. Times are minima over `--repeats`; `cpu_ms` is the time of all threads, which
means something only on a CPU. On a GPU or TPU give `--repeats=30` or more.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pangu_jax.kernels.timing import matmul_tflops, measure
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
    """Every (config, bias, implementation) asked for."""
    for name in _CONFIGS.value:
        spec = by_name(name)
        for n in [int(x) for x in _LENGTHS.value] or [spec.n]:
            sized = ArgSpec(name, _BATCH.value or spec.batch, n, spec.heads, spec.width_qk,
                            spec.width_v)  # fmt: skip
            for bias in _BIAS.value:
                for implementation in _IMPLEMENTATIONS.value:
                    yield sized, bias, implementation


def run(spec, bias, implementation, dtype, top):
    """The two measurements of a case, as dictionaries."""
    differentiable, ids = inputs(spec, dtype)
    function = naive if implementation == "naive" else silu_attention

    def forward(x):
        return function(**x, **ids, scale=1.0 / spec.n, bias=bias, implementation=implementation)

    def training(x):
        out, pull = jax.vjp(forward, x)
        return out, pull(out)

    for mode, step in (("forward", forward), ("training", training)):
        flops = spec.matmul_flops(bias)
        if mode == "training":
            flops += spec.matmul_flops(bias, backward=True)
        wall, cpu, first = measure(jax.jit(step), differentiable, repeats=_REPEATS.value)
        rate = flops / wall / 1e9
        yield {
            'config': spec.name, 'batch': spec.batch, 'n': spec.n, 'heads': spec.heads,
            'width': spec.width_v, 'bias': bias, 'mode': mode, 'implementation': implementation,
            'dtype': str(jnp.dtype(dtype)), 'ms': round(wall, 3), 'cpu_ms': round(cpu, 3),
            'first_call_ms': round(first), 'tflops': round(rate, 4), 'share': round(rate / top, 4),
        }  # fmt: skip


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    dtype = jnp.bfloat16 if _DTYPE.value == "bf16" else jnp.float32
    top = matmul_tflops(dtype, _REPEATS.value)
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "matmul_tflops": round(top, 3)}))
    for spec, bias, implementation in cases():
        try:
            for row in run(spec, bias, implementation, dtype, top):
                print(json.dumps(row), flush=True)
        except NotImplementedError as error:
            row = {"config": spec.name, "implementation": implementation, "skipped": str(error)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
