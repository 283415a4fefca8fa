"""ToolACE-R on BFCL as an experiment of `launch.py` ('agents.toolace_r')."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
from typing import Any

import jax

from agents_jax.llm import BatchError, ModelConfig, open_model
from agents_jax.tools.bfcl.data import CITATION, LICENCE, Item
from agents_jax.tools.bfcl.prompts import prompt_messages
from agents_jax.tools.toolace_r.config import ToolAceRConfig
from agents_jax.tools.toolace_r.evaluation import measure, measure_few_shot
from agents_jax.tools.toolace_r.items import Parts, make_parts
from agents_jax.tools.toolace_r.models import Models
from agents_jax.tools.toolace_r.report import GIVEN, Findings, build_report
from agents_jax.tools.toolace_r.report_files import to_markdown, write_report
from agents_jax.tools.toolace_r.rounds import (
    UNTUNED,
    WARM_UP,
    ArmResult,
    InterruptedRun,
    Stages,
    Timings,
)
from pangu_jax.config.resolve import resolve
from pangu_jax.inference.prompts import chat_ids
from pangu_jax.training import Workdir
from pangu_jax.training.workdir import ALLOWED_CHANGES, write_json

# What does not change what was computed before: more arms, other measurements, other limits.
_MAY_CHANGE = (
    *(f"sft.{key}" for key in ALLOWED_CHANGES), "arms", "evaluation.*", "refine.*",
    "rounds.max_rounds", "rounds.min_growth", "sft.base", "sft.remat", "endpoint.*",
)  # fmt: skip


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code.

    'train' does what is not yet done, measures and reports. 'eval' measures and reports what is
    tuned already, or the model that config.model names, as it is.

    Raises:
      ValueError: another mode; several processes; 'eval' of what is not tuned; a request that the
        engine did not answer.
    """
    del command
    if mode not in ("train", "eval"):
        raise ValueError(f"--mode={mode} does not exist for ToolACE-R; use train or eval.")
    experiment = resolve(ToolAceRConfig, config)
    if experiment.model and mode == "train":
        raise ValueError(
            f"--config.model={experiment.model} is measured as it is: use --mode=eval. What is "
            "tuned here is --config.sft.base."
        )
    if jax.process_count() > 1:
        raise ValueError("ToolACE-R runs in one process; leave --num_processes out.")
    if experiment.evaluation.constrained:
        remote = experiment.model.startswith("http")  # its server holds the decoding
        for package in ("jsonschema",) if remote else ("llguidance", "jsonschema"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(
                    f"evaluation.constrained needs {package}: pip install "
                    "-e '.[structured,agents]', or "
                    "--config.evaluation.constrained=False."
                )
    print(f"BFCL: {LICENCE}\n{CITATION}\n", flush=True)
    with Workdir.open(
        workdir, experiment, allowed_changes=_MAY_CHANGE, seed=experiment.sft.train.seed
    ) as held:
        try:
            if experiment.model:
                findings = _measure_given(experiment, held.path)
            else:
                findings = _run(experiment, held.path, trains=mode == "train")
        except InterruptedRun as interrupted:
            print(str(interrupted), flush=True)
            return interrupted.exit_code
        except BatchError as error:  # what was answered is recorded
            raise ValueError(f"{error} The same command goes on from here.") from error
        report = build_report(findings)
        write_report(held.report, report)
        print(f"\n{to_markdown(report)}\nReport: {held.report / 'report.md'}", flush=True)
    return 0


def _run(config: ToolAceRConfig, workdir: pathlib.Path, *, trains: bool) -> Findings:
    models = Models(config.sft, config.engine, workdir / "answers")
    parts = _parts(config, models, workdir)
    stages = Stages(config, workdir, models, parts, trains=trains, say=_say)
    points = stages.baselines()
    warm, points[WARM_UP] = stages.warm_up()
    arms: dict[str, ArmResult] = {}
    for arm in config.arms:
        main = arms.get(config.arms[0])
        arms[arm] = stages.run_arm(arm, warm, main)
        for round_ in arms[arm].rounds:
            points[f"{arm}/round_{round_.number}"] = round_.point
    return Findings(config, parts, points, arms, stages.timings.seconds)


def _measure_given(config: ToolAceRConfig, workdir: pathlib.Path) -> Findings:
    """A model as it is: what a larger one behind an endpoint does without our tuning."""
    parts = _parts(config, None, workdir)
    timings = Timings(workdir / "timings.json")
    local = config.model.startswith("local:")
    chosen = ModelConfig(
        spec=config.model,
        engine=dataclasses.asdict(config.engine) if local else {},
        endpoint=config.endpoint if config.model.startswith("http") else {},
        record=None if config.model.startswith("replay:") else str(workdir / "answers.jsonl"),
    )
    with timings.stage("test"), open_model(chosen) as model:
        held = UNTUNED if config.evaluation.constrained else ()
        if held and "regex" not in model.capabilities:
            _say(f"  {config.model} takes no patterns: nothing is measured with held decoding")
            held = ()
        points = {
            GIVEN: measure(model, parts.test, config, thorough=True, held=held),
            "few_shot": measure_few_shot(model, parts.test, config),
        }
    return Findings(config, parts, points, {}, timings.seconds)


def _parts(config: ToolAceRConfig, models: Models | None, workdir: pathlib.Path) -> Parts:
    def num_tokens(item: Item) -> int:
        return len(chat_ids(models.base.tokenizer, prompt_messages(item, config.data.style)))

    parts = make_parts(config.data, config.rounds, None if models is None else num_tokens)
    for name, counts in parts.sizes().items():
        _say(f"  {name}: " + ", ".join(f"{n} {category}" for category, n in counts.items()))
    for reason, count in parts.dropped.items():
        _say(f"  left out: {count} ({reason})")
    write_json(workdir / "items.json", parts.ids())
    return parts


def _say(text: str) -> None:
    print(text, flush=True)
