"""The configuration of a pre-training run."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pangu_jax.data.text.batches import PackingConfig
from pangu_jax.data.text.build import CorpusConfig
from pangu_jax.data.text.mixture import PANGU_ULTRA_WEIGHTS, Mixture
from pangu_jax.data.text.sources import day_one_sources
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.training.config import TrainConfig
from pangu_jax.training.phases import PANGU_ULTRA, Phase, PhaseSchedule, Rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """What changes with the number of consumed tokens.

    kind: 'single', one phase whose learning rate falls by a cosine to a tenth; 'pangu_ultra', all
      phases of the report in small (`PhaseSchedule.rescaled`); 'pangu_ultra_full', unscaled.
    tokens: of the whole run. seq_len, batch_rows: of the first phase. learning_rate: the peak.
    warmup_fraction: share of the steps that warm up.
    rope_base: of the single phase; None: model.rope_base. The report's phases bring their own.
    """

    kind: Literal["single", "pangu_ultra", "pangu_ultra_full"] = "single"
    tokens: float = 1e6
    seq_len: int = 256
    batch_rows: int = 16
    learning_rate: float = 1e-3
    warmup_fraction: float = 0.02
    rope_base: float | None = None

    def __post_init__(self):
        if self.rope_base is not None and self.kind != "single":
            raise ValueError(
                f"schedule.rope_base={self.rope_base} goes with schedule.kind='single'; the phases "
                f"of {self.kind!r} have bases of their own"
            )

    def build(self, rope_base: float = 10_000.0) -> PhaseSchedule:
        """The phases and their learning rates; rope_base: of the model."""
        if self.kind == "pangu_ultra_full":
            return PANGU_ULTRA
        if self.kind == "pangu_ultra":
            return PANGU_ULTRA.rescaled(
                self.tokens, seq_len=self.seq_len, batch_rows=self.batch_rows,
                learning_rate=self.learning_rate, warmup_fraction=self.warmup_fraction,
            )  # fmt: skip
        phase = Phase(
            name="general", tokens=self.tokens, seq_len=self.seq_len, batch_rows=self.batch_rows,
            rope_base=self.rope_base or rope_base,
        )  # fmt: skip
        peak = self.learning_rate
        rate = Rate(until=self.tokens, kind="cosine", start=peak, end=0.1 * peak)
        draft = PhaseSchedule(phases=(phase,), rates=(rate,))
        warmup = round(self.warmup_fraction * draft.total_steps)
        return dataclasses.replace(draft, warmup_steps=warmup)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutConfig:
    """Evaluation on documents that neither training nor the vocabulary saw.

    rows: per domain. layer_statistics: also gains of all norms and activations of all layers, to
      layer_statistics.jsonl (the report's Figures 9 and 10).
    """

    rows: int = 16
    layer_statistics: bool = True

    def __post_init__(self):
        if self.rows < 1:
            raise ValueError(f"rows={self.rows} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Sampling for `--mode=generate` and for the samples in the report.

    max_tokens: None takes 64, or what the rows that the checkpoint was trained on leave after the
      prompt. beyond_trained_length: allow positions past those rows, where the model knows nothing.
    temperature 0 takes the most probable token. top_k 0 keeps all tokens.
    """

    prompt: str = "The function returns"
    max_tokens: int | None = None
    beyond_trained_length: bool = False
    temperature: float = 0.8
    top_k: int = 40
    seed: int = 0

    def __post_init__(self):
        too_few = self.max_tokens is not None and self.max_tokens < 1
        if too_few or self.temperature < 0 or self.top_k < 0:
            raise ValueError(
                f"max_tokens={self.max_tokens} must be at least 1, temperature={self.temperature} "
                f"and top_k={self.top_k} not negative"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleConfig:
    """The needle test of `--mode=needle`, which chooses a RoPE base (docs/pangu_ultra.md).

    lengths: tokens of haystack, needle, question and answer together; the longest is the target
      that the base is chosen for. Empty: 1, 2 and 4 times the rows of the checkpoint's phase.
    depths: of the needle, from 0 (the start of the haystack) to 1 (right before the question).
    haystacks: per length and depth; with `together`, per length.
    together: the needles of all depths in one haystack, each asked for. One pass instead of one
      per depth, but harder: the values of the others are in the context too.
    choices: values that the forced choice is among. digits: of a value.
    bases: to compare. Empty: `default_bases` of the checkpoint's phase and the target.
    buckets: parts of the context whose perplexity is told apart, a multiple of 4.
    batch_rows: contexts at one time. max_length: what `lengths` may not exceed.
    """

    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    haystacks: int = 8
    together: bool = False
    choices: int = 8
    digits: int = 4
    bases: tuple[float, ...] = ()
    buckets: int = 8
    batch_rows: int = 4
    max_length: int = 131_072
    seed: int = 0

    def __post_init__(self):
        for name in ("haystacks", "digits", "batch_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for length in self.lengths:
            if not 1 <= length <= self.max_length:
                raise ValueError(
                    f"lengths has {length}; a length lies between 1 and "
                    f"max_length={self.max_length} (raise it for longer contexts)"
                )
        if not self.depths or any(not 0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"depths={self.depths} must be fractions in [0, 1], at least one")
        if any(not 0 < base < float("inf") for base in self.bases):
            raise ValueError(f"bases={self.bases} must be positive and finite: they are RoPE bases")
        if self.digits > 6:
            raise ValueError(f"digits={self.digits} must be at most 6")
        if not 2 <= self.choices <= 9 * 10 ** (self.digits - 1):
            raise ValueError(
                f"choices={self.choices} must be at least 2 and at most "
                f"{9 * 10 ** (self.digits - 1)}, the values of digits={self.digits}"
            )
        if self.together and len(self.depths) > self.choices:
            raise ValueError(
                f"together: {len(self.depths)} depths need as many values, but "
                f"choices={self.choices}; raise it or give fewer depths"
            )
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"buckets={self.buckets} must be a positive multiple of 4")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """`--mode=export`: a checkpoint as a Hugging Face directory.

    folder: must not exist yet; empty: model/ in the work directory. which: 'best', 'latest', or
      'auto', the best where there is one. dtype: of the tensors. shard_gb: largest file, in 10^9
      bytes.
    """

    folder: str = ""
    which: Literal["auto", "best", "latest"] = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    shard_gb: float = 4.0

    def __post_init__(self):
        if self.shard_gb <= 0:
            raise ValueError(f"shard_gb={self.shard_gb} must be positive")


def _mixtures() -> dict[str, Mixture]:
    return {
        name: Mixture(
            weights, quality_power=1.0, curriculum=("math", "code") if name == "reasoning" else ()
        )
        for name, weights in PANGU_ULTRA_WEIGHTS.items()
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pre-training run.

    initial_weights: what to go on from instead of drawn values: 'smollm2', a .gguf file, or a
      Hugging Face directory (docs/weights.md). Their sizes and tokenizer replace those of `model`
      and `corpus`. Empty: a new model.
    corpus: what the text is and how it becomes tokens. corpus_folder: where that is kept; None: a
      folder of the cache named by the settings, shared by all runs with the same corpus.
    mixtures: by the names that phases use; domains the corpus lacks are left out and the rest
      scaled up, which the run says.
    layout: how a step is divided over devices by hand (pipeline, context, tensor, ZeRO); its
      microbatches follow from the rows of a phase. All ones: data parallel over `train.mesh`.
    phase_layouts: layouts of single phases by name, in place of `layout`.
    z_loss: factor of the squared log-normaliser (0: off; the paper does not mention one).
    train: the loop; its `steps` and learning rate follow from `schedule`.
    """

    experiment: str = "pangu.pretrain"
    cpu_devices: int = 1
    model: DecoderConfig = dataclasses.field(default_factory=lambda: preset("debug"))
    initial_weights: str = ""
    corpus: CorpusConfig = dataclasses.field(
        default_factory=lambda: CorpusConfig(sources=day_one_sources())
    )
    corpus_folder: str | None = None
    mixtures: dict[str, Mixture] = dataclasses.field(default_factory=_mixtures)
    packing: PackingConfig = PackingConfig(shuffle_rows=256)
    schedule: ScheduleConfig = ScheduleConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    generate: GenerateConfig = GenerateConfig()
    needle: NeedleConfig = NeedleConfig()
    export: ExportConfig = ExportConfig()
    layout: Layout = Layout()
    phase_layouts: dict[str, Layout] = dataclasses.field(default_factory=dict)
    z_loss: float = 0.0
    train: TrainConfig = TrainConfig(best_metric="loss", best_mode="min")

    def __post_init__(self):
        if self.z_loss < 0:
            raise ValueError(f"z_loss={self.z_loss} must not be negative")

    def phase_schedule(self) -> PhaseSchedule:
        """The schedule, whose single phase has the model's RoPE base unless it names another."""
        return self.schedule.build(self.model.rope_base)
