"""The mode of a planning experiment: plan."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from typing import Any

from pangu_jax.config.resolve import resolve
from pangu_jax.parallel.topology import Topology, topology
from pangu_jax.planning.ablation import ablation, fastest_that_fits, program_steps
from pangu_jax.planning.compiled_plan import compile_step, compiled_tables, how_to_compile
from pangu_jax.planning.config import PlanConfig, PlanPhase
from pangu_jax.planning.cost import Prediction, predict
from pangu_jax.planning.execution import MEGATRON_STACK, RECOMPUTED
from pangu_jax.planning.memory import memory_plan
from pangu_jax.planning.report import prediction_record, write_report
from pangu_jax.planning.sweep import sweep
from pangu_jax.planning.tables import (
    PAPER_MFU,
    Table,
    ablation_table,
    collective_table,
    guessed_table,
    memory_table,
    phase_table,
    remat_table,
    sweep_table,
    time_table,
    validation_table,
)
from pangu_jax.planning.validation import compare, leave_one_out, mean_absolute_error


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs the one mode, 'plan'; returns the process's exit code. Uses no device."""
    if mode != "plan":
        raise ValueError(f"--mode={mode} does not exist for a plan; use --mode=plan.")
    from rich.console import Console

    chosen = resolve(PlanConfig, config)
    where = topology(chosen.topology)
    phases = chosen.build()
    predictions = {
        phase.name: predict(
            chosen.model, phase.layout, where, phase.seq_len, chosen.execution,
            chosen.efficiencies,
        )
        for phase in phases
    }  # fmt: skip
    tables = [phase_table(predictions, where), time_table(predictions), memory_table(predictions)]
    by_policy = {
        policy: {
            phase.name: memory_plan(
                dataclasses.replace(chosen.model, remat=policy), phase.layout, phase.seq_len,
                chosen.execution,
            )
            for phase in phases
        }
        for policy in RECOMPUTED
    }  # fmt: skip
    tables.append(remat_table(by_policy, chosen.model.remat))
    tables.append(collective_table(phases[0].name, predictions[phases[0].name]))
    extra: dict[str, Any] = {
        "memory_by_remat": {
            policy: {name: plan.parts for name, plan in found.items()}
            for policy, found in by_policy.items()
        }
    }
    options = chosen.plan
    for wanted, make in (
        (options.ablation, _ablation),
        (options.sweep, _sweep),
        (options.validate, _validation),
    ):
        if wanted:
            tables += make(chosen, where, phases, predictions, extra)
    folder = pathlib.Path(workdir) / "plan"
    if options.compile:
        tables += _compiled(chosen, where, phases[0], folder, extra)
    # Files and pipes have no width of their own.
    console = Console(width=None if sys.stdout.isatty() else 130)
    for table in tables:
        table.show(console)
    path = write_report(folder, chosen, where, phases, predictions, tables, extra)
    if not options.compile:
        console.print(how_to_compile(where.name), highlight=False, markup=False)
    if not options.sweep:
        console.print("The fastest layouts that fit: --config.plan.sweep.", highlight=False)
    console.print(f"Report: {path}, with plan.json and timelines beside it.", soft_wrap=True)
    return 0


def _compiled(
    config: PlanConfig, where: Topology, phase: PlanPhase, folder: pathlib.Path,
    extra: dict[str, Any],
) -> list[Table]:  # fmt: skip
    record = compile_step(
        where.name, config.model, phase.layout, phase.seq_len, folder / "compiled.json"
    )
    extra["compiled"] = {"phase": phase.name, **record}
    return compiled_tables(phase.name, record)


def _ablation(
    config: PlanConfig, where: Topology, phases: tuple[PlanPhase, ...],
    predictions: dict[str, Prediction], extra: dict[str, Any],
) -> list[Table]:  # fmt: skip
    layouts = {phase.name: (phase.seq_len, phase.layout) for phase in phases}
    paper = ablation(config.model, where, layouts, config.efficiencies)
    own = program_steps(config.model, where, layouts, config.execution, config.efficiencies)
    for name, steps in (("ablation", paper), ("program", own)):
        extra[name] = [
            {
                "switched_on": step.name,
                "mfu": {phase: found.mfu for phase, found in step.predictions.items()},
                "fits": {phase: found.fits for phase, found in step.predictions.items()},
                "recomputed": {phase: list(again) for phase, again in step.recomputed.items()},
            }
            for step in steps
        ]
    return [
        ablation_table(
            "Predicted MFU with the paper's optimizations switched on in turn", paper,
            f"Each row keeps those above it. The paper: {PAPER_MFU[0]:.0%} and over "
            f"{PAPER_MFU[1]:.0%} for rows of 4K; nothing for single optimizations or other phases. "
            "The stack is reconstructed (`pangu_jax/planning/ablation.py`).",
        ),
        ablation_table(
            "Predicted MFU of the step program here, and of changes to it", own,
            "Each row keeps those above it.",
        ),
    ]  # fmt: skip


def _sweep(
    config: PlanConfig, where: Topology, phases: tuple[PlanPhase, ...],
    predictions: dict[str, Prediction], extra: dict[str, Any],
) -> list[Table]:  # fmt: skip
    tables, records = [], {}
    stacks = [("this program", config.execution)]
    if config.plan.ablation:
        stacks.append(("the paper's stack", dataclasses.replace(MEGATRON_STACK, recompute=None)))
    for phase in phases:
        for name, execution in stacks:
            title = f"{phase.name}, {name}"
            found = sweep(
                config.model, where, seq_len=phase.seq_len, batch_rows=phase.layout.batch_rows,
                base=phase.layout, execution=execution, efficiencies=config.efficiencies,
                config=config.search,
            )  # fmt: skip
            planned = predictions[phase.name]
            if execution is not config.execution:
                paper = dataclasses.replace(phase.layout, overlap=True)
                planned = fastest_that_fits(
                    config.model, paper, where, phase.seq_len, execution, config.efficiencies
                )[1]
            tables.append(sweep_table(title, found, planned))
            records[title] = [
                {"remat": entry.remat, **prediction_record(entry.prediction)}
                for entry in found.entries
            ]
    extra["sweep"] = records
    return tables


def _validation(
    config: PlanConfig, where: Topology, phases: tuple[PlanPhase, ...],
    predictions: dict[str, Prediction], extra: dict[str, Any],
) -> list[Table]:  # fmt: skip
    comparisons = compare(config.efficiencies)
    errors = mean_absolute_error(comparisons), leave_one_out(config.efficiencies)[0]
    extra["validation"] = {
        "mean_absolute_error": errors[0],
        "leave_one_out_error": errors[1],
        "runs": [
            {
                "name": c.run.name, "source": c.run.source, "reported": c.run.reported,
                "published_mfu": c.run.mfu, "predicted_mfu": c.prediction.mfu, "note": c.run.note,
                "guessed": list(c.run.guessed),
            }
            for c in comparisons
        ],
    }  # fmt: skip
    return [validation_table(comparisons, errors), guessed_table(comparisons)]
