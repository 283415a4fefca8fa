"""Time of a compiled call, and the rates it is held against; for the scripts in benchmarks/."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Timing(NamedTuple):
    """Milliseconds: fastest wall and processor time (all threads) of a call, and the first call."""

    wall: float
    cpu: float
    first: float


def measure(function: Callable[..., Any], *args: Any, repeats: int) -> Timing:
    """Calls `function(*args)` once to compile and `repeats` times for the clock."""
    begin = time.perf_counter()
    jax.block_until_ready(function(*args))
    first = time.perf_counter() - begin
    wall, cpu = [], []
    for _ in range(repeats):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*args))
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - begin_cpu)
    return Timing(min(wall) * 1e3, min(cpu) * 1e3, first * 1e3)


def matmul_tflops(dtype: jax.typing.DTypeLike, repeats: int) -> float:
    """Rate of a square product of random numbers, in TFLOP/s."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    return 2 * size**3 / measure(jax.jit(lambda x: x @ x), x, repeats=repeats).wall / 1e9


def copy_gbytes(dtype: jax.typing.DTypeLike, repeats: int) -> float:
    """Rate at which an array is read and another written, in GB/s: x + 1 over a large array."""
    size = 2**24 if jax.default_backend() == "cpu" else 2**28
    x = jax.numpy.ones((size,), dtype)
    timing = measure(jax.jit(lambda x: x + 1), x, repeats=repeats)
    return 2 * x.nbytes / timing.wall / 1e6
