"""The report of a pre-training run: report.md with curves, perplexities, layers and a sample."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from pangu_jax.data.text.build import VOCABULARY
from pangu_jax.data.tokenizer import VocabularyReport
from pangu_jax.pretraining.config import PretrainConfig
from pangu_jax.pretraining.layer_statistics import read_statistics
from pangu_jax.pretraining.plots import plot_lines
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.phases import PhaseSchedule

BEFORE = "before.json"  # held-out values of the initial weights, in the directory of a run


def write_report(
    workdir: pathlib.Path, config: PretrainConfig, schedule: PhaseSchedule, *,
    best_step: int, prompt: str, sample: str, corpus: pathlib.Path | None = None,
) -> pathlib.Path:  # fmt: skip
    """Writes <workdir>/report/report.md and its PNGs, and returns its path.

    corpus: the folder of the run's corpus, whose report on the vocabulary is taken over.
    """
    folder = workdir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    records = read_metrics(workdir / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval"]
    layers = read_statistics(workdir / "layer_statistics.jsonl")
    before = workdir / BEFORE
    before = json.loads(before.read_text()) if before.is_file() else {}
    parts = [
        f"# Pre-training, {config.model.num_parameters():,} parameters",
        _setting(config, schedule),
        _phases(schedule),
        _results(train, evals, best_step, before),
        _curves(folder, train, evals, schedule),
        _layers(folder, layers),
        _vocabulary(corpus),
        f"## Sample\n\nPrompt: `{prompt}`\n\n```\n{prompt}{sample}\n```",
    ]
    path = folder / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return path


def _setting(config, schedule) -> str:
    import jax

    m, o = config.model, config.train.optimizer
    return (
        f"{m.num_layers} layers, width {m.hidden_dim}, MLP {m.mlp_dim}, {m.num_heads} query and "
        f"{m.num_kv_heads} key-value heads of {m.head_dim}, vocabulary {m.vocab_size:,}; norm "
        f"scheme {m.norm_scheme} (eps {m.norm_eps:g}), init {m.init}, compute in {m.dtype}. "
        f"{schedule.total_tokens:,} tokens, {schedule.total_steps:,} steps, {o.name} (b1 {o.b1:g}, "
        f"b2 {o.b2:g}, weight decay {o.weight_decay:g}"
        f"{'' if o.decay_matrices_only else ', gains of norms included'}, clipping "
        f"{o.clip_norm}), peak learning rate "
        f"{max(schedule.learning_rate(s) for s in _some(schedule.total_steps)):.3g}, seed "
        f"{config.train.seed}. {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"JAX {jax.__version__}."
    )


def _some(total: int) -> list[int]:
    return sorted(set(np.linspace(0, max(total - 1, 0), 200).astype(int).tolist()))


def _phases(schedule) -> str:
    lines = [
        "## Phases", "",
        "| phase | steps | rows x tokens | RoPE base | mixture | learning rate at its start |",
        "| --- | ---: | ---: | ---: | --- | ---: |",
    ]  # fmt: skip
    for phase, start in zip(schedule.phases, schedule.starts(), strict=False):
        rate = schedule.learning_rate(max(start, min(schedule.warmup_steps, phase.steps)))
        lines.append(
            f"| {phase.name} | {phase.steps:,} | {phase.batch_rows} x {phase.seq_len} | "
            f"{phase.rope_base:g} | {phase.mixture} | {rate:.3g} |"
        )
    return "\n".join(lines)


def _results(train, evals, best_step, before) -> str:
    lines = ["## Results", ""]
    if evals:
        last = evals[-1]
        best = next((r for r in evals if r["step"] == best_step), last)
        lines += [
            f"Held-out documents, best checkpoint (step {best['step']:,}):", "",
            "| domain | perplexity | bits per byte |"
            + " perplexity before | bits per byte before |" * bool(before),
            "| --- | ---: | ---: |" + " ---: | ---: |" * bool(before),
        ]  # fmt: skip
        for name, value in best["values"].items():
            if name.startswith("perplexity/"):
                domain = name.partition("/")[2]
                bits = best["values"][f"bits_per_byte/{domain}"]
                line = f"| {domain} | {value:.2f} | {bits:.3f} |"
                if before:
                    line += f" {before[name]:.2f} | {before[f'bits_per_byte/{domain}']:.3f} |"
                lines.append(line)
    if train:
        values = train[-1]["values"]
        rates = [r["time"]["tokens_per_second"] for r in train if "tokens_per_second" in r["time"]]
        mfu = [r["time"]["mfu"] for r in train if "mfu" in r["time"]]
        lines += [
            "",
            f"Training loss over the last log window: {values['loss']:.4f}; largest gradient norm "
            f"of a window {max(r['values']['grad_norm'] for r in train):.3g}; "
            f"loss spikes {values.get('loss_spikes', 0):.0f}"
            + (f"; median {np.median(rates):,.0f} tokens/s" if rates else "")
            + (f", MFU {np.median(mfu):.1%}" if mfu else "")
            + ".",
            "",
            "A loss spike is a step more than six standard deviations (and 0.1 nats) above the "
            "running mean of the loss. MFU counts 6 FLOPs per weight of a matrix product and token "
            "and the causal half of attention, against the data sheet's bfloat16 peak.",
        ]
    return "\n".join(lines)


def _curves(folder, train, evals, schedule) -> str:
    borders = schedule.starts()[1:-1]
    made = []

    def series(records, name):
        pairs = [(r["step"], r["values"][name]) for r in records if name in r["values"]]
        return np.array(pairs, float).reshape(-1, 2).T

    panels = [
        ("loss.png", "Loss", [("training", series(train, "loss")),
                              ("held out", series(evals, "loss"))], False),
        ("gradient_norm.png", "Gradient norm", [("", series(train, "grad_norm"))], True),
        ("learning_rate.png", "Learning rate", [("", series(train, "learning_rate"))], False),
    ]  # fmt: skip
    names = sorted({n for r in evals for n in r["values"] if n.startswith("perplexity/")})
    panels.append(("perplexity.png", "Held-out perplexity",
                   [(n.partition("/")[2], series(evals, n)) for n in names], True))  # fmt: skip
    for file, title, lines, log in panels:
        lines = [(label, xy) for label, xy in lines if xy.shape[1]]
        if lines:
            plot_lines(folder / file, title, "step", lines, log=log, borders=borders)
            made.append(f"![{title} over steps]({file})")
    return "## Curves\n\n" + "\n\n".join(made) if made else ""


def _layers(folder, records: list[dict[str, Any]]) -> str:
    if not records:
        return ""
    made = []
    chosen = [records[i] for i in sorted({0, len(records) // 2, len(records) - 1})]

    def by_layer(group, place, kind, title, log):
        lines = []
        for record in chosen:
            values = record[group][place][kind]
            lines.append((f"step {record['step']:,}", np.array([np.arange(len(values)), values])))
        name = f"{group.removesuffix('s')}_{place}_{kind}.png"
        plot_lines(folder / name, title, "layer", lines, log=log)
        made.append(f"![{title}]({name})")

    for norm in records[-1]["gains"]:
        for kind, text in (("mean", "Mean"), ("std", "Standard deviation")):
            title = f"{text} of the gains of {norm.replace('_', ' ')} by layer"
            by_layer("gains", norm, kind, title, False)
    for part in records[-1]["activations"]:
        for kind, text in (("std", "Standard deviation"), ("top1", "Largest magnitude")):
            by_layer("activations", part, kind, f"{text} of the {part} activations by layer", True)
    return "## Layers\n\n" + "\n\n".join(made)


def _vocabulary(corpus: pathlib.Path | None) -> str:
    file = corpus and corpus / VOCABULARY
    if not file or not file.is_file():
        return ""
    about = VocabularyReport.from_json(file.read_text(encoding="utf-8"))
    text = (
        "## Vocabulary\n\nLearned tokens by domain: the share asked for and the tokens taken from "
        "it. On held-out documents: different tokens used, and bytes per token with this "
        "vocabulary and with one BPE of the same size over all training text."
    )
    if not about.compared:
        text += " Not compared (`--config.corpus.compare=True` does so)."
    return f"{text}\n\n{about.to_markdown().strip()}"
