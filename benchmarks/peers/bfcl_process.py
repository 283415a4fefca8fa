"""Starts `bfcl_official.py` on the code of the pinned bfcl-eval wheel, in a passing folder."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from pangu_jax.data.wheel import fetch_wheel


def run_official(lines: str, python: str = sys.executable) -> list[dict]:
    """Answers to the cases, lines of JSON; the last one are the seconds.

    Raises:
      RuntimeError: the official code failed; the message has the end of what it said.
    """
    script = pathlib.Path(__file__).with_name("bfcl_official.py")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(fetch_wheel("bfcl-eval")) as archive:
            archive.extractall(folder, [n for n in archive.namelist() if n.endswith(".py")])
        done = subprocess.run(
            [python, str(script), folder],
            input=lines, capture_output=True, text=True, check=False, timeout=3600,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the official checker failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]
