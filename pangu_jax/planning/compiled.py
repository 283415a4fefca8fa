"""The whole training step, lowered and compiled for machines that are not here.

    python -m pangu_jax.planning.compiled --target=h100_8192 --config=ultra_135b --out=step.json
    python -m pangu_jax.planning.compiled --target=h100_8 --config=debug --layout data=2 pipe=2 \
        tensor=2 microbatches=2 --seq-len=64 --out=small.json

`lower_abstract` needs no device and no plugin: it says that the program can be traced and divided,
and which collectives it asks for. `compile_ahead` runs a real compiler for real devices that are
absent: memory as the compiler lays it out, collectives as it leaves them. Nothing is executed.

The command runs in a process of its own, because plugins change JAX for good, and ends it without
the usual clean-up, which for thousands of devices can take many minutes.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import re
import resource
import signal
import sys
import time
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import AXES, Layout, LayoutError, layout_mesh, topology_mesh
from pangu_jax.parallel.phase_layouts import phase_layouts
from pangu_jax.planning.communication import step_collectives
from pangu_jax.planning.differences import collective_differences
from pangu_jax.planning.execution import Execution
from pangu_jax.planning.hlo import HloCollectives, hlo_collectives
from pangu_jax.planning.memory import memory_plan
from pangu_jax.planning.targets import (
    Target,
    TargetError,
    compiler_versions,
    target,
    target_devices,
)
from pangu_jax.planning.train_program import train_program
from pangu_jax.training.phases import PANGU_ULTRA, PhaseSchedule

STABLEHLO_COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "collective_permute")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoweredStep:
    """A step lowered for one platform.

    collectives: StableHLO name -> how often it stands in the text (loops counted once; those that
    automatic sharding adds outside the program divided by hand are not there yet).
    seconds: of tracing and lowering.
    """

    platform: str
    devices: int
    collectives: dict[str, int]
    seconds: float
    text: str = dataclasses.field(repr=False)


def lower_abstract(
    config: DecoderConfig, layout: Layout, seq_len: int, *, like: Target | None = None
) -> LoweredStep:
    """The training step lowered for a mesh without devices.

    Args:
      like: choose kernels and lower for its device; None: for CPUs. Its plugin is not needed.

    Raises:
      LayoutError: a layout that does not fit the model or the rows.
    """
    started = time.perf_counter()
    mesh = AbstractMesh(
        layout.mesh_shape, AXES, axis_types=(AxisType.Auto,) * len(AXES),
        abstract_device=like.abstract_device if like else None,
    )  # fmt: skip
    platform = like.platform if like else "cpu"
    traced = train_program(config, layout, mesh, seq_len).trace()
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    counts = {name: text.count(f"stablehlo.{name}") for name in STABLEHLO_COLLECTIVES}
    seconds = time.perf_counter() - started
    return LoweredStep(
        platform=platform, devices=layout.devices, collectives=counts, seconds=seconds, text=text
    )


def compile_ahead(
    chosen: Target, config: DecoderConfig, layout: Layout, seq_len: int
) -> tuple[dict[str, Any], str]:
    """Compiles the training step for a target; returns (a record for JSON, the HLO text).

    Loads the target's plugin: see the module's text.

    Raises:
      TargetError: the plugin is missing. LayoutError: a layout that does not fit.
    """
    started = [time.perf_counter()]
    devices = target_devices(chosen)
    mesh = (
        topology_mesh(layout, config, chosen.figures, seq_len=seq_len, devices=devices)
        if chosen.figures
        else layout_mesh(layout, devices)
    )
    started.append(time.perf_counter())
    traced = train_program(config, layout, mesh, seq_len).trace()
    started.append(time.perf_counter())
    lowered = traced.lower()
    started.append(time.perf_counter())
    compiled = lowered.compile()
    started.append(time.perf_counter())
    text = compiled.as_text()
    stages = ("topology", "trace", "lower", "compile")
    found = hlo_collectives(text)
    record = {
        "target": chosen.name,
        "devices": layout.devices,
        "device_kind": mesh.devices.flat[0].device_kind,
        "versions": compiler_versions(chosen.platform),
        "model": dataclasses.asdict(config),
        "parameters": config.num_parameters(),
        "layout": dataclasses.asdict(layout),
        "seq_len": seq_len,
        "seconds": {
            name: round(after - before, 2)
            for name, before, after in zip(stages, started[:-1], started[1:], strict=True)
        },
        "load_average": os.getloadavg()[0],
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "memory": memory_record(compiled.memory_analysis()),
        "planned_memory": memory_plan(config, layout, seq_len, Execution()).parts,
        "collectives": collective_records(text, found),
        "differences": _differences(chosen, config, layout, seq_len, found),
        "unknown_loops": list(found.unknown_loops),
    }
    return record, text


def _differences(chosen, config, layout, seq_len, found) -> list[dict[str, Any]]:
    """Planned collectives beside those found; nothing for a target without figures."""
    if chosen.figures is None:
        return []
    planned = step_collectives(config, layout, chosen.figures, seq_len)
    return [
        dataclasses.asdict(one) | {"explained": one.explained}
        for one in collective_differences(planned, found)
    ]


def memory_record(stats: Any) -> dict[str, int]:
    """Bytes on one device, of `compiled.memory_analysis()`.

    arguments: parameters, optimizer state and batch; aliased: results that take their place;
    temporaries: everything else that the step allocates; total: all of it.
    """
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "results": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    total = sizes["arguments"] + sizes["results"] - sizes["aliased"] + sizes["temporaries"]
    return sizes | {"total": total}


# Part of the step -> a pattern of the path that JAX gives an instruction. First match counts.
_PARTS = (
    ("recompute", r"rematted_computation"),
    ("loss", r"jvp\(loss\)"),
    ("backward", r"transpose\(jvp\(.*/Block/"),
    ("rerun", r"jvp\(.*/Block/"),
    ("forward", r"/Block/"),
    ("pipeline", r"/ppermute"),
    ("ends", r"shard_map/while/"),
    ("step", r""),
)


def part_of(path: str) -> str:
    """Which part of the step an instruction with this op_name belongs to.

    forward, rerun, recompute, backward: of layers, as in `communication.layer_collectives`.
    loss, ends: of embedding and head. pipeline: between ranks. step: once per step, over data and
    others.
    """
    return next(part for part, pattern in _PARTS if re.search(pattern, path))


def collective_records(text: str, found: HloCollectives) -> list[dict[str, Any]]:
    """Collectives by part, kind, group and size, largest sum first.

    executions is an upper bound: bodies of loops with a known number of trips are multiplied out,
    and every branch counts as taken. Of a pipeline that is ticks x what stands in a tick; a rank
    executes its layers' share only in ticks in which anybody has such a part
    (`pipeline.executed_units`), those of the ends only for its own micro-batches.
    """
    paths = _paths(text)
    counts: collections.Counter = collections.Counter()
    for op in found.operations:
        own, near = paths.get(op.name, ("", ""))
        # What compilers combine or rewrite loses its path; in a loop, its neighbours' tells.
        part = part_of(own or (near if op.executions > 1 else ""))
        if part == "step" and op.executions > 1:
            part = "unnamed"
        counts[part, op.kind, op.group_size, op.bytes] += op.executions
    records = [
        {
            "part": part, "kind": kind, "group": group, "result_bytes": size, "executions": count,
            "total_bytes": size * count,
        }
        for (part, kind, group, size), count in counts.items()
    ]  # fmt: skip
    return sorted(records, key=lambda record: -record["total_bytes"])


def _paths(text: str) -> dict[str, tuple[str, str]]:
    """Instruction -> (its op_name or '', the last one at or above it in its computation)."""
    paths: dict[str, tuple[str, str]] = {}
    near = ""
    for line in text.splitlines():
        if line and not line[0].isspace():
            near = ""
        name = re.match(r"\s+(?:ROOT\s+)?%?([\w.\-]+) = ", line)
        if name:
            path = re.search(r'op_name="([^"]*)"', line)
            near = path.group(1) if path else near
            paths[name.group(1)] = (path.group(1) if path else "", near)
    return paths


def planned_phase(name: str, config: DecoderConfig, chosen: Target, **others) -> tuple[Layout, int]:
    """(layout, row length) of a phase of Pangu Ultra's training on a target.

    Raises:
      TargetError: no such phase, or a target without figures.
    """
    phases = {phase.name: phase for phase in PANGU_ULTRA.phases}
    if name not in phases:
        raise TargetError(f"phase={name!r} is unknown; allowed: {', '.join(phases)}.")
    if chosen.figures is None:
        raise TargetError(
            f"target={chosen.name!r} has no planned layouts; give --layout and --seq-len."
        )
    schedule = PhaseSchedule(phases=(phases[name],), rates=PANGU_ULTRA.rates)
    layouts = phase_layouts(schedule, config, topology=chosen.figures, **others)
    return layouts[name], phases[name].seq_len


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pangu_jax.planning.compiled")
    parser.add_argument("--target", required=True, help="what to compile for")
    parser.add_argument("--config", default="ultra_135b", help="a preset of the model")
    parser.add_argument("--model", nargs="*", default=[], help="fields of the preset, a=b")
    parser.add_argument("--phase", default="general_3", help="a phase of Pangu Ultra")
    parser.add_argument("--layout", nargs="*", default=[], help="fields of the layout, a=b")
    parser.add_argument(
        "--seq-len", type=int, help="the layout is exactly --layout, rows are this long"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file to write")
    parser.add_argument("--hlo", type=pathlib.Path, help="also write the compiled program here")
    parser.add_argument("--limit", type=int, default=1800, help="seconds until it is given up")
    options = parser.parse_args(arguments)
    # The operating system ends the process: a compiler at work hears no Python signal handler.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(options.limit)
    jax.config.update("jax_platforms", "cpu")
    try:
        chosen = target(options.target)
        config = preset(options.config, **_fields(options.model))
        fields = _fields(options.layout)
        if options.seq_len is None:
            layout, seq_len = planned_phase(options.phase, config, chosen, **fields)
        else:
            layout, seq_len = Layout(**fields), options.seq_len
        record, text = compile_ahead(chosen, config, layout, seq_len)
    except (ValueError, TypeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1))
    if options.hlo:
        options.hlo.write_text(text)
    memory, seconds = record["memory"], record["seconds"]
    print(
        f"{options.target}: {layout.devices} x {record['device_kind']}, compiled in "
        f"{seconds['compile']} s; {memory['arguments'] / 1e9:.2f} GB of arguments and "
        f"{memory['temporaries'] / 1e9:.2f} GB of temporaries on a device. {options.out}"
    )
    return 0


def _fields(pairs: list[str]) -> dict[str, Any]:
    """'a=1' 'b=text' -> {'a': 1, 'b': 'text'}."""
    fields = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator:
            raise LayoutError(f"{pair!r} is no field=value.")
        try:
            fields[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            fields[name] = value
    return fields


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
