"""Speed of decode attention in the place it has in a decoder's step.

    python benchmarks/decode_attention.py --rows=1,16 --slots=256,2048 --pages=64
    python benchmarks/decode_attention.py --rows=16 --slots=2048 --pages=16,32,64,128 \
        --dtypes=float32,float16,bfloat16 --implementations=writes,xla,definition,contiguous

One JSON line per measurement on stdout. A call is one step of `--layers` layers, jitted, with the
pools of all layers donated: every layer writes one token per row and attends to all its slots but
one; a layer needs the result of the one before. `writes` writes and does not attend; `definition`
gathers whole tables; `contiguous` is the peer without pages, a cache [B, K, S, H] per layer with
the whole map at once. `ms` is the fastest call on the clock on the wall, `cpu_ms` the least
processor time of one (to be trusted where other jobs run), `temp_mb` what XLA plans for
temporaries, `gbytes_per_s` the keys and values that are seen over `ms`.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from pangu_jax.kernels.decode_attention import decode_attention, write_tokens
from pangu_jax.kernels.decode_attention.reference import decode_attention_reference

_ROWS = flags.DEFINE_list("rows", ["1", "16"], "Rows B.")
_SLOTS = flags.DEFINE_list("slots", ["256", "2048"], "Slots of a row.")
_PAGES = flags.DEFINE_list("pages", ["64"], "Slots of a page.")
_DTYPES = flags.DEFINE_list("dtypes", ["float32"], "Types of the pages.")
_IMPLEMENTATIONS = flags.DEFINE_list(
    "implementations", ["writes", "xla"],
    "Of writes, definition, contiguous, xla, pallas_tpu, pallas_gpu.",
)  # fmt: skip
_QUERY_DTYPE = flags.DEFINE_string(
    "query_dtype", "float32", "Type of the queries; the kernel for GPUs takes 16 bits."
)
_LAYERS = flags.DEFINE_integer("layers", 30, "Layers of the step.", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", 9, "Query heads N.", lower_bound=1)
_KV_HEADS = flags.DEFINE_integer("kv_heads", 3, "Key-value heads K.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 64, "Head width H.", lower_bound=1)
_FILL = flags.DEFINE_float("fill", 1.0, "Share of its slots that a row uses.", 0.0, 1.0)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Timed calls of a case, together.", 0.0)


def contiguous(q, k, v, lengths, scale):
    """A row's slots side by side: the whole map of [B, N, H] against [B, K, S, H]."""
    batch, heads, width = q.shape
    mask = (jnp.arange(k.shape[2]) < lengths[:, None])[:, None, None]
    grouped = q.reshape(batch, k.shape[1], -1, width)
    logits = jnp.einsum("bkgh,bksh->bkgs", grouped, k.astype(q.dtype)) * scale
    weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), axis=-1)
    return jnp.einsum("bkgs,bksh->bkgh", weights, v.astype(q.dtype)).reshape(q.shape)


def step(implementation):
    """Function (x [B, N, H], k pools, v pools, tables, lengths) -> (x, k pools, v pools)."""
    kv_heads, scale = _KV_HEADS.value, _WIDTH.value**-0.5

    def write(pool, new, tables, at):
        if implementation == "contiguous":
            rows = jnp.arange(len(new))
            return pool.at[rows, :, at].set(new.astype(pool.dtype))
        return write_tokens(pool, new[:, None], tables, at[:, None])

    def attend(q, k, v, tables, lengths):
        if implementation == "writes":
            return q
        if implementation == "contiguous":
            return contiguous(q, k, v, lengths, scale)
        if implementation == "definition":
            out = decode_attention_reference(q[:, None], k, v, tables, lengths, scale=scale)
            return out[:, 0]
        return decode_attention(
            q, k, v, tables, lengths, scale=scale, implementation=implementation
        )

    def run(x, keys, values, tables, lengths):
        pools = []
        for k, v in zip(keys, values, strict=True):
            new = x[:, :kv_heads]
            k, v = (write(pool, new, tables, lengths - 1) for pool in (k, v))
            x = (0.5 * (x + attend(x, k, v, tables, lengths))).astype(x.dtype)
            pools.append((k, v))
        return x, *map(list, zip(*pools, strict=True))

    return jax.jit(run, donate_argnums=(1, 2))


def arguments(rows, slots, page, dtype, implementation):
    """Pools of random numbers; the pages of a row lie anywhere."""
    rng = np.random.default_rng(0)
    pages = slots // page
    shape = (rows * pages + 1, _KV_HEADS.value, page, _WIDTH.value)
    if implementation == "contiguous":
        shape = (rows, _KV_HEADS.value, slots, _WIDTH.value)
    tables = 1 + rng.permutation(rows * pages).reshape(rows, pages)
    pool = jnp.asarray(rng.normal(size=shape), dtype)
    pools = [[jnp.array(pool, copy=True) for _ in range(_LAYERS.value)] for _ in "kv"]
    length = max(1, int(slots * _FILL.value) - 1)
    x = jnp.asarray(rng.normal(size=(rows, _HEADS.value, _WIDTH.value)), _QUERY_DTYPE.value)
    return x, *pools, jnp.asarray(tables, jnp.int32), jnp.full(rows, length, jnp.int32)


def measured(case):
    rows, slots, page, dtype, implementation = case
    x, keys, values, tables, lengths = arguments(*case)
    begin = time.perf_counter()
    compiled = step(implementation).lower(x, keys, values, tables, lengths).compile()
    compile_s = time.perf_counter() - begin
    wall, cpu = [], []
    while len(wall) < 4 or sum(wall) < 1e3 * _SECONDS.value:
        at, at_cpu = time.perf_counter(), time.process_time()
        out, keys, values = jax.block_until_ready(compiled(x, keys, values, tables, lengths))
        wall.append((time.perf_counter() - at) * 1e3)
        cpu.append((time.process_time() - at_cpu) * 1e3)
    wall, cpu = wall[1:], cpu[1:]
    seen = 2 * _LAYERS.value * int(lengths.sum()) * _KV_HEADS.value * _WIDTH.value
    seen *= jnp.dtype(dtype).itemsize
    memory = compiled.memory_analysis()
    assert bool(jnp.isfinite(out).all())
    return {
        "ms": round(min(wall), 2), "median_ms": round(statistics.median(wall), 2),
        "cpu_ms": round(min(cpu), 2), "gbytes_per_s": round(seen / min(wall) / 1e6, 1),
        "temp_mb": round(memory.temp_size_in_bytes / 1e6, 1) if memory else None,
        "compile_s": round(compile_s, 1),
    }  # fmt: skip


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    device = jax.devices()[0].device_kind
    print(json.dumps({"device": device, "jax": jax.__version__, "layers": _LAYERS.value}))
    numbers = (map(int, flag.value) for flag in (_ROWS, _SLOTS, _PAGES))
    names = ("rows", "slots", "page", "dtype", "implementation")
    for case in itertools.product(*numbers, _DTYPES.value, _IMPLEMENTATIONS.value):
        print(json.dumps(dict(zip(names, case, strict=True)) | measured(case)), flush=True)


if __name__ == "__main__":
    app.run(main)
