"""The configuration of a plan."""

from __future__ import annotations

import dataclasses

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout, LayoutError, check_layout
from pangu_jax.parallel.phase_layouts import phase_layouts
from pangu_jax.parallel.topology import topology
from pangu_jax.planning.execution import Efficiencies, Execution, PlanError
from pangu_jax.planning.sweep import SweepConfig
from pangu_jax.training.phases import PANGU_ULTRA, PhaseSchedule


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What a plan contains beside the phases themselves.

    sweep: also look for the fastest layouts that fit. validate: also compare the cost model with
    published runs. ablation: also the paper's optimizations one after the other, and what would
    speed up the step program here. compile: also compile the first phase's step for the topology
    (its compiler must be installed: extras aot-cuda, aot-tpu; up to minutes), memory and
    collectives beside the planned ones.
    """

    sweep: bool = False
    validate: bool = True
    ablation: bool = True
    compile: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanPhase:
    """One phase to plan: rows of `seq_len` tokens, its layout, and what check_layout notes."""

    name: str
    seq_len: int
    layout: Layout
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """A plan.

    topology: a name of `pangu_jax.parallel.topology`.
    phases: names of phases of Pangu Ultra's schedule. Each takes pipe, tensor, virtual_stages and
      the switches of `layout`; data, context and micro-batches follow from the phase's rows
      (`phase_layouts`), with at most `rank_tokens` tokens of a row on a context rank.
    seq_len, batch_rows: one phase of one's own instead, with `layout` exactly as it is.
    execution, efficiencies: see there. search: what a sweep tries.
    """

    experiment: str = "pangu.plan"
    cpu_devices: int = 1
    model: DecoderConfig = dataclasses.field(default_factory=lambda: preset("ultra_135b"))
    topology: str = "ascend_8192"
    phases: tuple[str, ...] = ("general_3", "reasoning", "long_32k", "long_128k")
    layout: Layout = Layout(pipe=8, tensor=8, virtual_stages=6)
    rank_tokens: int = 8192
    seq_len: int | None = None
    batch_rows: int | None = None
    execution: Execution = Execution()
    efficiencies: Efficiencies = Efficiencies()
    plan: PlanOptions = PlanOptions()
    search: SweepConfig = SweepConfig()

    def __post_init__(self):
        if (self.seq_len is None) != (self.batch_rows is None):
            raise PlanError(
                f"seq_len={self.seq_len} and batch_rows={self.batch_rows} belong together: set "
                "both for a phase of your own, or neither."
            )
        known = {phase.name: phase for phase in PANGU_ULTRA.phases}
        for name in self.phases:
            if name not in known:
                raise PlanError(f"phases names {name!r}; allowed: {', '.join(known)}.")
        if not self.phases and self.seq_len is None:
            raise PlanError("phases is empty; name at least one, or set seq_len and batch_rows.")

    def build(self) -> tuple[PlanPhase, ...]:
        """The phases with their layouts, checked.

        Raises:
          LayoutError, TopologyError: what does not fit, and what to change.
        """
        where = topology(self.topology)
        if self.seq_len is not None:
            notes = check_layout(
                self.layout, self.model, seq_len=self.seq_len, batch_rows=self.batch_rows,
                topology=where,
            )  # fmt: skip
            phase = PlanPhase(name="own", seq_len=self.seq_len, layout=self.layout, notes=notes)
            return (phase,)
        chosen = tuple(phase for phase in PANGU_ULTRA.phases if phase.name in self.phases)
        schedule = PhaseSchedule(phases=chosen, rates=PANGU_ULTRA.rates)
        base = self.layout
        for field in ("data", "context", "microbatches", "microbatch_rows"):
            if getattr(base, field) != 1:
                raise LayoutError(
                    f"layout.{field}={getattr(base, field)} follows from the phases; leave it at "
                    "1, or set seq_len and batch_rows to plan exactly this layout."
                )
        layouts = phase_layouts(
            schedule, self.model, topology=where, pipe=base.pipe, tensor=base.tensor,
            virtual_stages=base.virtual_stages, zero=base.zero, rank_tokens=self.rank_tokens,
            sequence_parallel=base.sequence_parallel, overlap=base.overlap,
            context_strategy=base.context_strategy,
        )  # fmt: skip
        return tuple(
            PlanPhase(
                name=phase.name, seq_len=phase.seq_len, layout=layouts[phase.name],
                notes=check_layout(layouts[phase.name], self.model, seq_len=phase.seq_len),
            )
            for phase in chosen
        )  # fmt: skip
