"""A MeCo study from the command line ('agents.meco'): sets, methods, report, probes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from agents_jax.llm.factory import ModelConfig, open_model
from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.replay import RecordedModel
from agents_jax.tools.bfcl.data import CITATION as BFCL_CITATION
from agents_jax.tools.bfcl.data import LICENCE as BFCL_LICENCE
from agents_jax.tools.meco import agent_effect, baselines, embeddings, metatool
from agents_jax.tools.meco.collect import StateStore
from agents_jax.tools.meco.config import MecoConfig
from agents_jax.tools.meco.contrast import WORDINGS, Wording, make_pairs
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.identity import check_model, depth_of
from agents_jax.tools.meco.overhead import measure
from agents_jax.tools.meco.report import write_report
from agents_jax.tools.meco.saving import save_probes
from agents_jax.tools.meco.study import (
    SetStudy,
    carry_over,
    contrast_readers,
    given_scores,
    held_out_pair_accuracy,
    study_set,
)
from agents_jax.tools.meco.tasks import Tasks
from pangu_jax.config.resolve import resolve
from pangu_jax.data.wheel import WheelError
from pangu_jax.training.workdir import Workdir

CARRIED = (
    ("metatool_matched", "meca_no_tools"),
    ("metatool_matched", "meca_no_tools_multi"),
    ("relevance_matched", "meca_no_relevant"),
    ("meca_with_tools", "meca_with_tools_multi"),
)
"""Pairs of sets between which thresholds are carried; the first two mirror the paper's MetaTool to
MeCa tasks 1 and 4."""


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code."""
    del command
    if mode != "train":
        raise ValueError(f"--mode={mode} does not exist for MeCo; use train.")
    study = resolve(MecoConfig, config)
    # What is kept is kept by content, so any setting may change between two runs of a directory.
    directory = Workdir.open(workdir, study, allowed_changes=("*",), seed=study.seeds[0])
    try:
        _Run(study, directory.path).all()
    finally:
        directory.close()
    return 0


def open_local(config: MecoConfig) -> LanguageModel:
    """The model of a configuration, whose hidden states can be had.

    Raises:
      MissingCapability: the model is behind an endpoint, say.
    """
    engine = dataclasses.asdict(config.engine) if config.model.startswith("local:") else {}
    model = open_model(ModelConfig(spec=config.model, engine=engine))
    try:
        check_model(model)
    except ValueError:
        model.close()
        raise
    return model


class _Run:
    """One study; its report is written after each set, so a run that ends early has one."""

    def __init__(self, config: MecoConfig, folder: pathlib.Path):
        self.config, self.folder = config, folder
        self.report: dict[str, Any] = {"model": config.model, "sets": {}, "skipped": {}}
        self.studies: dict[str, SetStudy] = {}
        self.start = time.perf_counter()

    def all(self) -> None:
        self._check_embeddings()
        config = self.config
        with contextlib.ExitStack() as opened:
            model = opened.enter_context(open_local(config))
            answers = opened.enter_context(RecordedModel(self.folder / "answers.jsonl", model))
            progress = opened.enter_context(_bar())
            layers = config.layers or tuple(range(-depth_of(model), 0))
            store = StateStore(model, self.folder / "states", layers, progress=progress)
            tasks = Tasks(config, answers)
            self._say(f"BFCL: {BFCL_LICENCE}\n{BFCL_CITATION}\nMetaTool: {metatool.CITATION}\n")
            readers = self._contrast(store, tasks, model)
            for name in config.sets:
                why = tasks.missing(name)
                if why:
                    self.report["skipped"][name] = why
                    self._say(f"{name}: skipped. {why}")
                    continue
                try:
                    self._set(name, tasks, store, answers, readers)
                except MecoError as error:  # too small, or not to be had of this model
                    self.report["skipped"][name] = str(error)
                    self._say(f"{name}: skipped. {error}")
                self._write(layers)
            self.report["carried"] = self._carry(readers)
            self._agent(answers)
            self.report["overhead"] = self._overhead(model, readers)
            save_probes(self.folder / "probes", self.studies, readers, store, model, config,
                        self.wordings)  # fmt: skip
            self._write(layers)
        self._say(f"Report: {self.folder / 'report' / 'report.md'}")

    # ------------------------------------------------------------------ parts

    def _check_embeddings(self) -> None:
        """Without the embeddings' wheel the study goes on, and says so."""
        if not self.config.embeddings:
            return
        try:
            embeddings.embed(["word"])
        except WheelError as error:
            self.config = dataclasses.replace(self.config, embeddings=False)
            self.report["skipped"]["embedding controls"] = str(error)
            self._say(f"Controls of text embeddings: skipped. {error}")

    def _contrast(self, store: StateStore, tasks: Tasks, model: LanguageModel):
        config = self.config
        examples = tasks.contrast()
        texts = {name: Wording(*pair) for name, pair in config.contrast.texts.items()}
        self.wordings = {
            name: ({**WORDINGS, **texts})[name] for name in config.contrast.wordings
        }  # fmt: skip
        states = {}
        for name, wording in self.wordings.items():
            pairs = make_pairs(examples, wording, layers=store.layers, seed=config.data.seed)
            states[name] = store.contrast(pairs, name)
        self.report["contrast"] = {
            "queries": len(examples),
            "wordings": {n: dataclasses.asdict(w) for n, w in self.wordings.items()},
            "layers": list(store.layers),
            "held_out_pair_accuracy": {
                name: held_out_pair_accuracy(
                    found, config.contrast.max_tokens, config.seeds[0]
                ).tolist()
                for name, found in states.items()
            },
        }
        return {
            seed: contrast_readers(states, config.contrast.max_tokens, seed)
            for seed in config.seeds
        }

    def _set(self, name, tasks: Tasks, store: StateStore, answers, readers) -> None:
        began = time.perf_counter()
        data = tasks.get(name)
        observed = store.observe(data.examples, name)
        collected = time.perf_counter() - began
        more, extra = {}, {}
        if name in self.config.verbalised:
            more["verbalised"], unread = baselines.verbalised(answers, data.examples)
            extra["verbalised_unread"] = unread
        study = study_set(data, observed, readers, given_scores(observed, **more), self.config)
        extra |= {"seconds_collecting": collected, "seconds": time.perf_counter() - began}
        if name in tasks.balance:
            extra["own_answers"] = {
                kind: {"right": right, "asked": asked}
                for kind, (right, asked) in tasks.balance[name].items()
            }
        self.studies[name] = study
        self.report["sets"][name] = study.report | extra
        shown = ("naive", "p_yes", study.report["tests"]["best_control"], "meco", "probe: logistic")
        cells = [f"{m} {study.results[m].accuracy:.3f}" for m in shown if m in study.results]
        self._say(f"{name}: {len(data)} examples, accuracy: {', '.join(cells)}")

    def _carry(self, readers) -> list[dict[str, Any]]:
        first = readers[self.config.seeds[0]]
        out = []
        for source, target in CARRIED:
            if source in self.studies and target in self.studies:
                to = self.studies[target]
                out.append(
                    self._carried(self.studies[source], to.data, to.observed, first, None)
                )  # fmt: skip
        for name in ("relevance", "relevance_matched"):
            if name not in self.studies:
                continue
            study = self.studies[name]
            parts = {
                part: [i for i, e in enumerate(study.data.examples) if e.source == part]
                for part in ("live", "non_live")
            }
            for source, target in (("non_live", "live"), ("live", "non_live")):
                found = self._carried(
                    study, study.data.only(parts[target]), study.observed.take(parts[target]),
                    first, parts[source],
                )  # fmt: skip
                if found:
                    found |= {"from": f"{name}: {source}", "to": f"{name}: {target}"}
                out.append(found)
        return [entry for entry in out if entry]

    def _carried(self, study, data, observed, readers, places) -> dict[str, Any]:
        try:
            return carry_over(study, data, observed, readers, self.config, source_places=places)
        except MecoError as error:  # a part too small to fit on
            self._say(f"thresholds of {study.data.name} are not carried over: {error}")
            return {}

    def _agent(self, answers: LanguageModel) -> None:
        chosen = self.config.agent
        study = self.studies.get(chosen.data_set)
        if study is None or not chosen.examples:
            return
        places = _balanced(study.data.labels, chosen.examples, self.config.data.seed)
        examples = [study.data.examples[i] for i in places]
        calls = agent_effect.forced_calls(answers, examples, max_tokens=chosen.max_tokens)
        needed = study.data.labels[places]
        scored = ("p_yes", study.report["tests"]["best_control"], "meco", "meco, any layer",
                  "probe: logistic")  # fmt: skip
        decisions = {
            name: study.outcomes[name].decided[places] for name in ("always", "never", "naive")
        }
        decisions |= {name: study.outcomes[name].decided[places] for name in scored}
        decisions["oracle"] = needed
        for recall in (0.95, 0.9):
            for name in scored:
                decisions[f"{name}, {recall:.0%} of needed calls kept"] = agent_effect.keeps_recall(
                    study.outcomes[name].probabilities, study.data.labels, study.folds, recall
                )[places]
        # MeCo and the probe read the prompt twice: for the answer, and for the hidden state.
        once = float(study.observed.tokens[places].mean())
        passes = {"naive": 1, "p_yes": 1, "meco": 2, "meco, any layer": 2, "probe: logistic": 1}
        tokens = {name: once * passes.get(name.split(", 9")[0], 0) for name in decisions}
        self.report["agent"] = {
            "data_set": chosen.data_set,
            "examples": len(examples),
            "unreadable_calls": calls.unreadable,
            "rows": agent_effect.compare(examples, calls, decisions, tokens),
        }

    def _overhead(self, model: LanguageModel, readers) -> dict[str, Any] | None:
        if not self.studies or not self.config.overhead_queries:
            return None
        name = next((n for n in ("relevance_matched", "relevance") if n in self.studies), None)
        study = self.studies[name or next(iter(self.studies))]
        examples = study.data.examples[: self.config.overhead_queries]
        reader = next(iter(readers[self.config.seeds[0]].values()))
        return {"data_set": study.data.name, **measure(model, examples, reader, study.observed)}

    def _write(self, layers) -> None:
        self.report["seconds"] = time.perf_counter() - self.start
        curves: Mapping[str, SetStudy] = self.studies
        write_report(self.folder / "report", self.report, curves, layers, self.config)
        path = self.folder / "report" / "decisions.json"
        table = {
            name: {
                "ids": [e.id for e in study.data.examples],
                "needed": study.data.labels.astype(int).tolist(),
                "decided": {m: o.decided.astype(int).tolist() for m, o in study.outcomes.items()},
            }
            for name, study in curves.items()
        }
        path.write_text(json.dumps(table), encoding="utf-8")

    @staticmethod
    def _say(text: str) -> None:
        print(text, flush=True)


def _balanced(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    halves = [rng.permutation(np.flatnonzero(labels == value)) for value in (True, False)]
    count = min(size // 2, *map(len, halves))
    return np.sort(np.concatenate([half[:count] for half in halves]))


@contextlib.contextmanager
def _bar() -> Iterator[Any]:
    """A progress bar on a terminal, nothing elsewhere; gives a function (done, total, what)."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        rows: dict[str, Any] = {}

        def tell(done: int, total: int, what: str) -> None:
            if total == 0:
                return
            if what not in rows:
                rows[what] = bar.add_task(what, total=total)
            bar.update(rows[what], completed=done, total=total)
            if done >= total:
                bar.remove_task(rows.pop(what))

        yield tell
