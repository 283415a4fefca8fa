"""Time of a compiled call, and the rates it is held against; for the scripts in benchmarks/.

On a GPU or a TPU the clock on the wall counts the launch of a call as well, up to 0.1 ms, which is
more than many kernels take. Two things bound the time of a call on the device from above, and the
smaller counts: a loop on the device divided by the number of its turns, every one of which depends
on the one before, so that none can be left out or moved (there a turn costs some microseconds of
its own, more around kernels that no CUDA graph takes); and as many calls in a row that are waited
for together, divided by their number (there launching must not take longer than the call). Arrays
that fit into the device's cache may stay there from call to call.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

TURNS = 20
# Large enough to be no constant that a compiler drops, too small to change what a call computes.
_NUDGE = 1e-30
# After this many repeats the clock stops once so much time has gone.
_ENOUGH, _MOST_MILLISECONDS = 3, 1000
# A loop of slow calls takes fewer turns than asked for.
_LOOP_SECONDS = 0.4


class Timing(NamedTuple):
    """Milliseconds of one call; the fastest of the repeats unless said otherwise.

    device: without the launch, where there is a device (the smaller of the two bounds above); the
      wall time on a CPU.
    median: as `device`, the median of the repeats.
    wall: from the call until the outputs are ready.
    cpu: processor time of all threads in a wall-clocked call.
    first: tracing, compilation and the first calls.
    """

    device: float
    median: float
    wall: float
    cpu: float
    first: float


class Compiled(NamedTuple):
    """A function compiled for its arguments, by itself and as a loop (None on a CPU)."""

    call: Callable[..., Any]
    loop: Callable[..., Any] | None
    turns: int
    milliseconds: float


def carried_leaf(args: tuple[Any, ...]) -> int:
    """Place of the first floating leaf of the arguments."""
    kinds = (jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(args))
    return next(n for n, floating in enumerate(kinds) if floating)


def chained(function: Callable[..., Any], turns: int) -> Callable[..., Any]:
    """`function` called `turns` times on the device, each call waiting for the one before.

    The first floating leaf of the arguments goes round the loop: one entry of it is moved by 10^-30
    times the sum of one entry of every output. That rounds to nothing unless the entry is zero, so
    all calls compute the same.

    Args:
      function: of any trees of arrays, to any tree of arrays.
      turns: number of calls, at least 1.

    Returns:
      A function (carried leaf, *arguments) -> (carried leaf, value of the last call). The leaf
      comes by itself so that its memory can be donated: else every run would begin with a copy.
    """

    function = jax.jit(function)  # Traced and lowered once for its two places below.

    def loop(carried, *args):
        leaves, tree = jax.tree.flatten(args)
        place = carried_leaf(args)

        def call(carried):
            # The barriers keep the calls from being fused with what ties them together.
            carried = jax.lax.optimization_barrier(carried)
            out = function(*tree.unflatten([*leaves[:place], carried, *leaves[place + 1 :]]))
            return jax.lax.optimization_barrier(out)

        def turn(_, state):
            carried, out = state
            carried = _nudged(carried, out)
            return carried, call(carried)

        return jax.lax.fori_loop(1, turns, turn, (carried, call(carried)))

    return loop


def _first_entry(x):
    return jax.lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)


def _nudged(x, out):
    entries = [
        _first_entry(leaf).reshape(()).astype(jnp.float32)
        for leaf in jax.tree.leaves(out)
        if leaf.size
    ]
    # What is infinite or undefined must not spoil the next call's argument.
    total = jnp.nan_to_num(sum(entries) * _NUDGE, posinf=0.0, neginf=0.0)
    # By itself, behind a barrier: an update that reads the array it changes is not made in place,
    # and every call would be timed together with a copy of its argument.
    entry = jax.lax.optimization_barrier(_first_entry(x) + total.astype(x.dtype))
    return jax.lax.dynamic_update_slice(x, entry, (0,) * x.ndim)


def compile_ahead(function: Callable[..., Any], *args: Any, turns: int = TURNS) -> Compiled:
    """Compiles and first calls what `measure` times; may run in several threads at once.

    Args:
      function: of arrays.
      *args: arguments.
      turns: most calls of a loop; slow calls get fewer.
    """
    begin = time.perf_counter()
    call = jax.jit(function).lower(*args).compile()
    # Some kernels are loaded, or even compiled, when they are first called.
    jax.block_until_ready(call(*args))
    loop = None
    if jax.default_backend() != "cpu":
        again = time.perf_counter()
        jax.block_until_ready(call(*args))
        turns = max(2, min(turns, int(_LOOP_SECONDS / (time.perf_counter() - again))))
        carried = _copy_of_carried(args)
        loop = jax.jit(chained(function, turns), donate_argnums=0).lower(carried, *args).compile()
        jax.block_until_ready(loop(carried, *args))
    return Compiled(call, loop, turns, (time.perf_counter() - begin) * 1e3)


def _copy_of_carried(args):
    return jnp.array(jax.tree.leaves(args)[carried_leaf(args)], copy=True)


def compile_all(
    calls: Mapping[Hashable, tuple[Callable[..., Any], tuple[Any, ...]]],
) -> dict[Hashable, Compiled | Exception]:
    """`compile_ahead` of every (function, arguments), in as many threads as there are processors.

    Returns:
      By the same keys, what was compiled or the exception that said why not.
    """

    def one(item):
        function, args = item
        try:
            return compile_ahead(function, *args)
        except Exception as error:  # One case that fails must not cost the others.
            return error

    workers = min(len(os.sched_getaffinity(0)), 16)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(calls, pool.map(one, calls.values()), strict=True))


def measure(function: Callable[..., Any] | Compiled, *args: Any, repeats: int) -> Timing:
    """Time of `function(*args)`, compiled here unless `compile_ahead` has been called.

    Args:
      function: of arrays, or what `compile_ahead` returned for it and these arguments.
      *args: arguments.
      repeats: timed calls (and timed loops of `turns` calls, on a GPU or TPU); fewer, but at least
        3, where they take more than a second together.
    """
    if not isinstance(function, Compiled):
        function = compile_ahead(function, *args)
    wall, cpu = _clock(lambda: function.call(*args), repeats)
    device = wall
    if function.loop is not None:
        carried = [_copy_of_carried(args)]

        def run():
            carried[0], out = function.loop(carried[0], *args)
            return carried[0], out

        def in_a_row():
            for _ in range(function.turns):
                out = function.call(*args)
            return out

        bounds = [_clock(many, repeats)[0] for many in (run, in_a_row)]
        device = [t / function.turns for t in min(bounds, key=min)]
    return Timing(
        min(device), statistics.median(device), min(wall), min(cpu), function.milliseconds
    )


@contextlib.contextmanager
def alone(path: str) -> Iterator[None]:
    """Holds a lock on the file `path`, '' for none.

    Benchmarks that share one can compile side by side and use the clock one after the other.
    """
    if not path:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _clock(run, repeats):
    """Wall and processor times of the runs, in milliseconds."""
    wall, cpu = [], []
    while len(wall) < repeats and (len(wall) < _ENOUGH or sum(wall) < _MOST_MILLISECONDS):
        begin, begin_cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(run())
        wall.append((time.perf_counter() - begin) * 1e3)
        cpu.append((time.process_time() - begin_cpu) * 1e3)
    return wall, cpu


def matmul_tflops(dtype: jax.typing.DTypeLike, repeats: int) -> float:
    """Rate of a square product of random numbers, in TFLOP/s."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    return 2 * size**3 / measure(lambda x: x @ x, x, repeats=repeats).device / 1e9


def copy_gbytes(dtype: jax.typing.DTypeLike, repeats: int, size: int | None = None) -> float:
    """Rate at which an array is read and another written, in GB/s: x + 1 over an array.

    Args:
      dtype: of the array.
      repeats: as in `measure`.
      size: entries; None: so many that starting and ending do not count.
    """
    if size is None:
        size = 2**24 if jax.default_backend() == "cpu" else 2**28
    x = jnp.ones((size,), dtype)
    timing = measure(lambda x: x + 1, x, repeats=repeats)
    return 2 * x.nbytes / timing.device / 1e6
