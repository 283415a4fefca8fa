"""Fine-tuning as an experiment (`launch.py`), and as a function for other programs (`train`)."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.config.resolve import resolve
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.decoder import Decoder
from pangu_jax.models.lora import Adapter
from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.parallel.sharding import (
    abstract_with_shardings,
    batch_part,
    shardings_for,
    unbox,
)
from pangu_jax.training import FitResult, Workdir, fit, load_params
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.sft.batches import train_batches
from pangu_jax.training.sft.config import SftConfig
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.held_out import HeldOut, reference_log_probs
from pangu_jax.training.sft.objective import make_loss
from pangu_jax.training.sft.prepare import (
    Examples,
    Given,
    base_identity,
    check_vocabulary,
    load_base,
    load_examples,
    with_choices,
)
from pangu_jax.training.sft.report import write_report
from pangu_jax.training.sft.tuning import Tuning
from pangu_jax.training.workdir import ALLOWED_CHANGES, write_json
from pangu_jax.weights import LoadedModel, LoadedTokenizer, export_safetensors
from pangu_jax.weights.peft import export_peft

# Files may move: what they hold is compared by contents.
_MAY_CHANGE = (
    *ALLOWED_CHANGES, "base", "base_name", "cpu_devices", "data.train", "data.held_out", "epochs",
    "export", "remat", "distill.teacher",
)  # fmt: skip
_IDENTITY, _BASELINE, _REFERENCE = "corpus.json", "baseline.json", "reference.npz"


@dataclasses.dataclass(frozen=True)
class TunedModel:
    """A model in the middle of training, for evaluation by generation.

    params: of the decoder; with LoRA those of the base, and `adapter` goes beside them.
    variables: of `Decoder(config).apply`.
    """

    config: DecoderConfig
    tokenizer: LoadedTokenizer
    params: Any
    adapter: Adapter | None
    variables: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """fit: what training left. report: contents of report.json. export: folder or None."""

    fit: FitResult
    report: dict[str, Any]
    export: pathlib.Path | None

    @property
    def exit_code(self) -> int:
        return self.fit.exit_code


# (model, step) -> further evaluation values; see `train`.
Evaluate = Callable[[TunedModel, int], dict[str, float]]


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code."""
    experiment = resolve(SftConfig, config)
    if mode == "train":
        return train(experiment, workdir).exit_code
    if mode == "eval":
        return _evaluate(experiment, pathlib.Path(workdir))
    raise ValueError(f"--mode={mode} does not exist for fine-tuning; use train or eval.")


def train(
    config: SftConfig,
    workdir: str | pathlib.Path,
    *,
    examples: Given = None,
    held_out: Given = None,
    evaluate: Evaluate | None = None,
    model: LoadedModel | None = None,
    say: Callable[[str], None] | None = None,
) -> TuneResult:
    """Tunes what is not yet tuned, exports the best parameters and writes the report.

    Args:
      workdir: the same one continues an interrupted run.
      examples, held_out: records as in a file (or `Chat`s, `Pair`s); None: config.data says.
      evaluate: gives further values at step 0 and with every evaluation, such as exact match of
        generated answers; train.best_metric may name one of them.
      model: in place of config.base; its parameters are only read.
      say: where lines for people go; None: the output.

    Raises:
      FineTuneError: examples or settings that do not work, another base or other examples than
        the run began with. TrainingError: what `fit` raises. WeightsError.
    """
    say = say or _say
    task = _Task.prepare(config, examples, held_out, model)
    workdir = pathlib.Path(workdir)
    config = task.config
    task.announce(workdir, say)
    with (
        Workdir.open(workdir, config, allowed_changes=_MAY_CHANGE, seed=config.train.seed) as held,
        jax.set_mesh(task.mesh),
    ):
        task.keep(held.path)
        task.place(held.path)
        baseline = task.baseline(held.path, evaluate, say)
        part, parts = batch_part(task.mesh)
        result = fit(
            init_fn=task.tuning.init,
            initial=task.take_base if config.tune == "full" else None,
            frozen=task.frozen,
            loss_fn=task.loss,
            dataset=train_batches(
                task.examples.train, task.examples.shape, batch_rows=config.batch_rows,
                seed=config.train.seed, reference=task.reference.get("train"),
                process_index=part, process_count=parts,
            ),
            config=config.train,
            workdir=held,
            mesh=task.mesh,
            evaluate=lambda params, step: task.evaluate(params, step, evaluate),
            describe_batch=_describe,
        )  # fmt: skip
        if result.interrupted:
            return TuneResult(result, {}, None)
        return _finish(task, held.path, result, baseline, say)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _describe(batch) -> dict[str, float]:
    return {
        "tokens": float(np.sum(batch["segment_ids"] > 0)),
        "learned_tokens": float(np.sum(batch["labels"] >= 0)),
    }


def _teacher(config: SftConfig, model: LoadedModel) -> LoadedModel:
    if config.distill.teacher is None:
        raise FineTuneError(
            "--config.objective=distill needs --config.distill.teacher, a model with the base's "
            "tokenizer: a GGUF file, a Hugging Face folder, or a name as --config.base takes."
        )
    teacher = load_base(config, config.distill.teacher)
    check_vocabulary(model, teacher)
    return teacher


class _Task:
    """Model, examples and loss of one run."""

    def __init__(self, config: SftConfig, model: LoadedModel, examples: Examples, *, given: bool):
        self.config, self.examples, self._given = config, examples, given
        self.decoder, self.tokenizer = model.config, model.tokenizer
        self.base_params: Any = model.params
        self.base_print = base_identity(model)
        self.mesh = make_mesh(config.train.mesh)
        self.tuning = Tuning(model.config, config.lora if config.tune == "lora" else None)
        self.teacher = None
        if config.objective == "distill":
            self.teacher = _teacher(config, model)
        self.loss = make_loss(config, self.tuning, self.teacher and self.teacher.config)
        self.frozen: dict[str, Any] = {}
        self.reference: dict[str, np.ndarray] = {}
        self.held_out: HeldOut | None = None

    @classmethod
    def prepare(cls, config, examples, held_out, model) -> _Task:
        loaded = load_base(config) if model is None else with_choices(config, model)
        found = load_examples(config, loaded.tokenizer, examples, held_out)
        if config.epochs is not None:
            rows = found.rows_of_epoch(config.train.seed)
            steps = max(1, round(config.epochs * rows / config.batch_rows))
            config = dataclasses.replace(
                config, train=dataclasses.replace(config.train, steps=steps)
            )
        return cls(config, loaded, found, given=model is not None)

    def announce(self, workdir, say) -> None:
        config, shape = self.config, self.examples.shape
        say(
            f"Tuning {config.base} ({self.total:,} parameters, {self.trained:,} trained, "
            f"{config.tune}, {config.objective}) for {config.train.steps:,} steps of "
            f"{config.batch_rows} rows of {shape.tokens} tokens (labels at up to {shape.labels}), "
            f"{jax.device_count()} {jax.devices()[0].platform} device(s)."
        )
        for name, report in self.examples.reports.items():
            for line in report.lines():
                say(f"  {name.replace('_', ' ')}: {line}")
        say(f"Everything goes to {workdir}; the same command continues an interrupted run.")

    @property
    def trained(self) -> int:
        shapes = jax.eval_shape(self.tuning.init, jax.random.key(0))
        return sum(x.size for x in jax.tree.leaves(shapes))

    @property
    def total(self) -> int:
        return self.decoder.num_parameters()

    def keep(self, workdir: pathlib.Path) -> None:
        """Notes which base and examples the run is about, or refuses others.

        Raises:
          FineTuneError: they differ from those that the run began with.
        """
        now = {"examples_sha256": self.examples.identity, "base_fingerprint": self.base_print}
        file = workdir / _IDENTITY
        if file.is_file() and Checkpoints.any_in(workdir / "checkpoints" / "latest"):
            then = json.loads(file.read_text())
            for key, what in (("examples_sha256", "examples"), ("base_fingerprint", "base model")):
                if then.get(key) != now[key]:
                    raise FineTuneError(
                        f"The {what} of this run in {workdir} ({then.get(key)}) and of this command"
                        f" ({now[key]}) are not the same. Give those that it began with, or "
                        "another --workdir."
                    )
        if jax.process_index() == 0:
            write_json(file, now)

    def place(self, workdir: pathlib.Path) -> None:
        """Puts on the mesh what training reads, and works out the reference's log-probabilities."""
        config = self.config
        self.base_params = self._on_mesh(self.decoder, self.base_params)
        if self.tuning.lora:
            self.frozen["base"] = self.base_params
        if self.teacher is not None:
            self.frozen["teacher"] = self._on_mesh(self.teacher.config, self.teacher.params)
        if config.objective == "dpo" and config.dpo.reference == "step" and not self.tuning.lora:
            self.frozen["reference"] = _copy(self.base_params)
        if config.objective == "dpo" and config.dpo.reference == "cached":
            self.reference = self._cached_reference(workdir / _REFERENCE)
        self.held_out = HeldOut(
            self.examples.held_out, self.examples.shape, self.loss, self.mesh,
            batch_rows=config.batch_rows, reference=self.reference.get("held_out"),
            quick_compile=config.train.quick_compile,
        )  # fmt: skip
        if self._given and config.tune == "full":
            self.base_params = _copy(self.base_params)  # the caller's own are only read

    def _on_mesh(self, decoder: DecoderConfig, params: Any) -> Any:
        tokens = jnp.zeros((1, 2), jnp.int32)
        boxed = jax.eval_shape(Decoder(decoder).init, jax.random.key(0), tokens)["params"]
        return jax.device_put(params, shardings_for(boxed, self.mesh))

    def _cached_reference(self, file: pathlib.Path) -> dict[str, np.ndarray]:
        """Of the base, computed once; the file belongs to the examples and base that `keep` saw."""
        about = np.array([self.examples.identity, self.base_print])
        if file.is_file():
            with np.load(file) as found:
                if found["about"].tolist() == about.tolist():
                    return {name: found[name] for name in ("train", "held_out")}
        values = {
            name: reference_log_probs(
                self.decoder, self.base_params, part, self.examples.shape, self.mesh,
                batch_rows=self.config.batch_rows, chunk=self.config.loss_chunk,
            )
            for name, part in (("train", self.examples.train), ("held_out", self.examples.held_out))
        }  # fmt: skip
        if jax.process_index() == 0:
            scratch = file.with_name(f".{file.name}")
            with open(scratch, "wb") as handle:
                np.savez(handle, about=about, **values)
            scratch.replace(file)
        return values

    def take_base(self) -> Any:
        """Hands the base to the training state, which takes its memory over."""
        params, self.base_params = self.base_params, None
        return jax.tree.map(lambda x: x.astype(jnp.float32), params)

    def baseline(self, workdir: pathlib.Path, evaluate, say) -> dict[str, float]:
        """Held-out values of the base, worked out once in the life of a run."""
        file = workdir / _BASELINE
        if file.is_file():
            values = json.loads(file.read_text())
        else:
            values = self.evaluate(self._start(), 0, evaluate)
            if jax.process_index() == 0:
                write_json(file, values)
        if Checkpoints.any_in(workdir / "checkpoints" / "latest") and self.config.tune == "full":
            self.base_params = None  # the checkpoint is continued from
        say("before: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
        return values

    def _start(self) -> Any:
        if not self.tuning.lora:
            return self.base_params
        shapes = jax.eval_shape(self.tuning.init, jax.random.key(0))
        shardings = shardings_for(shapes, self.mesh)
        init = jax.jit(lambda key: unbox(self.tuning.init(key)), out_shardings=shardings)
        return init(jax.random.key(self.config.train.seed))

    def evaluate(self, params: Any, step: int, further: Evaluate | None) -> dict[str, float]:
        values = self.held_out.evaluate(params, self.frozen)
        if further is not None:
            values |= further(self.tuned(params), step)
        return values

    def tuned(self, params: Any) -> TunedModel:
        """The model that these trained parameters make."""
        adapter = self.adapter(params) if self.tuning.lora else None
        base = self.frozen.get("base")
        return TunedModel(
            self.decoder, self.tokenizer, base if self.tuning.lora else params, adapter,
            self.tuning.variables(params, base),
        )  # fmt: skip

    def adapter(self, params: Any) -> Adapter:
        """With the name and the fingerprint of its base."""
        name = self.config.base_name or self.config.base
        return self.tuning.adapter(params, base_fingerprint=self.base_print, base_name=name)

    def best(self, workdir: pathlib.Path) -> tuple[int, Any]:
        """(step, trained parameters) of the best checkpoint."""
        boxed = jax.eval_shape(self.tuning.init, jax.random.key(0))
        return load_params(workdir, abstract_with_shardings(boxed, self.mesh))


def _finish(task: _Task, workdir: pathlib.Path, result, baseline, say) -> TuneResult:
    step, params = task.best(workdir)
    export = workdir / ("adapter" if task.tuning.lora else "model") if task.config.export else None
    if jax.process_index() == 0:
        if export is not None:
            _export(task, params, export)
        report = write_report(
            workdir, task.config, task.examples, steps=int(result.state.step), best_step=step,
            baseline=baseline, trained=task.trained, total=task.total, export=export,
        )  # fmt: skip
        after = report["held_out_best"].get("loss")
        if after is not None:
            say(f"\nHeld-out loss {baseline['loss']:.4f} before, {after:.4f} at step {step}.")
        say(f"Report: {workdir / 'report' / 'report.json'}" + (f"; {export}" if export else ""))
    else:
        report = {}
    return TuneResult(result, report, export)


def _export(task: _Task, params: Any, folder: pathlib.Path) -> None:
    # The folder of an earlier end of this run makes way only once the new one is whole.
    fresh = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    if task.tuning.lora:
        export_peft(task.adapter(params), task.decoder, fresh)
    else:
        export_safetensors(task.decoder, params, fresh, tokenizer=task.tokenizer)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.replace(folder)


def _evaluate(config: SftConfig, workdir: pathlib.Path) -> int:
    task = _Task.prepare(config, None, None, None)
    with jax.set_mesh(task.mesh):
        task.keep(workdir)
        task.place(workdir)
        step, params = task.best(workdir)
        values = task.evaluate(params, step, None)
    _say(f"Checkpoint of step {step:,}, {len(task.examples.held_out):,} held-out examples:")
    for name, value in values.items():
        _say(f"  {name:20s} {value:.4f}")
    return 0


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)
