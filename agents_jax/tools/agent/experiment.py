"""Runs of an agent: tasks with a report ('train', launch.py's default mode), or a conversation."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from agents_jax.llm import BaseModel, ModelConfig, open_model
from agents_jax.tools.agent.builtin_tasks import builtin_tasks, write_documents
from agents_jax.tools.agent.config import AgentConfig
from agents_jax.tools.agent.gather import GatheringModel
from agents_jax.tools.agent.loop import Agent, Listener
from agents_jax.tools.agent.oracle import oracle_model
from agents_jax.tools.agent.plugins import make_policy, make_refiner
from agents_jax.tools.agent.runner import run_tasks
from agents_jax.tools.agent.scores import Summary, score
from agents_jax.tools.agent.tasks import Task, read_tasks
from agents_jax.tools.agent.transcript import Transcript
from agents_jax.tools.execution import Executor
from agents_jax.tools.local_tools import default_registry
from agents_jax.tools.registry import Registry
from pangu_jax.config.resolve import resolve, to_dict
from pangu_jax.training.workdir import write_json

TRANSCRIPTS = "transcripts.jsonl"


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code."""
    experiment = resolve(AgentConfig, config)
    workdir = pathlib.Path(workdir)
    if mode == "train":
        return _run_tasks(experiment, workdir, command)
    if mode == "chat":
        from agents_jax.tools.agent.chat import chat

        with open_agent(experiment, workdir) as (make_agent, _), make_agent() as agent:
            chat(agent, workdir / "chat.jsonl")
        return 0
    raise ValueError(
        f"--mode={mode} does not exist for an agent; use --mode=train (runs the tasks) or "
        "--mode=chat."
    )


def _run_tasks(config: AgentConfig, workdir: pathlib.Path, command: Sequence[str]) -> int:
    tasks = load_tasks(config)  # mistakes in them before a model is loaded
    with open_agent(config, workdir) as (make_agent, depends_on):
        write_json(workdir / "config.json", to_dict(config))
        with _progress(len(tasks)) as on_done:
            transcripts = run_tasks(
                tasks, make_agent, workdir / TRANSCRIPTS, depends_on=depends_on,
                concurrency=config.concurrency, max_failures=config.max_failures, on_done=on_done,
            )  # fmt: skip
    summary = Summary(tuple(map(score, tasks, transcripts)))
    write_report(workdir, config, summary, transcripts, command)
    print(f"\n{summary.markdown()}\n\nReport: {workdir / 'report.md'}")
    return 0


def load_tasks(config: AgentConfig) -> tuple[Task, ...]:
    """The tasks of a configuration.

    Raises:
      TaskError: a file that cannot be used.
    """
    tasks = builtin_tasks() if config.tasks == "builtin" else read_tasks(config.tasks)
    return tasks[: config.limit or None]


@contextlib.contextmanager
def open_agent(config: AgentConfig, workdir: pathlib.Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A maker of agents that share a model, and what their outcomes depend on.

    Each agent has an executor of its own, closed with it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    registry = _registry(config, workdir)
    with _open_model(config, workdir) as model:
        if config.model.startswith("local:") and config.concurrency > 1:
            model = GatheringModel(model, config.concurrency)
        policy = make_policy(config.policy, model)
        refiner = make_refiner(config.refiner, model)

        @contextlib.contextmanager
        def make_agent(listener: Listener | None = None) -> Iterator[Agent]:
            with Executor(
                registry,
                timeout_s=config.tools.timeout_s,
                max_output_chars=config.tools.max_output_chars,
            ) as executor:
                yield Agent(
                    model, executor, policy=policy, refiner=refiner, settings=config.loop,
                    tools=registry.definitions, listener=listener,
                )  # fmt: skip

        yield (
            make_agent,
            {
                "model": dict(model.identity),
                "policy": config.policy,
                "refiner": config.refiner,
                "loop": dataclasses.asdict(config.loop),
                "limits": dataclasses.asdict(config.tools),
                "tools": [definition.openai() for definition in registry.definitions],
            },
        )


def _registry(config: AgentConfig, workdir: pathlib.Path) -> Registry:
    folder = pathlib.Path(config.tools.folder or workdir / "files")
    if not config.tools.folder:
        write_documents(folder)
    elif not folder.is_dir():
        raise ValueError(
            f"--config.tools.folder={config.tools.folder} is no folder; name one, or leave it out "
            "for the built-in files."
        )
    return default_registry(folder, folder, now=config.tools.now or None)


def _open_model(config: AgentConfig, workdir: pathlib.Path) -> BaseModel:
    if config.model == "oracle":
        return oracle_model()
    kind = config.model.partition(":")[0]
    return open_model(
        ModelConfig(
            spec=config.model,
            engine=dataclasses.asdict(config.engine) if kind == "local" else {},
            endpoint=dict(config.endpoint) if kind in ("http", "https") else {},
            record=str(workdir / "answers.jsonl") if config.record and kind != "replay" else None,
            ledger=str(workdir / "ledger.jsonl") if kind in ("http", "https") else None,
        )
    )


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on the terminal; gives what is to be told of each task that ends."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        line = bar.add_task("tasks", total=total)

        def done(task: Task, transcript: Transcript) -> None:
            bar.update(line, advance=1, description=f"{task.id:.20}: {transcript.end}")

        yield done


def write_report(
    workdir: pathlib.Path,
    config: AgentConfig,
    summary: Summary,
    transcripts: Sequence[Transcript],
    command: Sequence[str],
) -> None:
    """Writes report.json and report.md."""
    write_json(workdir / "report.json", {"config": to_dict(config), **summary.to_dict()})
    rows = ["| task | end | success | tool needed | calls | answer |", "|---|---|---|---|---|---|"]
    for one, transcript in zip(summary.scores, transcripts, strict=True):
        need = {True: "yes", False: "no", None: "–"}[
            True if one.missed is not None else False if one.needless is not None else None
        ]
        success = {True: "yes", False: "no", None: "–"}[one.success]
        names = ", ".join(call.name for call in transcript.calls) or "–"
        answer = _cell(transcript.answer or transcript.error or "–")
        rows.append(
            f"| {_cell(one.id)} | {one.end} | {success} | {need} | {_cell(names)} | {answer} |"
        )
    text = "\n".join(
        [
            "# Agent",
            "",
            f"Model `{config.model}`, policy `{config.policy}`, refiner `{config.refiner}`, style "
            f"`{config.loop.style}`, {len(summary.scores)} tasks (`{config.tasks}`).",
            f"Command: `{shlex.join(command)}`",
            "",
            summary.markdown(),
            "",
            "Shares have Wilson's 95 % interval; means ± half of the 95 % interval by the normal "
            "approximation. Seconds include the wait for compilation at a model's first calls.",
            "",
            *rows,
            "",
        ]
    )
    (workdir / "report.md").write_text(text, encoding="utf-8", errors="replace")


def _cell(text: str, length: int = 80) -> str:
    """A text of strangers as a cell of a table: one line, nothing that ends the cell."""
    flat = " ".join(json.dumps(text, ensure_ascii=False)[1:-1].split()).replace("|", "\\|")
    return flat if len(flat) <= length else flat[:length] + " …"
