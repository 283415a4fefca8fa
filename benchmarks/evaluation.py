"""Full-catalogue evaluation: users per second and peak memory, against two simple peers.

    python benchmarks/evaluation.py --items=1000000 --users=2000
    python benchmarks/evaluation.py --items=1682 --users=943 --batch=128   # size of MovieLens-100K

ours: `Evaluator.evaluate` (ranks, top-k, all metrics) with an encoder that is one look-up, so that
only the evaluation is timed. dense: the usual way, a whole score matrix per batch, history set to
-inf, `lax.top_k`, in JAX. numpy: the same with `argpartition`. matmul: the matrix product alone,
the floor under all of them. Each method runs in its own process, so its peak resident set is its
own; the time is the best of `--repeats` passes over the users, after one that compiles. The last
line is one JSON object with all numbers.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

METHODS = ("ours", "dense", "numpy", "matmul")


def problem(args):
    """Item table, user vectors and evaluation batches; the popular items fill the histories."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((args.items + 1, args.dim), np.float32)
    vectors = rng.standard_normal((args.users, args.dim), np.float32)
    skew = lambda *shape: np.minimum(  # noqa: E731
        1 + args.items * rng.random(shape) ** 3, args.items
    ).astype(np.int32)
    batches = []
    for begin in range(0, args.users, args.batch):
        users = np.full(args.batch, -1, np.int32)
        real = min(args.batch, args.users - begin)
        users[:real] = np.arange(begin, begin + real)
        batches.append(
            {
                "users": users,
                "lengths": np.ones(args.batch, np.int32),
                "targets": skew(args.batch),
                "history": skew(args.batch, args.history),
            }
        )
    return table, vectors, batches


def run_ours(args, table, vectors, batches):
    import jax

    from recsys_jax.evaluation import Evaluator

    params = {"users": jax.device_put(vectors), "items": jax.device_put(table)}
    evaluator = Evaluator(
        lambda params, batch: params["users"][batch["users"]],
        popularity=np.ones(args.items + 1), k_coverage=min(args.k, 10), keep_topk=args.k,
    )  # fmt: skip
    return lambda: evaluator.evaluate(params, params["items"], batches)


def run_dense(args, table, vectors, batches):
    import jax
    import jax.numpy as jnp

    @jax.jit
    def step(table, users_BD, targets, history):
        scores = jnp.dot(users_BD, table.T, precision="highest")
        rows = jnp.arange(len(targets))
        target = scores[rows, targets][:, None]
        scores = scores.at[rows[:, None], history].set(-jnp.inf).at[:, 0].set(-jnp.inf)
        return (scores >= target).sum(1), jax.lax.top_k(scores, args.k)

    table = jax.device_put(table)

    def loop():
        for b in batches:
            out = step(table, vectors[np.maximum(b["users"], 0)], b["targets"], b["history"])
            jax.block_until_ready(out)

    return loop


def run_numpy(args, table, vectors, batches):
    def loop():
        for b in batches:
            scores = vectors[np.maximum(b["users"], 0)] @ table.T
            rows = np.arange(len(scores))
            target = scores[rows, b["targets"]][:, None]
            scores[rows[:, None], b["history"]] = -np.inf
            scores[:, 0] = -np.inf
            (scores >= target).sum(1)
            best = np.argpartition(scores, -args.k, axis=1)[:, -args.k :]
            np.take_along_axis(
                best, np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1), axis=1
            )

    return loop


def run_matmul(args, table, vectors, batches):
    """The product in the blocks that the streamed ranking uses; nothing else."""
    import jax
    import jax.numpy as jnp

    from recsys_jax.evaluation.ranking import auto_block_items

    size = min(auto_block_items(args.batch), args.items + 1)

    @jax.jit
    def step(table, users_DB):
        def block(carry, start):
            rows = jax.lax.dynamic_slice(table, (start, 0), (size, args.dim))
            # The last row keeps the product alive at no cost.
            return carry + jnp.dot(rows, users_DB, precision="highest")[-1], None

        starts = jnp.arange((args.items + 1) // size) * size
        return jax.lax.scan(block, jnp.zeros(users_DB.shape[1]), starts)[0]

    table = jax.device_put(table)

    def loop():
        for b in batches:
            jax.block_until_ready(step(table, vectors[np.maximum(b["users"], 0)].T))

    return loop


def measure(method, args) -> dict:
    data = problem(args)
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    loop = globals()[f"run_{method}"](args, *data)
    begin = time.perf_counter()
    loop()
    first = time.perf_counter() - begin
    times = []
    for _ in range(args.repeats):
        begin = time.perf_counter()
        loop()
        times.append(time.perf_counter() - begin)
    best = min(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "method": method,
        "seconds": best,
        "first_seconds": first,
        "users_per_second": args.users / best,
        "peak_rss_mb": peak,
        "inputs_rss_mb": base,
        "seconds_per_1e5_users": 1e5 * best / args.users,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--history", type=int, default=200, help="history items per user")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--methods", default=",".join(METHODS))
    args = parser.parse_args()
    methods = args.methods.split(",")
    unknown = set(methods) - set(METHODS)
    if unknown:
        parser.error(f"--methods: {sorted(unknown)} unknown; allowed are {', '.join(METHODS)}")

    results = []
    context = multiprocessing.get_context("spawn")
    for method in methods:
        with context.Pool(1) as pool:
            results.append(pool.apply(functools.partial(measure, method, args)))
        r = results[-1]
        print(
            f"{r['method']:7s} {r['seconds']:8.3f} s  {r['users_per_second']:10,.0f} users/s  "
            f"peak {r['peak_rss_mb']:7,.0f} MB (inputs {r['inputs_rss_mb']:,.0f} MB)  "
            f"first pass {r['first_seconds']:.1f} s  "
            f"extrapolated to 1e5 users: {r['seconds_per_1e5_users']:,.0f} s",
            flush=True,
        )
    import jax

    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "jax": jax.__version__}
    print(json.dumps({"settings": vars(args), "results": results} | machine))


if __name__ == "__main__":
    main()
