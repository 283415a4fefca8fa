"""The stages of a run: warm-up, then rounds of sampling, selecting, tuning and measuring.

Every stage can be killed and started again. Answers are on the disk as they come (one recording for
every checkpoint), tuning continues from its own checkpoints, and what is worked out from both
(selections, corpora) is worked out again and comes out the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agents_jax.llm import GenerateRequest, LanguageModel
from agents_jax.tools.bfcl.prompts import prompt_messages, to_chat
from agents_jax.tools.toolace_r.config import MAIN, ToolAceRConfig, of_arm
from agents_jax.tools.toolace_r.evaluation import (
    Point,
    measure,
    measure_few_shot,
    point_records,
)
from agents_jax.tools.toolace_r.items import Parts
from agents_jax.tools.toolace_r.models import Checkpoint, Models
from agents_jax.tools.toolace_r.refinement_data import Corpus, build_corpus
from agents_jax.tools.toolace_r.selection import Selection, grows, sample_attempts, select
from pangu_jax.training.sft import train
from pangu_jax.training.workdir import write_json

WARM_UP = "warm_up"
UNTUNED, TUNED = ("constrained", "forced"), ("constrained",)
"""What decoding is held to, see `measure`: a model that writes no call can be made to."""


class InterruptedRun(Exception):
    """Tuning was asked to stop and has saved its state. Attribute: exit_code."""

    def __init__(self, exit_code: int):
        super().__init__("interrupted; the same command continues")
        self.exit_code = exit_code


class Timings:
    """Seconds that each stage took, over all starts of a run, in a file."""

    def __init__(self, file: pathlib.Path):
        self._file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is inside, whether or not it ends well, and says so."""
        start = time.perf_counter()
        print(f"\n== {name}", flush=True)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
            write_json(self._file, self.seconds)
            print(f"== {name}: {spent:.0f} s", flush=True)


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of an arm: what it chose, what it learned from, and what the tuned model does."""

    number: int
    selection: Selection | None
    corpus: Corpus
    checkpoint: Checkpoint
    point: Point


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """rounds in their order. last_selection: of the round that was not tuned for any more, None
    where there was none. ended: why there are no further rounds.
    """

    arm: str
    rounds: tuple[Round, ...]
    last_selection: Selection | None
    ended: str


class Stages:
    """A work directory in progress.

    Args:
      trains: False refuses to tune what is not tuned yet (mode 'eval').
    """

    def __init__(
        self, config: ToolAceRConfig, workdir: pathlib.Path, models: Models, parts: Parts, *,
        trains: bool = True, say: Callable[[str], None] = print,
    ):  # fmt: skip
        self.config, self.workdir = config, workdir
        self.models, self.parts = models, parts
        self._trains, self._say = trains, say
        self.timings = Timings(workdir / "timings.json")

    def baselines(self) -> dict[str, Point]:
        """The untuned model, zero-shot and with two worked examples."""
        items = self.parts.test
        wanted = self.config.evaluation.baseline_items
        if 0 < wanted < len(items):  # spread evenly over the categories
            items = tuple(items[i * len(items) // wanted] for i in range(wanted))
        with self.timings.stage("zero_shot and few_shot"):
            with self.models.open(Checkpoint("base")) as model:
                points = {
                    "zero_shot": measure(
                        model, items, self.config, refined=False,
                        held=UNTUNED if self.config.evaluation.constrained else (),
                    ),
                    "few_shot": measure_few_shot(model, items, self.config),
                }  # fmt: skip
            for name, point in points.items():
                self._keep_point(name, point)
        return points

    def warm_up(self) -> tuple[Checkpoint, Point]:
        """Round 0: tuned on direct examples of the warm-up items alone."""
        chats = [to_chat(item, self.config.data.style) for item in self.parts.warm_up]
        tuned = self._tune(WARM_UP, chats, self.config.rounds.warm_up_steps, ())
        with self.timings.stage(f"{WARM_UP}: test"), self.models.open(tuned) as model:
            # Refinement by a model that never saw any: the control 'untrained refinement'.
            point = measure(model, self.parts.test, self.config, refined=True)
        self._keep_point(WARM_UP, point)
        return tuned, point

    def run_arm(self, arm: str, start: Checkpoint, main: ArmResult | None) -> ArmResult:
        """All rounds of an arm.

        Args:
          start: the warmed-up model. main: the main arm's result, None for itself.
        """
        config = of_arm(self.config, arm)
        wanted = config.rounds.max_rounds if main is None else len(main.rounds)
        samples = config.selection.rule != "none" or config.refinement_data.per_direct > 0
        if not samples and config.rounds.restart:
            wanted = 1  # every further round would learn the same from the same
        current, rounds, sizes = start, [], []
        for number in range(1, wanted + 1):
            name = f"{arm}/round_{number}"
            selection, answers = None, {}
            if samples:
                size = None
                if arm == "random_selection" and main is not None:
                    size = len(main.rounds[number - 1].selection.ids)
                selection, answers = self._select(name, config, current, number, size)
                sizes.append(len(selection.ids))
                if arm == MAIN and not grows(sizes, config.rounds.min_growth):
                    why = f"the selection did not grow by {config.rounds.min_growth:.0%}: {sizes}"
                    end = rounds[-1]
                    point = self._test(f"{arm}/round_{end.number}", config, current, last=True)
                    rounds[-1] = dataclasses.replace(end, point=point)
                    return ArmResult(arm, tuple(rounds), selection, why)
            ids = {i.id for i in self.parts.pool} if selection is None else set(selection.ids)
            corpus = build_corpus(
                [item for item in self.parts.pool if item.id in ids],
                answers or {item.id: () for item in self.parts.pool},
                config.refinement_data, style=config.data.style, round_number=number,
            )  # fmt: skip
            self._keep_corpus(name, corpus)
            before = () if config.rounds.restart else current.folders
            current = self._tune(name, corpus.chats, config.rounds.steps, before)
            point = self._test(name, config, current, last=number == wanted)
            rounds.append(Round(number, selection, corpus, current, point))
        return ArmResult(arm, tuple(rounds), None, f"{wanted} round(s), as many as wanted")

    def _select(self, name, config, checkpoint, number, size):
        """(selection, texts that A1 is drawn from by id)."""
        pool = self.parts.pool
        with (
            self.timings.stage(f"{name}: sampling"),
            self.models.open(checkpoint) as model,
        ):
            attempts = sample_attempts(
                model, pool, config.selection, style=config.data.style,
                max_tokens=config.answer_tokens,
            )  # fmt: skip
            answers: dict[str, Sequence[str]] = {n: a.texts for n, a in attempts.items()}
            if config.refinement_data.first_answer == "greedy":
                answers = self._greedy(model)
        selection = select(pool, attempts, config.selection, round_number=number, size=size)
        folder = self._folder(name)
        write_json(folder / "selection.json", selection.to_dict())
        self._say(
            f"{name}: {len(selection.ids)} of {len(pool)} items chosen ({selection.rule}); items "
            f"by right samples of {selection.samples}: {selection.to_dict()['histogram']}"
        )
        return selection, answers

    def _greedy(self, model: LanguageModel) -> dict[str, Sequence[str]]:
        requests = [
            GenerateRequest(
                messages=prompt_messages(item, self.config.data.style),
                max_tokens=self.config.answer_tokens, tag=item.id,
            )
            for item in self.parts.pool
        ]  # fmt: skip
        return {r.tag: (a.text,) for r, a in zip(requests, model.generate(requests), strict=True)}

    def _test(self, name: str, config: ToolAceRConfig, checkpoint: Checkpoint, *, last: bool):
        evaluation = config.evaluation
        thorough = last and name.startswith(f"{self.config.arms[0]}/")
        with self.timings.stage(f"{name}: test"), self.models.open(checkpoint) as model:
            point = measure(
                model, self.parts.test, config, refined=last or evaluation.refine_rounds,
                thorough=thorough, held=TUNED if thorough and evaluation.constrained else (),
            )  # fmt: skip
        self._keep_point(name, point)
        self._say(f"{name}, greedy:\n{point.plain.report}")
        return point

    def _tune(self, name: str, chats, steps: int, before: tuple[pathlib.Path, ...]) -> Checkpoint:
        """Tunes on the chats, or finds what was tuned before.

        before: folders of the model to start from; () for the base.
        """
        sft = self.config.sft
        folder = self.workdir / "tuning" / name
        left = folder / ("adapter" if sft.tune == "lora" else "model")
        done = Checkpoint(name, (*before, left))
        if left.is_dir() and (folder / "report" / "report.json").is_file():
            return done
        if not self._trains:
            raise ValueError(
                f"{name} is not tuned yet in {self.workdir}; run --mode=train there first."
            )
        settings = dataclasses.replace(
            sft,
            epochs=None,
            export=True,
            data=dataclasses.replace(sft.data, train_on="last_assistant"),
            # One evaluation, after the last step: the last parameters are what is kept.
            train=dataclasses.replace(
                sft.train, steps=steps, eval_every=0, best_metric="loss", best_mode="min",
                early_stopping_patience=None,
            ),
        )  # fmt: skip
        with self.timings.stage(f"{name}: tuning"):
            result = train(
                settings, folder, examples=chats,
                held_out=[to_chat(item, self.config.data.style) for item in self.parts.validation],
                model=self.models.load(Checkpoint("start", before)), say=self._say,
            )  # fmt: skip
        if result.fit.interrupted:
            raise InterruptedRun(result.exit_code)
        return done

    def _folder(self, name: str) -> pathlib.Path:
        folder = self.workdir / "rounds" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _keep_corpus(self, name: str, corpus: Corpus) -> None:
        folder = self._folder(name)
        lines = [json.dumps(chat, ensure_ascii=False) + "\n" for chat in corpus.chats]
        (folder / "corpus.jsonl").write_text("".join(lines), encoding="utf-8")
        made: dict[str, Any] = corpus.counts() | {
            "refinements": [dataclasses.asdict(example) for example in corpus.refinements]
        }
        write_json(folder / "corpus.json", made)
        self._say(f"{name}: examples {corpus.counts()}")

    def _keep_point(self, name: str, point: Point) -> None:
        file = self.workdir / "evaluation" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, point_records(point))
