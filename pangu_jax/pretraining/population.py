"""Runs that differ in seed, learning rate and initial values, trained side by side in one program.

The step of one run is mapped over all of them (`jax.vmap`), so that a narrow, deep model, whose
single operations are too small for a device, keeps it busy. Every member has its own folder with
the files that a run of its own would write (config.json, metrics.jsonl, layer_statistics.jsonl);
the states of all members are saved together. A member whose loss or gradient is not finite stops
where it is, the others go on.

Letters: M members, S distinct seeds, K steps of a dispatch, R rows of a batch, T tokens of a row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pangu_jax.models import Decoder
from pangu_jax.parallel.sharding import unbox
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.pretraining.corpus import Corpus, PretrainError
from pangu_jax.pretraining.layer_statistics import STATISTICS, LayerStatistics
from pangu_jax.pretraining.objective import HeldOut, make_loss, with_rope_base
from pangu_jax.training import Workdir
from pangu_jax.training.cadence import checkpoint_due, dispatch_size, evaluation_due, log_due
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.compilation_cache import enable_compilation_cache
from pangu_jax.training.log_window import LogWindow
from pangu_jax.training.metrics_writer import MetricsWriter
from pangu_jax.training.optimizer import build_optimizer
from pangu_jax.training.prefetch import Prefetcher, iterator_state
from pangu_jax.training.progress import Progress, Throughput
from pangu_jax.training.signals import StopSignals, exit_code
from pangu_jax.training.spikes import SpikeCounter
from pangu_jax.training.stacking import stack_batches
from pangu_jax.training.state import TrainState, create_state
from pangu_jax.training.step import gradients_of, make_dispatch
from pangu_jax.training.workdir import ALLOWED_CHANGES


@dataclasses.dataclass(frozen=True)
class Member:
    """One run: its configuration and its folder."""

    config: PretrainConfig
    folder: pathlib.Path


def alike(config: PretrainConfig) -> PretrainConfig:
    """What members of one population share: all but seed, learning rate and initial values."""
    return dataclasses.replace(
        config,
        model=config.model.without_initial_values(),
        train=dataclasses.replace(config.train, seed=0),
        schedule=dataclasses.replace(config.schedule, learning_rate=1.0),
    )


def populations(configs: Sequence[PretrainConfig]) -> list[list[int]]:
    """Indices of the configurations that can be trained together, in order of appearance."""
    groups: list[tuple[PretrainConfig, list[int]]] = []
    for index, config in enumerate(configs):
        shared = alike(config)
        for other, members in groups:
            if other == shared:
                members.append(index)
                break
        else:
            groups.append((shared, [index]))
    return [members for _, members in groups]


def train_population(
    members: Sequence[Member],
    corpus: Corpus,
    store: pathlib.Path,
    *,
    diverged: Callable[[int, int], None],
) -> int:
    """Trains, or continues training, all members; returns the process's exit code.

    Args:
      members: configurations that are equal under `alike`, with one phase; folders distinct.
      corpus: of all of them.
      store: folder of the checkpoints of all states together.
      diverged: called with (index of the member, steps it had done) when one stops early.

    Raises:
      PretrainError: members that differ in more than that, several phases, a layout divided by
        hand, several processes. CheckpointError: as `training.fit`.
    """
    _check(members)
    enable_compilation_cache()
    with contextlib.ExitStack() as stack:
        for member in members:
            stack.enter_context(
                Workdir.open(
                    member.folder, member.config, allowed_changes=(*ALLOWED_CHANGES,),
                    seed=member.config.train.seed,
                )
            )  # fmt: skip
        device = jax.devices()[0]
        mesh = Mesh(np.array([device]).reshape(1, 1), ("data", "model"))
        stack.enter_context(jax.set_mesh(mesh))
        signals = stack.enter_context(StopSignals())
        run = _Run(members, corpus, store, mesh, diverged)
        stack.callback(run.close)
        return run.train(signals)


def _check(members: Sequence[Member]) -> None:
    first = members[0].config
    if any(alike(member.config) != alike(first) for member in members):
        raise PretrainError(
            "Members of a population differ in seed, learning rate and initial values only."
        )
    if first.schedule.kind != "single":
        raise PretrainError(
            f"Runs side by side have one phase, not schedule.kind={first.schedule.kind!r}; set "
            "--config.together=False to train them one after the other."
        )
    if first.layout.devices > 1 or first.phase_layouts or jax.process_count() > 1:
        raise PretrainError(
            "Runs side by side are trained on one device, without layout, phase_layouts and other "
            "processes; set --config.together=False."
        )


class _Rows:
    """Batches of all seeds, [S, R, T] each, as an iterator whose place can be saved."""

    def __init__(self, streams):
        self._streams = [iter(stream) for stream in streams]

    def __next__(self):
        rows = []
        for stream in self._streams:
            batch = next(stream)
            rows.append({name: x for name, x in batch.items() if name != "domains"})
        return stack_batches(rows)

    def get_state(self):
        return [iterator_state(stream) for stream in self._streams]

    def set_state(self, states):
        for stream, state in zip(self._streams, states, strict=True):
            stream.set_state(state)


@dataclasses.dataclass
class _Books:
    """What is kept of a member on the host."""

    window: LogWindow = dataclasses.field(default_factory=LogWindow)
    spikes: SpikeCounter = dataclasses.field(default_factory=SpikeCounter)
    stopped: int | None = None

    def to_json(self):
        return {
            "window": self.window.to_json(), "spikes": self.spikes.to_json(),
            "stopped": self.stopped,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value):
        return cls(
            LogWindow.from_json(value["window"]), SpikeCounter.from_json(value["spikes"]),
            value["stopped"],
        )  # fmt: skip


class _Run:
    """The state of one call of `train_population`."""

    def __init__(self, members, corpus, store, mesh, diverged):
        # Members of one model next to each other; `places` are those in the caller's order.
        models = list(dict.fromkeys(member.config.model for member in members))
        self.places = sorted(
            range(len(members)), key=lambda i: models.index(members[i].config.model)
        )
        members = [members[place] for place in self.places]
        self.members, self.diverged = members, diverged
        config = members[0].config
        schedule = config.phase_schedule()
        self.phase = schedule.phases[0]
        self.steps = schedule.total_steps
        self.config = dataclasses.replace(config.train, steps=self.steps)
        self.model = with_rope_base(alike(config).model, self.phase.rope_base)
        self.rates = np.array(
            [
                [member.config.phase_schedule().learning_rate(s) for s in range(self.steps)]
                for member in members
            ],
            np.float32,
        )
        seeds = [member.config.train.seed for member in members]
        distinct = sorted(set(seeds))
        self.rows = _Rows(
            corpus.batches(members[seeds.index(seed)].config, schedule, 0, mesh)
            for seed in distinct
        )
        self.dispatch = self._compile(make_loss(self.model, config.z_loss),
                                      np.array([distinct.index(s) for s in seeds]))  # fmt: skip
        self.held_out = HeldOut(
            corpus, mesh, seq_len=self.phase.seq_len, rows=config.held_out.rows
        )  # fmt: skip
        captures: dict = {}
        self.statistics = [
            LayerStatistics(member.folder / STATISTICS, captures=captures)
            if config.held_out.layer_statistics else None
            for member in members
        ]  # fmt: skip
        self.store = Checkpoints(store, keep=1)
        self.data = self.rows.get_state()
        self.books = [_Books() for _ in members]
        self.step = self.last_eval = 0
        self._begin(jnp.array(seeds))
        self.writers = [
            MetricsWriter(
                member.folder / "metrics.jsonl", None, resume_step=self.step,
                resume_eval_step=self.last_eval,
            )
            for member in members
        ]  # fmt: skip
        self.meter = Throughput()
        self.progress = Progress(self.steps, self.step, mode=self.config.progress)
        self.prefetcher = None

    def _compile(self, loss, seed_of_member):
        gradients = gradients_of(loss, self.config.grad_accumulation)

        def member(state, bad_step, batches, rates):
            optimizer = build_optimizer(
                self.config.optimizer, self.steps, lambda step: rates[step]
            )  # fmt: skip
            return make_dispatch(gradients, optimizer, guard="stop")(state, bad_step, batches)

        def dispatch(state, bad_step, batches, rates):
            # Members of one seed read the same rows: [K, S, R, T] -> [M, K, R, T].
            batches = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[seed_of_member], batches)
            return jax.vmap(member)(state, bad_step, batches, rates)

        return jax.jit(dispatch, donate_argnums=(0, 1))

    def _begin(self, seeds) -> None:
        """The states of all members, [M, ...] each: new ones, or those of the checkpoint."""
        example = jnp.zeros((1, 8), jnp.int32)
        optimizer = build_optimizer(self.config.optimizer, self.steps, lambda step: 0.0)
        models = [member.config.model for member in self.members]

        def one(model, seed):
            key = jax.random.key(seed)
            init = Decoder(model).init
            return unbox(create_state(lambda k: init(k, example)["params"], optimizer, key))

        def create(seeds):
            """States of all members; those of one model, which are neighbours, at once."""
            parts, begin = [], 0
            for model, same in itertools.groupby(models):
                end = begin + len(list(same))
                parts.append(jax.vmap(functools.partial(one, model))(seeds[begin:end]))
                begin = end
            return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)

        if self.store.steps():
            device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            target = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device),
                self._saved(jax.eval_shape(create, seeds), jnp.zeros(len(seeds), jnp.int32)),
            )
            restored = self.store.restore(target)
            kept = restored.state.opt_state
            self.step, self.data = restored.step, restored.data
            self.rows.set_state(self.data)
            self.state = dataclasses.replace(
                restored.state, step=kept["steps"], opt_state=kept["optimizer"]
            )
            self.bad_step = kept["bad_step"]
            self.books = [_Books.from_json(x) for x in restored.extra["books"]]
            self.last_eval = restored.extra["last_eval"]
        else:
            self.state = jax.jit(create)(seeds)
            self.bad_step = jnp.full(len(seeds), -1, jnp.int32)

    def _saved(self, state, bad_step) -> TrainState:
        """All states as one, which a checkpoint names by its step."""
        kept = {"optimizer": state.opt_state, "steps": state.step, "bad_step": bad_step}
        return TrainState(
            step=jnp.int32(self.step), params=state.params, opt_state=kept, rng=state.rng
        )

    def train(self, signals) -> int:
        """Until the last step or a signal; the exit code."""
        if self.step:
            self.progress.say(f"Continuing from step {self.step} of {self.steps}.")
        self.prefetcher = Prefetcher(
            self.rows, self.config.prefetch * self.config.steps_per_dispatch
        )
        compiled = set()
        while self.step < self.steps and not all(b.stopped is not None for b in self.books):
            size = dispatch_size(self.config, self.step)
            fetched = [self.prefetcher.next() for _ in range(size)]
            batches = stack_batches([f.batch for f in fetched])
            if size in compiled:
                self.meter.start()
            self.state, self.bad_step, outputs = self.dispatch(
                self.state, self.bad_step, batches, self.rates
            )
            outputs = jax.tree.map(np.asarray, outputs)
            if size in compiled:
                self.meter.add({"steps": size, "tokens": size * self._tokens(batches)})
                self.meter.stop()
            compiled.add(size)
            self.data = fetched[-1].state
            for k in range(size):
                self._record(outputs, k)
            self.progress.update(self.step, self._progress_text)
            if evaluation_due(self.config, self.step, self.last_eval):
                self._evaluate()
            if checkpoint_due(self.config, self.step) or signals.received:
                self._save()
            if signals.received:
                self.store.wait()
                self.progress.say(f"Stopped after step {self.step} of {self.steps}; all is saved.")
                return exit_code(signals.received)
        self._save()
        self.store.wait()
        return 0

    def _tokens(self, batches) -> int:
        """Labels of one step of all members together."""
        per_seed = (batches["labels"] >= 0).sum() / batches["labels"].shape[1]
        return int(per_seed * len(self.members) / batches["labels"].shape[0])

    def _record(self, outputs, k: int) -> None:
        """Step `self.step` of all members, which stands at place k of the outputs."""
        self.step += 1
        for index, books in enumerate(self.books):
            if books.stopped is not None:
                continue
            row = jax.tree.map(lambda x, i=index: float(x[i, k]), outputs)
            if not row.applied:
                books.stopped = self.step - 1
                self.diverged(self.places[index], books.stopped)
                self.progress.say(f"{self._name(index)} diverged after step {books.stopped}")
                continue
            books.window.add(row)
            books.spikes.add(row.total / row.weight)
            if log_due(self.config, self.step):
                values = books.window.take()
                values["learning_rate"] = float(self.rates[index, self.step - 1])
                values["loss_spikes"] = books.spikes.count
                now = {"unix": time.time(), **self.meter.rates()}
                self.writers[index].write(self.step, "train", values, now)
        if log_due(self.config, self.step):
            self.meter.reset()

    def _name(self, index: int) -> str:
        return "/".join(self.members[index].folder.parts[-2:])

    def _progress_text(self) -> str:
        rates = self.meter.rates()
        left = sum(books.stopped is None for books in self.books)
        return f"{left} runs  " + "  ".join(
            f"{name.replace('_per_second', '/s')} {rate:.4g}" for name, rate in rates.items()
        )

    def _evaluate(self) -> None:
        started, losses = time.perf_counter(), []
        for index, books in enumerate(self.books):
            if books.stopped is not None:
                continue
            params = jax.tree.map(lambda x, i=index: x[i], self.state.params)
            statistics = self.statistics[index]
            values = self.held_out.evaluate(self.model, params, self.step, statistics)
            losses.append(values["loss"])
            self.writers[index].write(self.step, "eval", values, {"unix": time.time()})
        self.last_eval = self.step
        if losses:
            self.progress.say(
                f"step {self.step}  held-out loss of {len(losses)} runs from {min(losses):.4f} to "
                f"{max(losses):.4f}  ({time.perf_counter() - started:.1f} s)"
            )

    def _save(self) -> None:
        for writer in self.writers:
            writer.flush()
        extra: dict[str, Any] = {
            "books": [books.to_json() for books in self.books], "last_eval": self.last_eval,
        }  # fmt: skip
        self.store.save(self._saved(self.state, self.bad_step), extra=extra, data=self.data)

    def close(self) -> None:
        """Releases threads and files."""
        for part in (self.prefetcher, self.store, *self.writers, self.progress):
            if part is not None:
                part.close()
