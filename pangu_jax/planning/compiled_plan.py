"""Compiled numbers beside planned ones: the compiler is run in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys
from typing import Any

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.layout import Layout
from pangu_jax.planning.execution import PlanError
from pangu_jax.planning.tables import Table, size_text
from pangu_jax.planning.targets import TARGETS, available

_MODULE = "pangu_jax.planning.compiled"
_ROOT = pathlib.Path(__file__).resolve().parents[2]


def compile_arguments(
    topology: str, model: DecoderConfig, layout: Layout, seq_len: int, out: pathlib.Path
) -> list[str]:
    """Arguments of `python -m pangu_jax.planning.compiled` for exactly this step.

    Raises:
      PlanError: there is no compiler for the topology, or the model cannot be named.
    """
    if topology not in TARGETS:
        raise PlanError(
            f"topology={topology!r} has no compiler here; the same program compiles for "
            f"{', '.join(TARGETS)}. Set --config.topology to one of them."
        )
    if model.rope_scaling is not None:
        raise PlanError("model.rope_scaling cannot be passed to the compiler's process; set None.")
    return [
        f"--target={topology}", "--config=debug", "--model", *_fields(model),
        "--layout", *_fields(layout), f"--seq-len={seq_len}", f"--out={out}",
    ]  # fmt: skip


def _fields(instance: Any) -> list[str]:
    values = ((f.name, getattr(instance, f.name)) for f in dataclasses.fields(instance))
    return [f"{name}={x if isinstance(x, str) else json.dumps(x)}" for name, x in values]


def how_to_compile(topology: str) -> str:
    """One sentence: how compiled numbers come to stand beside the predicted ones."""
    if topology not in TARGETS:
        return (
            f"Compiled numbers: there is no compiler for {topology!r} here; plan h100_8192 or "
            "tpu_v5p_8192 (the same step program) with --config.plan.compile."
        )
    platform = TARGETS[topology].platform
    need = "" if available(platform) else f" after pip install '.[aot-{platform}]'"
    return f"Compiled numbers beside these: --config.plan.compile{need}."


def compile_step(
    topology: str, model: DecoderConfig, layout: Layout, seq_len: int, out: pathlib.Path
) -> dict[str, Any]:
    """The record of `planning.compiled` for a step, made by a process of its own.

    Raises:
      PlanError: it failed; with what it said.
    """
    arguments = compile_arguments(topology, model, layout, seq_len, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", _MODULE, *arguments], cwd=_ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise PlanError(f"Compiling for {topology!r} failed: {said[-1]}")
    return json.loads(out.read_text())


def compiled_tables(phase: str, record: dict[str, Any]) -> list[Table]:
    """Memory and collectives as planned and as the compiler left them."""
    planned, memory = record["planned_memory"], record["memory"]
    lasting = planned["parameters"] + planned["optimizer"]
    rows = (
        ("parameters, optimizer state, batch", lasting, memory["arguments"]),
        ("everything else", sum(planned.values()) - lasting, memory["temporaries"]),
        ("sum", sum(planned.values()), memory["total"]),
    )
    seconds, versions = record["seconds"], record["versions"]
    of_memory = Table(
        f"Memory of a device, {phase}: planned and compiled",
        ("part", "planned", "compiled", "difference"),
        tuple((name, size_text(a), size_text(b), f"{b / a - 1:+.1%}") for name, a, b in rows),
        f"Compiled for {record['devices']:,} x {record['device_kind']} in "
        f"{seconds['compile']:.0f} s ({', '.join(f'{k} {v}' for k, v in versions.items())}), "
        f"{record['peak_rss_bytes'] / 1e9:.1f} GB of host memory; not executed.",
    )
    large = [
        d for d in record["differences"]
        if max(d["planned_bytes"], d["compiled_bytes"]) > 1e6
    ]  # fmt: skip
    of_collectives = Table(
        f"Collectives of a step, {phase}: planned and compiled",
        ("kind", "group", "planned", "compiled, at least", "at most", "agree"),
        tuple(
            (
                d["kind"],
                str(d["group"]),
                size_text(d["planned_bytes"]),
                size_text(d["compiled_bytes"] - d["conditional_bytes"]),
                size_text(d["compiled_bytes"]),
                "yes" if d["explained"] else "no",
            )
            for d in large
        ),  # fmt: skip
        "Bytes of results on a device, loops multiplied out. At least: without those in branches "
        "that a rank may not take (idle ticks, ends); at most: every branch always taken. Left "
        "out: what moves less than a megabyte.",
    )
    return [of_memory, of_collectives]
