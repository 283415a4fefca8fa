"""The modes of a pre-training experiment: train, eval, generate, export, needle, benchmark."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pangu_jax.config.resolve import resolve
from pangu_jax.models import Decoder
from pangu_jax.parallel.mesh import make_mesh
from pangu_jax.parallel.sharding import abstract_with_shardings
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.pretraining.corpus import (
    Corpus,
    PretrainError,
    check_corpus,
    keep_to_corpus,
    of_the_run,
    open_corpus,
)
from pangu_jax.pretraining.initial_weights import initial_params, with_initial_weights
from pangu_jax.pretraining.layer_statistics import STATISTICS, LayerStatistics
from pangu_jax.pretraining.objective import HeldOut, make_loss, with_rope_base
from pangu_jax.pretraining.placement import check_phase_layouts, divided, over_context
from pangu_jax.pretraining.report import BEFORE, write_report
from pangu_jax.pretraining.sampling import sample_tokens
from pangu_jax.training import Workdir, fit
from pangu_jax.training.checkpoint import Checkpoints
from pangu_jax.training.load import load_params
from pangu_jax.training.phases import PhaseSchedule
from pangu_jax.training.utilisation import utilisation
from pangu_jax.training.workdir import ALLOWED_CHANGES, write_json

_MAX_TOKENS = 64  # of a sample whose length is left open
_MAY_CHANGE = (
    *ALLOWED_CHANGES, "generate.*", "needle.*", "held_out.*", "cpu_devices", "corpus_folder",
    "corpus.compare", "layout.*", "phase_layouts.*", "export.*",
)  # fmt: skip


def run(mode: str, config: dict[str, Any], workdir: pathlib.Path, command: list[str]) -> int:
    """Runs one mode; returns the process's exit code."""
    experiment = resolve(PretrainConfig, config)
    modes = {"train": train, "eval": _evaluate, "generate": _generate, "export": _export,
             "needle": _needle, "benchmark": _benchmark}  # fmt: skip
    if mode not in modes:
        raise ValueError(f"--mode={mode} does not exist for pre-training; use {', '.join(modes)}.")
    if experiment.initial_weights:
        experiment = with_initial_weights(experiment, workdir)
    schedule = experiment.phase_schedule()
    corpus = open_corpus(of_the_run(experiment, workdir), schedule, _say)
    if mode in ("eval", "generate", "export", "needle"):
        check_corpus(corpus, workdir)
    return modes[mode](experiment, schedule, corpus, workdir)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def train(config: PretrainConfig, schedule: PhaseSchedule, corpus: Corpus, workdir) -> int:
    """Trains what is not yet trained, phase by phase, and writes the report; the exit code."""
    check_phase_layouts(config, schedule.phases)
    _announce(config, schedule, corpus, workdir)
    with Workdir.open(workdir, config, allowed_changes=_MAY_CHANGE, seed=config.train.seed) as held:
        keep_to_corpus(corpus, held)
        statistics = None
        if config.held_out.layer_statistics:
            statistics = LayerStatistics(held.path / STATISTICS, held.tensorboard / "layers")
        for index, phase in enumerate(schedule.phases):
            end = schedule.starts()[index + 1]
            last = index == len(schedule.phases) - 1
            if _done(held.latest) >= end and not last:
                continue
            _say(
                f"\nphase {phase.name}: steps {schedule.starts()[index]:,} to {end:,}, "
                f"{phase.batch_rows} rows of {phase.seq_len} tokens, RoPE base "
                f"{phase.rope_base:g}, mixture {phase.mixture}"
            )
            result = _fit_phase(config, schedule, index, corpus, held, statistics)
            if result.interrupted:
                return result.exit_code
    _report(config, schedule, corpus, workdir)
    return 0


def _fit_phase(config, schedule, index, corpus, workdir, statistics):
    phase = schedule.phases[index]
    model = with_rope_base(config.model, phase.rope_base)
    mesh, program = divided(config, phase, model)
    held_out = _held_out(config, schedule, corpus, mesh)
    initial = _initial(config, index, model, mesh, program, held_out, workdir)
    per_token = model.flops_per_token(phase.seq_len)
    kind, devices = jax.devices()[0].device_kind, jax.device_count()
    batches = corpus.batches(config, schedule, index, mesh).map(_without_domains)
    batches = over_context(batches, program and program.layout)

    def derive(rates):
        rate = rates.get("tokens_per_second", 0.0) * jax.process_count()
        return utilisation(rate, per_token, kind, devices) if rate else {}

    example = jnp.zeros((1, 8), jnp.int32)
    return fit(
        init_fn=lambda key: Decoder(model).init(key, example)["params"],
        initial=initial,
        loss_fn=None if program else make_loss(model, config.z_loss),
        dataset=batches,
        config=dataclasses.replace(config.train, steps=schedule.starts()[index + 1]),
        workdir=workdir,
        mesh=mesh,
        evaluate=lambda params, step: held_out.evaluate(model, params, step, statistics),
        describe_batch=lambda batch: {"tokens": float(np.sum(batch["labels"] >= 0))},
        schedule=schedule.as_optax(),
        stream=phase.name,
        derive=derive,
        division=program,
    )


def _initial(config, index, model, mesh, program, held_out, workdir):
    """Function that gives the initial weights to the first step, or None; their held-out values are
    noted first, where the step is not divided by hand."""
    if not config.initial_weights or index or _done(workdir.latest):
        return None
    if program is not None:
        return lambda: initial_params(config, mesh, on_host=True)
    with jax.set_mesh(mesh):
        params = initial_params(config, mesh)
        values = held_out.evaluate(model, params, 0)
    if jax.process_index() == 0:
        write_json(workdir.path / BEFORE, values)
    _say("before: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items()))
    return lambda: params


def _without_domains(batch):
    return {name: x for name, x in batch.items() if name != "domains"}


def _held_out(config, schedule, corpus, mesh: Mesh) -> HeldOut:
    return HeldOut(corpus, mesh, seq_len=schedule.phases[0].seq_len, rows=config.held_out.rows)


def _done(folder: pathlib.Path) -> int:
    """Steps of the newest complete checkpoint, 0 without one."""
    if not folder.is_dir():
        return 0
    store = Checkpoints(folder, writable=False)
    try:
        return max(store.steps(), default=0)
    finally:
        store.close()


def _announce(config, schedule, corpus, workdir) -> None:
    model, weights = config.model, config.initial_weights
    start = f"starting from {weights}" if weights else f"init {model.init}"
    shares = ", ".join(
        f"{d} {w:.0%}" for d, w in next(iter(corpus.mixtures.values())).weights.items()
    )
    _say(
        f"Pre-training {model.num_parameters():,} parameters ({model.num_layers} layers of "
        f"{model.hidden_dim}, norm {model.norm_scheme}, {start}) on "
        f"{schedule.total_tokens:,} tokens in {schedule.total_steps:,} steps, "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s).\n"
        f"Corpus {corpus.folder}: {corpus.train.index['length'].sum():,} training tokens, "
        f"vocabulary {corpus.train.vocab_size:,}; mixture {shares}.\n"
        f"Everything goes to {workdir}; the same command continues an interrupted run."
    )
    for name, domains in corpus.missing.items():
        if domains:
            _say(f"  note: the corpus has no {', '.join(domains)}; left out of mixture {name}.")


def _params(config, schedule, mesh, workdir, which="auto"):
    """(phase of the checkpoint, model with the RoPE base of that phase, step, parameters)."""
    example = jnp.zeros((1, 8), jnp.int32)
    boxed = jax.eval_shape(lambda key: Decoder(config.model).init(key, example)["params"],
                           jax.random.key(0))  # fmt: skip
    step, params = load_params(workdir, abstract_with_shardings(boxed, mesh), which=which)
    phase = schedule.phases[schedule.phase_at(max(step - 1, 0))]
    return phase, with_rope_base(config.model, phase.rope_base), step, params


def _evaluate(config, schedule, corpus, workdir) -> int:
    mesh = make_mesh(config.train.mesh)
    with jax.set_mesh(mesh):
        held_out = _held_out(config, schedule, corpus, mesh)
        _, model, step, params = _params(config, schedule, mesh, workdir)
        values = held_out.evaluate(model, params, step)
    _say(f"Checkpoint of step {step:,}, held-out documents:")
    for name, value in values.items():
        _say(f"  {name:28s} {value:.4f}")
    return 0


def _sample(wanted, phase, model, params, corpus) -> str:
    tokenizer = corpus.tokenizer
    prompt = tokenizer.encode(wanted.prompt).ids
    room = phase.seq_len - len(prompt)
    count = wanted.max_tokens or max(1, min(_MAX_TOKENS, room))
    if count > room and not wanted.beyond_trained_length:
        raise PretrainError(
            f"The prompt's {len(prompt)} tokens and generate.max_tokens={count} are more than the "
            f"{phase.seq_len} tokens of the rows that phase {phase.name} trained on (RoPE base "
            f"{phase.rope_base:g}). Take a prompt and max_tokens of {phase.seq_len} together, or "
            "set --config.generate.beyond_trained_length=True."
        )
    tokens = sample_tokens(
        model, params, prompt, max_tokens=count, eod_id=corpus.train.eod_id,
        temperature=wanted.temperature, top_k=wanted.top_k, seed=wanted.seed,
    )  # fmt: skip
    return tokenizer.decode(tokens)


def _generate(config, schedule, corpus, workdir) -> int:
    mesh = make_mesh(config.train.mesh)
    with jax.set_mesh(mesh):
        phase, model, step, params = _params(config, schedule, mesh, workdir)
        text = _sample(config.generate, phase, model, params, corpus)
    _say(f"step {step:,}\n{config.generate.prompt}{text}")
    return 0


def _export(config, schedule, corpus, workdir) -> int:
    from pangu_jax.pretraining.export import export_checkpoint

    mesh, wanted = make_mesh(config.train.mesh), config.export
    folder = pathlib.Path(wanted.folder or pathlib.Path(workdir) / "model")
    with jax.set_mesh(mesh):
        phase, model, step, params = _params(config, schedule, mesh, workdir, wanted.which)
        path = export_checkpoint(
            config, corpus, model, params, folder=folder, max_length=phase.seq_len
        )
    _say(
        f"Step {step:,} as {wanted.dtype} in {path}. Try it:\npython launch.py "
        f"--config=configs/pangu/smollm2.py:float32 --mode=generate --config.model={path} "
        f"--config.generate.raw=True --config.generate.prompt={config.generate.prompt!r}"
    )
    return 0


def _needle(config, schedule, corpus, workdir) -> int:
    from pangu_jax.pretraining import needle, needle_choice, needle_report

    mesh = make_mesh(config.train.mesh)
    with jax.set_mesh(mesh):
        phase, model, step, params = _params(config, schedule, mesh, workdir)
        choice = needle_choice.choose_rope_base(
            model, params, needle.documents_of(corpus.held_out), needle.encoder(corpus.tokenizer),
            config.needle, trained_length=phase.seq_len, trained_base=phase.rope_base, say=_say,
        )  # fmt: skip
    if jax.process_index() == 0:
        about = f"Checkpoint of step {step:,} (phase {phase.name})"
        path = needle_report.write_needle_report(
            pathlib.Path(workdir) / "report", choice, config.needle, about
        )
        _say(f"{choice.verdict}\nReport: {path}")
    return 0


def _report(config, schedule, corpus, workdir) -> None:
    mesh = make_mesh(config.train.mesh)
    with jax.set_mesh(mesh):
        phase, model, step, params = _params(config, schedule, mesh, workdir)
        wanted = dataclasses.replace(config.generate, max_tokens=None, beyond_trained_length=True)
        text = _sample(wanted, phase, model, params, corpus)
    if jax.process_index() == 0:
        path = write_report(
            pathlib.Path(workdir), config, schedule,
            best_step=step, prompt=config.generate.prompt, sample=text, corpus=corpus.folder,
        )  # fmt: skip
        _say(f"\nReport with curves, perplexities and a sample: {path}")


def _benchmark(config, schedule, corpus, workdir) -> int:
    from pangu_jax.pretraining.benchmark import time_training

    mesh = make_mesh(config.train.mesh)
    batches = corpus.batches(config, schedule, 0, mesh).map(_without_domains)
    model = with_rope_base(config.model, schedule.phases[0].rope_base)
    row = time_training(
        model, make_loss(model, config.z_loss), batches, config.train, schedule, mesh
    )
    for name, value in row.items():
        _say(f"  {name:28s} {value:,.4g}")
    return 0
