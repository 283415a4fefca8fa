"""Speed of segment attention: each implementation, forward and training, against the matmul rate.

    python benchmarks/segment_attention.py --configs=smol --lengths=512 --batch=1
    python benchmarks/segment_attention.py --configs=mha,gqa,narrow --dtype=bf16 --repeats=30 \
        --documents=1 --implementations=cudnn,xla,pallas_gpu
    python benchmarks/segment_attention.py --configs=mha,gqa --dtype=bf16 --repeats=30 \
        --documents=1,8 --implementations=xla,pallas_gpu

One JSON line per measurement on stdout. `tflops` counts the products of the visible pairs alone,
4 H per pair and head forward, 2.5 times as much more backward; `share` divides it by the rate of a
large square product in the same type, measured in the same run. --documents=1 gives rows of one
document without ids, which is what cuDNN serves; more gives packed documents of equal length. `ms`
is device time and `call_ms` the time of a single call on the clock of the host (see
pangu_jax/kernels/timing.py); all cases are compiled before the first is timed.
"""

from __future__ import annotations

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.kernels.segment_attention.xla import segment_attention_xla
from pangu_jax.kernels.segment_attention.xla_short import segment_attention_short
from pangu_jax.kernels.timing import alone, compile_all, matmul_tflops, measure

# Batch, length, query heads, key-value heads, head width. The first three are shapes of published
# measurements on Hopper GPUs.
CONFIGS = {
    "mha": (4, 4096, 16, 16, 128),
    "gqa": (32, 4096, 32, 8, 128),
    "narrow": (2, 8192, 32, 32, 64),
    "smol": (4, 2048, 9, 3, 64),
    "cpu_5m": (8, 256, 6, 2, 24),
}
# The two forms that 'xla' chooses from.
XLA_FORMS = {
    "xla_loop": segment_attention_xla,
    "xla_short": segment_attention_short,
}

# Products of a pass by the products of the forward one.
FACTORS = {"forward": 1.0, "training": 3.5}

_CONFIGS = flags.DEFINE_list("configs", ["smol"], f"Of {', '.join(CONFIGS)}.")
_LENGTHS = flags.DEFINE_list("lengths", [], "Positions, in place of the configs' own.")
_BATCH = flags.DEFINE_integer("batch", 0, "Rows, in place of the configs' own; 0 keeps those.")
_DOCUMENTS = flags.DEFINE_list("documents", ["1", "4"], "Documents packed into a row.")
_IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", ["dense", "xla"],
    "Of dense, xla, cudnn, splash, pallas_gpu, pallas_tpu, auto; xla_loop, xla_short.",
)  # fmt: skip
_DTYPE = flags.DEFINE_enum("dtype", "f32", ["f32", "bf16"], "Type of q, k, v.")
_LOCK = flags.DEFINE_string(
    "lock", "", "File to lock while the clock runs: several of these can compile side by side."
)
_REPEATS = flags.DEFINE_integer("repeats", 7, "Timed calls; the fastest counts.", lower_bound=1)


def inputs(shape, documents, dtype):
    """(q, k, v, ids or None, visible pairs of the batch)."""
    batch, length, heads, kv_heads, width = shape
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (
        jax.random.normal(key, (batch, length, n, width), dtype)
        for key, n in zip(keys, (heads, kv_heads, kv_heads), strict=True)
    )
    lengths = np.diff(np.linspace(0, length, documents + 1).astype(int))
    pairs = batch * int(sum(n * (n + 1) // 2 for n in lengths))
    if documents == 1:
        return q, k, v, None, pairs
    row = np.repeat(np.arange(1, documents + 1, dtype=np.int32), lengths)
    return q, k, v, jnp.asarray(np.tile(row, (batch, 1))), pairs


def call(width, implementation, mode):
    """The function of (q, k, v, ids or None) that is timed."""

    named = functools.partial(segment_attention, implementation=implementation)
    attention = XLA_FORMS.get(implementation, named)

    def forward(q, k, v, ids):
        return attention(q, k, v, q_segment_ids=ids, kv_segment_ids=ids, scale=width**-0.5)

    def training(q, k, v, ids):
        out, pull = jax.vjp(lambda *x: forward(*x, ids), q, k, v)
        return out, pull(out)

    return forward if mode == "forward" else training


def cases():
    """Every (config name, shape, documents, implementation, mode) asked for."""
    for name in _CONFIGS.value:
        if name not in CONFIGS:
            raise app.UsageError(f"--configs={name} is unknown; allowed are {', '.join(CONFIGS)}.")
        batch, length, *rest = CONFIGS[name]
        for n in [int(x) for x in _LENGTHS.value] or [length]:
            yield from itertools.product(
                [name], [(_BATCH.value or batch, n, *rest)], map(int, _DOCUMENTS.value),
                _IMPLEMENTATIONS.value, FACTORS,
            )  # fmt: skip


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    dtype = jnp.bfloat16 if _DTYPE.value == "bf16" else jnp.float32
    args = {case[1:3]: inputs(*case[1:3], dtype) for case in cases()}
    compiled = compile_all(
        {case: (call(case[1][-1], *case[3:]), args[case[1:3]][:-1]) for case in cases()}
    )
    with alone(_LOCK.value):
        report(compiled, args, dtype)


def report(compiled, args, dtype):
    """Measures and prints."""
    top = matmul_tflops(dtype, _REPEATS.value)
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "matmul_tflops": round(top, 3)}))
    for case, function in compiled.items():
        name, shape, documents, implementation, mode = case
        batch, length, heads, kv_heads, width = shape
        row = {
            'config': name, 'batch': batch, 'length': length, 'heads': heads,
            'kv_heads': kv_heads, 'width': width, 'documents': documents, 'mode': mode,
            'implementation': implementation, 'dtype': str(jnp.dtype(dtype)),
        }  # fmt: skip
        if isinstance(function, Exception):
            print(json.dumps(row | {"skipped": str(function)}), flush=True)
            continue
        *arrays, pairs = args[shape, documents]
        timing = measure(function, *arrays, repeats=_REPEATS.value)
        rate = 4 * width * heads * pairs * FACTORS[mode] / timing.device / 1e9
        row |= {
            'ms': round(timing.device, 4), 'median_ms': round(timing.median, 4),
            'call_ms': round(timing.wall, 4), 'cpu_ms': round(timing.cpu, 3),
            'first_call_ms': round(timing.first), 'tflops': round(rate, 4),
            'share': round(rate / top, 4),
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
