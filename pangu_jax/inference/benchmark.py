"""--mode=benchmark: tokens per second of an engine, beside what the memory could deliver."""

from __future__ import annotations

import json
import pathlib
import platform
import resource
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.inference.engine import Engine
from pangu_jax.inference.load import load_engine
from pangu_jax.inference.request import Request, SamplingParams
from pangu_jax.inference.run_config import InferenceConfig
from pangu_jax.inference.weights import num_bytes

_BANDWIDTH_BYTES = 1 << 28  # beyond any cache, small beside a model


def benchmark(config: InferenceConfig, workdir: pathlib.Path) -> int:
    """Prints one JSON line for each batch size and keeps them in benchmark.jsonl."""
    engine = load_engine(config)
    chosen = config.benchmark
    prompts = random_prompts(engine, max(chosen.batch_sizes), chosen.prompt_tokens)
    bandwidth = memory_bandwidth()
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "benchmark.jsonl").open("a") as file:
        for batch in chosen.batch_sizes:
            line = measure(engine, prompts[:batch], chosen.new_tokens, chosen.repeats)
            line |= roofline(engine, line, bandwidth) | {
                "model": config.model,
                "weights": config.engine.weights,
                "device": jax.devices()[0].device_kind,
                "python": platform.python_version(),
                "jax": jax.__version__,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            print(json.dumps(line), flush=True)
            file.write(json.dumps(line) + "\n")
    return 0


def random_prompts(engine: Engine, count: int, length: int, seed: int = 0) -> np.ndarray:
    """int32 (count, length), without the first tokens of the vocabulary (special ones, often)."""
    draw = np.random.default_rng(seed)
    size = engine.model.vocab_size
    return draw.integers(size // 4, size, (count, length)).astype(np.int32)


def measure(engine: Engine, prompts: np.ndarray, new_tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of greedy requests that all start at once; the first round warms up.

    Prefill ends with the first token of the last request; decoding is what comes after it.
    """
    sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
    first = engine.model.vocab_size // 8
    prefill, decode = [], []
    for repeat in range(repeats + 1):
        firsts: dict[str, float] = {}
        requests = [
            # Another first token each time: no prompt finds its pages in the cache.
            Request(id=str(i), prompt_ids=(first + repeat, *map(int, row[1:])), sampling=sampling)
            for i, row in enumerate(prompts)
        ]
        start = time.perf_counter()
        engine.generate(
            requests,
            on_delta=lambda delta, at=firsts: at.setdefault(delta.id, time.perf_counter()),
        )
        end = time.perf_counter()
        if repeat:
            prefill.append(max(firsts.values()) - start)
            decode.append(end - max(firsts.values()))
    batch = len(prompts)
    return {
        "batch": batch,
        "prompt_tokens": prompts.shape[1],
        "new_tokens": new_tokens,
        "prefill_tokens_per_second": prompts.size / statistics.median(prefill),
        "decode_tokens_per_second": batch * (new_tokens - 1) / statistics.median(decode),
        "decode_ms_per_step": 1e3 * statistics.median(decode) / (new_tokens - 1),
    }


def memory_bandwidth(repeats: int = 9) -> float:
    """Bytes per second with which the device adds up a large array, the best of some tries."""
    x = jnp.ones((_BANDWIDTH_BYTES // 4096 // 4, 4096), jnp.float32)
    total = jax.jit(lambda x, y: y @ x)
    y = jnp.ones((x.shape[0],), jnp.float32)
    jax.block_until_ready(total(x, y))
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(total(x, y))
        best = min(best, time.perf_counter() - start)
    return x.nbytes / best


def roofline(engine: Engine, line: dict[str, Any], bandwidth: float) -> dict[str, float]:
    """What a decoding step must read, and the step's share of the time that memory needs for it."""
    model = engine.model
    item = engine.cache_itemsize
    length = line["prompt_tokens"] + line["new_tokens"] / 2
    keys = 2 * model.num_layers * model.num_kv_heads * model.head_dim * item
    weights = num_bytes(engine.weights)
    read = weights + line["batch"] * length * keys
    return {
        "weight_bytes": weights,
        "bytes_per_step": read,
        "memory_bytes_per_second": bandwidth,
        "roofline_ms_per_step": 1e3 * read / bandwidth,
        "roofline_share": read / bandwidth / (line["decode_ms_per_step"] / 1e3),
    }
