"""Running launch.py in a process of its own, on a small generated log."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[3]
CONFIG = "--config=configs/recsys/own_log.py:debug"


def write_log(path: pathlib.Path, users: int = 60, items: int = 40, seed: int = 0) -> pathlib.Path:
    """A CSV whose next item depends on the last one, so that a sequence model can learn it."""
    rng = np.random.default_rng(seed)
    lines = ["customer,sku,time"]
    for user in range(users):
        time, item = 1_000_000, int(rng.integers(items))
        for _ in range(int(rng.integers(5, 24))):
            time += int(rng.integers(0, 90_000))
            item = (item * 3 + 1 + int(rng.integers(3))) % items
            lines.append(f"c{user},s{item},{time}")
    path.write_text("\n".join(lines) + "\n")
    return path


def columns(log: pathlib.Path) -> list[str]:
    return [
        f"--config.data.path={log}",
        "--config.data.columns.user=customer",
        "--config.data.columns.item=sku",
        "--config.data.columns.timestamp=time",
    ]


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "PYTHONPATH")}
    return env | {"JAX_PLATFORMS": "cpu"}


def launch(*arguments: str, cwd: pathlib.Path | None = None, timeout: int = 500):
    """The finished process, with text output."""
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        cwd=cwd or ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
