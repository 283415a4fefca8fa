"""Out-of-core preprocessing of a generated log: seconds and peak memory of every stage.

    python benchmarks/out_of_core.py --rows=50000000 --users=500000 --items=100000 --format=csv

Each stage runs in its own process, so its peak resident set is its own. The log is seeded: user
activity is log-normal, item popularity Zipf (exponent 1), times are uniform over two years and
rows are in no order. The last line is one JSON object with all numbers.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

_CHUNK = 2_000_000


def generate(path: Path, args: argparse.Namespace) -> dict:
    """Writes the log piece by piece, so that making it needs little memory too."""
    import polars as pl

    rng = np.random.default_rng(args.seed)
    activity = np.cumsum(rng.lognormal(0.0, 1.0, args.users))
    popularity = np.cumsum(1.0 / np.arange(1, args.items + 1))
    names = rng.permutation(args.items) + 1
    if args.format == "parquet":
        path.mkdir()
    for number, start in enumerate(range(0, args.rows, _CHUNK)):
        size = min(_CHUNK, args.rows - start)
        frame = pl.DataFrame(
            {
                "user_id": np.searchsorted(activity, rng.random(size) * activity[-1]) + 1,
                "item_id": names[np.searchsorted(popularity, rng.random(size) * popularity[-1])],
                "timestamp": rng.integers(1_600_000_000, 1_663_072_000, size),
            }
        )
        if args.format == "parquet":
            frame.write_parquet(path / f"part-{number:04d}.parquet")
        else:
            with open(path, "ab") as handle:
                frame.write_csv(handle, include_header=start == 0)
    files = path.iterdir() if path.is_dir() else [path]
    return {"log_gb": sum(f.stat().st_size for f in files) / 1e9}


def prepare(path: Path, args: argparse.Namespace) -> dict:
    from recsys_jax.data.out_of_core import preprocess

    start = time.perf_counter()

    def report(line: str) -> None:
        print(f"  {time.perf_counter() - start:6.1f} s  {_peak_gb():.2f} GB  {line}", flush=True)

    source = preprocess(path, path.parent / "shards", kind=args.format, report=report)
    size = sum(f.stat().st_size for f in (path.parent / "shards").iterdir())
    return {"users": source.num_users, "items": source.num_items, "shards_gb": size / 1e9}


def iterate(path: Path, args: argparse.Namespace) -> dict:
    """One training epoch of batches, padded to max_len."""
    from recsys_jax.data import ArrayRecordSequences, LeaveOneOut
    from recsys_jax.data.batches import training_dataset

    source = ArrayRecordSequences(path.parent / "shards")
    train = LeaveOneOut()(source).train
    dataset = training_dataset(source, train, batch_size=args.batch_size, max_len=args.max_len)
    batches, events = -(-len(train) // args.batch_size), 0
    iterator = iter(dataset)
    start = time.perf_counter()
    for _ in range(batches):
        events += int(np.count_nonzero(next(iterator)["labels"]))
    seconds = time.perf_counter() - start
    iterator.close()
    assert events == train.lengths(args.max_len).sum(), "an epoch must hold every example once"
    return {"batches": batches, "events": events, "events_per_s": events / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--users", type=int, default=500_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--format", choices=("csv", "parquet"), default="csv")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--max_len", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to work; a temporary folder otherwise")
    args = parser.parse_args()
    folder = Path(args.folder or tempfile.mkdtemp(prefix="out_of_core_"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("log" if args.format == "parquet" else "log.csv")
    result = {
        "rows": args.rows, "format": args.format, "cpus": os.cpu_count(),
        "python": platform.python_version(),
    }  # fmt: skip
    try:
        for stage in (generate, prepare, iterate):
            result[stage.__name__] = _in_process(stage, path, args)
            print(stage.__name__, json.dumps(result[stage.__name__]), flush=True)
        print(json.dumps(result))
    finally:
        if not args.folder:
            shutil.rmtree(folder, ignore_errors=True)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def _measured(stage, path: Path, args: argparse.Namespace, pipe) -> None:
    start = time.perf_counter()
    numbers = stage(path, args)
    pipe.send({"seconds": time.perf_counter() - start, "peak_gb": _peak_gb()} | numbers)


def _in_process(stage, path: Path, args: argparse.Namespace) -> dict:
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(stage, path, args, send))
    process.start()
    send.close()
    try:
        numbers = receive.recv()
    except EOFError:
        raise SystemExit(f"{stage.__name__} failed") from None
    finally:
        process.join()
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in numbers.items()}


if __name__ == "__main__":
    main()
