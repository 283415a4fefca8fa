"""The one training loop: `fit` trains any model, and continues exactly where it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.parallel.sharding import (
    DEFAULT_RULES,
    Rules,
    abstract_with_shardings,
    global_batch,
    replicated,
    shardings_for,
    unbox,
)
from pangu_jax.training.agreement import largest, same_numbers
from pangu_jax.training.cadence import (
    checkpoint_due,
    dispatch_size,
    evaluation_due,
    log_due,
)
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.compilation_cache import enable_compilation_cache
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.division import DividedState, Division
from pangu_jax.training.early_stopping import BestTracker
from pangu_jax.training.errors import DataExhaustedError, LostProcessError, TrainingError
from pangu_jax.training.log_window import LogWindow
from pangu_jax.training.metrics_writer import MetricsWriter, read_metrics
from pangu_jax.training.nonfinite import report_nonfinite
from pangu_jax.training.optimizer import build_optimizer, build_schedule
from pangu_jax.training.prefetch import Fetched, Prefetcher, iterator_state
from pangu_jax.training.progress import Progress, Throughput, short_line
from pangu_jax.training.quick_compile import quick_options
from pangu_jax.training.signals import StopRequested, StopSignals, exit_code
from pangu_jax.training.spikes import SpikeCounter
from pangu_jax.training.stacking import check_rows, stack_batches
from pangu_jax.training.state import TrainState, create_state
from pangu_jax.training.step import (
    LossFn,
    StepOutputs,
    StepProgram,
    gradients_of,
    make_dispatch,
)
from pangu_jax.training.workdir import Workdir

_END = object()


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What training left behind.

    state: the newest state. best_step, best_metrics: of the best evaluation (-1, {} without one).
    history: the records of metrics.jsonl (process 0 only). interrupted: stopped by `signal`
    before the end. stopped_early: the validation metric stopped improving.
    """

    state: TrainState
    best_step: int
    best_metrics: dict[str, float]
    history: list[dict[str, Any]]
    interrupted: bool = False
    signal: int | None = None
    stopped_early: bool = False

    @property
    def exit_code(self) -> int:
        """For the shell: 0, or 128 + signal number after an interruption."""
        return exit_code(self.signal) if self.interrupted else 0


class _Dispatch:
    """A dispatch on its way: where it starts, its host batches, its outputs on the device.

    timed: the clock of the throughput runs meanwhile (not while its program was compiled).
    """

    def __init__(
        self, start: int, fetched: list[Fetched], state_before: Any, outputs: StepOutputs,
        *, timed: bool,
    ):  # fmt: skip
        self.start, self.fetched, self.state_before = start, fetched, state_before
        self.outputs, self.timed = outputs, timed


def fit(
    *,
    init_fn: Callable[[jax.Array], Any],
    loss_fn: LossFn | None,
    dataset: Iterable,
    config: TrainConfig,
    workdir,
    mesh: Mesh | None = None,
    evaluate: Callable[[Any, int], dict[str, float]] | None = None,
    describe_batch: Callable[[Any], dict[str, float]] | None = None,
    rules: Rules = DEFAULT_RULES,
    schedule: optax.Schedule | None = None,
    stream: str = "",
    derive: Callable[[dict[str, float]], dict[str, float]] | None = None,
    division: Division | None = None,
    program: StepProgram | None = None,
    initial: Callable[[], Any] | None = None,
    frozen: Any = None,
) -> FitResult:
    """Trains, or continues training, in a work directory.

    Args:
      init_fn: random key -> parameters, plain or in flax boxes with logical axis names.
      loss_fn: (params, batch, key) -> LossSums. The gradient taken is that of total / weight
        over the whole batch, all devices and micro-batches together. None with a `division`.
      dataset: iterable of host batches (trees of NumPy arrays [R, ...], R constant), best a
        repeating `grain.IterDataset`. Its iterator's `get_state` / `set_state` make a resume
        immediate; without them the batches already seen are read again and dropped.
      config: the settings.
      workdir: an open `Workdir`, or a path (then locked and closed here).
      mesh: default: `config.mesh` over all devices.
      evaluate: (params, step) -> metric values. Must depend on nothing but its arguments. May
        call `signals.check_stop()` now and then so that a stop need not wait for its end.
      describe_batch: host batch -> counts for the throughput meter, e.g.
        {'examples': 128, 'tokens': 9000}.
      rules: logical axis names to mesh axes.
      schedule: step -> learning rate in place of the optimizer config's, such as one over all
        phases of a run whose phases are calls of `fit` in the same work directory.
      stream: name of `dataset`. A checkpoint made with another name (the phase before) keeps
        step, parameters and optimizer state, and `dataset` starts at its beginning.
      derive: rates of the throughput meter -> further values for the log, such as a utilisation.
      division: a step divided by hand over its own mesh, in place of loss, mesh and rules. It has
        micro-batches of its own: grad_accumulation must be 1.
      program: updates of its own in place of loss and optimizer, which it must then do without;
        of `config.optimizer` only the learning rate is logged (or `schedule`'s).
        grad_accumulation must be 1.
      initial: gives the parameters to start from, such as weights read from a file, in place of the
        values of `init_fn`, which then only says their shapes and axes. Called where there is no
        checkpoint; its arrays are given up to the training state.
      frozen: tree of arrays that the loss reads and training does not change, such as the base of
        an adapter: loss_fn is called as (params, batch, key, frozen). Not part of checkpoints.

    Returns:
      FitResult. After SIGTERM or SIGINT `interrupted` is True and everything is saved.

    Raises:
      TrainingError and its subclasses; `MeshError`.
    """
    enable_compilation_cache()
    if division is not None and config.grad_accumulation != 1:
        raise TrainingError(
            f"train.grad_accumulation={config.grad_accumulation} does not go with a layout divided "
            "by hand, which has layout.microbatches; set it to 1."
        )
    if program is not None and (division is not None or config.grad_accumulation != 1):
        raise TrainingError(
            f"train.grad_accumulation={config.grad_accumulation} or a divided layout does not go "
            "with a step that has updates of its own; set grad_accumulation to 1 and the layout "
            "to none."
        )
    mesh = division.mesh if division is not None else mesh or make_mesh(config.mesh)
    with contextlib.ExitStack() as stack:
        if not isinstance(workdir, Workdir):
            workdir = stack.enter_context(
                Workdir.open(workdir, {"train": dataclasses.asdict(config)}, seed=config.seed)
            )
        stack.enter_context(jax.set_mesh(mesh))
        if division is None:
            stack.enter_context(_logical_rules(rules))
        signals = stack.enter_context(StopSignals())
        run = _Run(config, workdir, mesh, evaluate, describe_batch, signals)
        run.given_schedule, run.stream, run.derive = schedule, stream, derive
        run.initial, run.frozen = initial, () if frozen is None else (frozen,)
        run.program = program
        stack.callback(run.close)
        try:
            run.prepare(init_fn, loss_fn, dataset, rules, division)
            return run.train()
        except jax.errors.JaxRuntimeError as error:
            if jax.process_count() == 1:
                raise
            stack.pop_all()  # not closed: that would wait for the process that is gone
            raise run.lost_process(error) from error


class _Run:
    """The state of one call of `fit`."""

    given_schedule: optax.Schedule | None = None
    stream: str = ""
    derive: Callable[[dict[str, float]], dict[str, float]] | None = None
    divided: DividedState | None = None
    initial: Callable[[], Any] | None = None
    program: StepProgram | None = None
    frozen: tuple[Any, ...] = ()  # behind the arguments of the loss

    def __init__(self, config, workdir, mesh, evaluate, describe_batch, signals):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.evaluate, self.describe_batch = evaluate, describe_batch
        self.signals = signals
        self.tracker = BestTracker(config.best_metric, config.best_mode)
        # Step of the best that the newest of `latest` knows, which a restart would go on from.
        self.best_of_latest: int | None = None
        self.window = LogWindow()
        self.meter = Throughput()
        self.spikes = SpikeCounter()
        self.compiled: set[int] = set()
        self.latest = self.best = self.writer = self.progress = self.prefetcher = None
        self.last_save = time.monotonic()

    # Set-up

    def prepare(self, init_fn, loss_fn, dataset, rules, division) -> None:
        config, mesh = self.config, self.mesh
        schedule = self.given_schedule or build_schedule(config.optimizer, config.steps)
        optimizer = self.program or build_optimizer(config.optimizer, config.steps, schedule)
        self.schedule = jax.jit(schedule)

        def create(key):
            return create_state(init_fn, optimizer, key)

        quick = quick_options(mesh.devices.flat[0]) if config.quick_compile else None
        key = jax.random.key(config.seed)
        boxed = jax.eval_shape(create, key)
        if division is None:
            shardings, stored = shardings_for(boxed, mesh, rules), None
        else:
            self.divided = DividedState(division, unbox(boxed))
            shardings, stored = self.divided.shardings, self.divided.abstract_stored

            def divided_gradients(params, batch, rng):
                return division.loss_and_grad(params, batch)

        self.latest = Checkpoints(self.workdir.latest, keep=config.keep_checkpoints)
        self.best = Checkpoints(self.workdir.best, keep=None)
        self.iterator = iter(dataset)
        self.step = 0
        if self.latest.steps():
            self._restore(stored or abstract_with_shardings(boxed, mesh, rules))
        else:
            arrange = self.divided.arrange if self.divided else lambda state: state
            # It runs once, so compiling it is what costs.
            once = quick or quick_options(mesh.devices.flat[0], level=1)
            first_state = functools.partial(jax.jit, out_shardings=shardings, compiler_options=once)
            if self.initial is None:
                self.state = first_state(lambda k: arrange(unbox(create(k))))(key)
            else:
                self.state = first_state(
                    lambda p, k: arrange(create_state(lambda _: p, optimizer, k)),
                    # Arrays of the host, cut by hand: there is no memory to take over.
                    donate_argnums=() if self.divided else (0,),
                )(self.initial(), key)
            self.data_state = iterator_state(self.iterator)
        # Bests of a future that a killed process saw: this run decides about them anew.
        self.best.prune(above=self.tracker.last_eval_step)
        place = {"place": self.divided.place} if self.divided else {}

        def dispatch(state, bad_step, batches, *frozen):
            if self.program is not None:

                def advance(*args):
                    return self.program.advance(*args, *frozen)

                steps = make_dispatch(None, None, guard=config.nan_guard, advance=advance)
                return steps(state, bad_step, batches)
            if division is None:
                # Arguments of the program, not constants inside it.
                def loss(*args):
                    return loss_fn(*args, *frozen)

                gradients = gradients_of(loss, config.grad_accumulation)
            else:
                gradients = divided_gradients
            steps = make_dispatch(gradients, optimizer, guard=config.nan_guard, **place)
            return steps(state, bad_step, batches)

        fixed = replicated(mesh)
        self.dispatch = jax.jit(
            dispatch,
            donate_argnums=(0,),
            out_shardings=(shardings, fixed, fixed),
            compiler_options=quick,
        )
        self.bad_step = jax.device_put(jnp.int32(-1), fixed)
        first = jax.process_index() == 0
        self.writer = MetricsWriter(
            self.workdir.metrics_file if first else None,
            self.workdir.tensorboard if first else None,
            resume_step=self.step,
            resume_eval_step=self.tracker.last_eval_step,
        )
        self.progress = Progress(config.steps, self.step, mode=config.progress if first else "none")

    def _restore(self, target: TrainState) -> None:
        restored = self.latest.restore(target)
        self.step, self.state = restored.step, restored.state
        if self.divided:
            self.state = self.divided.arrange_placed(self.state)
        extra = restored.extra
        self.tracker = dataclasses.replace(
            BestTracker.from_json(extra["tracker"]),
            metric=self.config.best_metric,
            mode=self.config.best_mode,
        )
        self.best_of_latest = self.tracker.step
        self.window = LogWindow.from_json(extra["window"])
        self.spikes = SpikeCounter.from_json(extra.get("spikes"))
        if extra.get("stream", "") != self.stream:
            self.data_state = iterator_state(self.iterator)
            return
        self.data_state = restored.data
        if self._finished():
            return
        if restored.data is not None and hasattr(self.iterator, "set_state"):
            self.iterator.set_state(restored.data)
        else:
            for done in range(self.step):
                if next(self.iterator, _END) is _END:
                    raise self._exhausted(done)

    # The loop

    def train(self) -> FitResult:
        config = self.config
        if self._finished() and not self._eval_due():
            self.progress.say(
                f"This run is already finished: {self.step} of {config.steps} steps"
                f"{' (stopped early)' if self.step < config.steps else ''}. Raise "
                "--config.train.steps to train on, or choose another --workdir."
            )
            return self._result(None)
        if self.step:
            self.progress.say(f"Continuing from step {self.step} of {config.steps}.")
        if self._eval_due() and not self._evaluate():
            return self._stop()
        self.prefetcher = Prefetcher(self.iterator, config.prefetch * config.steps_per_dispatch)
        flying: _Dispatch | None = None
        while not self._finished():
            self.meter.start()
            launched = self._launch()
            if flying is not None:
                self._read(flying)
            flying = launched
            self.latest.check()
            # Signals and clocks differ between processes, saving is a collective matter.
            stop, late = largest(self.signals.received or 0, self._minutes_are_up())
            save = late or checkpoint_due(self.config, self.step)
            if stop or save or self._eval_due() or self.step >= config.steps:
                # From here on the host needs the numbers of every step done.
                self._read(flying)
                flying = None
                self.meter.stop()
                if stop or (self._eval_due() and not self._evaluate()):
                    return self._stop()
                if save or self._finished():
                    self._save()
        self._save()
        self.latest.wait()
        self.best.prune(below=self.tracker.step)
        return self._result(None)

    def _launch(self) -> _Dispatch:
        """Starts the next dispatch; the device may still be busy with the one before."""
        size, start = dispatch_size(self.config, self.step), self.step
        fetched = [self._next(start + i) for i in range(size)]
        host = stack_batches([f.batch for f in fetched])
        if not self.compiled:
            check_rows(host, self.config, self.mesh)
        batches = global_batch(host, self.mesh, batch_axis=1)
        compiling = size not in self.compiled
        if compiling:
            self.meter.stop()
            self.compiled.add(size)
        self.state, self.bad_step, outputs = self.dispatch(
            self.state, self.bad_step, batches, *self.frozen
        )
        if compiling:
            jax.block_until_ready(outputs)
            self.meter.start()
        launched = _Dispatch(start, fetched, self.data_state, outputs, timed=not compiling)
        self.step, self.data_state = start + size, fetched[-1].state
        return launched

    def _read(self, dispatch: _Dispatch) -> None:
        """Waits for a dispatch's numbers, adds them to the log, stops at a non-finite one."""
        values = jax.tree.map(np.asarray, jax.device_get(dispatch.outputs))
        if dispatch.timed:
            self.meter.add({"steps": len(dispatch.fetched)})
            for item in dispatch.fetched if self.describe_batch else ():
                self.meter.add(self.describe_batch(item.batch))
        for i in range(len(dispatch.fetched)):
            step = dispatch.start + i
            row = jax.tree.map(lambda x, i=i: float(x[i]), values)
            if not row.applied and self.config.nan_guard == "stop":
                self._fail_nonfinite(dispatch, i, row)
            self.window.add(row)
            if row.applied and row.weight and self.spikes.add(row.total / row.weight):
                self.progress.say(f"step {step + 1}  loss spike: {row.total / row.weight:.4g}")
            done = step + 1
            if log_due(self.config, done):
                self._log(done)
        self.progress.update(dispatch.start + len(dispatch.fetched), self._progress_text)

    def _log(self, done: int) -> None:
        values = self.window.take()
        values["learning_rate"] = float(self.schedule(done - 1))
        values["loss_spikes"] = self.spikes.count
        self.last_values = values
        rates = self.meter.rates()
        timing = rates | (self.derive(rates) if self.derive else {})
        self.writer.write(done, "train", values, {"unix": time.time(), **timing})
        self.last_rates = rates
        self.meter.reset()

    last_values: dict[str, float] = {}
    last_rates: dict[str, float] = {}

    def _progress_text(self) -> str:
        rates = self.meter.rates() or self.last_rates
        shown = {"loss": self.last_values["loss"]} if "loss" in self.last_values else {}
        shown |= {name.replace("_per_second", "/s"): rate for name, rate in rates.items()}
        if self.tracker.step >= 0:
            shown[f"best {self.tracker.metric}"] = self.tracker.metrics[self.tracker.metric]
        return short_line(shown)

    def _next(self, step: int) -> Fetched:
        try:
            return self.prefetcher.next()
        except StopIteration:
            raise self._exhausted(step) from None

    def _exhausted(self, step: int) -> DataExhaustedError:
        return DataExhaustedError(
            f"The training data ended after {step} batches, but train.steps is "
            f"{self.config.steps}; repeat the data set (.repeat()), or lower "
            f"--config.train.steps to {step}."
        )

    # Evaluation, saving, stopping

    def _evaluate(self) -> bool:
        """Evaluates at the current step; False if a stop signal cut it short."""
        started = time.perf_counter()
        try:
            params = self.state.params
            if self.divided:
                params = self.divided.restore_params(params)
            metrics = self.evaluate(params, self.step)
        except StopRequested:
            return False
        metrics = same_numbers({name: float(value) for name, value in metrics.items()})
        better = self.tracker.update(self.step, metrics)
        seconds = time.perf_counter() - started
        self.writer.write(self.step, "eval", metrics, {"unix": time.time(), "seconds": seconds})
        self.progress.say(
            f"step {self.step}  {short_line(metrics)}  ({seconds:.1f} s)"
            f"{'  best so far' if better else ''}"
        )
        if better:
            self.best.save(self._stored(), extra=self._extra(), params_only=True)
            # A restart continues from `latest`; it must know about the new best.
            self._save()
        return True

    def _save(self) -> None:
        """Saves the current step; afterwards superseded bests are no longer needed."""
        self.latest.wait()
        self.best.prune(below=self.best_of_latest)
        self.writer.flush()
        if self.latest.save(self._stored(), extra=self._extra(), data=self.data_state):
            self.best_of_latest = self.tracker.step
        self.last_save = time.monotonic()

    def _stored(self) -> TrainState:
        """The state in the model's own order."""
        return self.divided.restore_order(self.state) if self.divided else self.state

    def _extra(self) -> dict[str, Any]:
        return {
            "tracker": self.tracker.to_json(),
            "window": self.window.to_json(),
            "spikes": self.spikes.to_json(),
            "stream": self.stream,
        }

    def _stop(self) -> FitResult:
        (number,) = largest(self.signals.received or 0)
        self._save()
        self.latest.wait()
        self.best.wait()
        self.progress.say(
            f"Stopped after step {self.step} of {self.config.steps}; everything is "
            "saved. Run the same command again to continue."
        )
        return self._result(number)

    def _fail_nonfinite(self, dispatch: _Dispatch, index: int, row: StepOutputs) -> None:
        # The guard froze the state before this batch; put step and data back there as well.
        self.step = dispatch.start + index
        self.data_state = dispatch.fetched[index - 1].state if index else dispatch.state_before
        self._save()
        self.latest.wait()
        report_nonfinite(self.workdir.path, self.step, dispatch.fetched[index].batch, row)

    def _result(self, number: int | None) -> FitResult:
        self.writer.flush()
        history = read_metrics(self.workdir.metrics_file) if jax.process_index() == 0 else []
        return FitResult(
            state=self._stored(),
            best_step=self.tracker.step,
            best_metrics=self.tracker.metrics,
            history=history,
            interrupted=number is not None,
            signal=number,
            stopped_early=number is None and self.step < self.config.steps,
        )

    def lost_process(self, error: Exception) -> LostProcessError:
        """What to tell when a computation across processes has failed."""
        saved = self.latest.steps() if self.latest else []
        rest = (
            f"continue from the checkpoint of step {max(saved)}"
            if saved
            else "start again: there is no checkpoint yet"
        )
        index, count = jax.process_index(), jax.process_count()
        return LostProcessError(
            f"Process {index} of {count} stops at step {self.step}, because a computation with the "
            "others failed; most likely another process has ended (see its output). Start all "
            f"{count} processes again with the same command: they {rest}. The failure: "
            f"{str(error).splitlines()[0][:300]}"
        )

    def close(self) -> None:
        for part in (self.prefetcher, self.latest, self.best, self.writer, self.progress):
            if part is not None:
                part.close()

    # When

    def _finished(self) -> bool:
        return self.step >= self.config.steps or self.tracker.should_stop(
            self.config.early_stopping_patience
        )

    def _eval_due(self) -> bool:
        return self.evaluate is not None and evaluation_due(
            self.config, self.step, self.tracker.last_eval_step
        )

    def _minutes_are_up(self) -> bool:
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self.last_save > 60 * minutes


def _logical_rules(rules: Rules):
    try:
        from flax.linen import logical_axis_rules
    except ImportError:  # pure-jax models need no flax
        return contextlib.nullcontext()
    return logical_axis_rules(rules)
