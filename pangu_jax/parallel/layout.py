"""A layout: how one training step is divided over devices.

Mesh axes, slowest to fastest: ('data', 'pipe', 'context', 'tensor'). A stage is a chunk of layers;
rank r of p pipeline ranks holds stages r, p + r, 2p + r, ... (interleaving; Pangu Ultra, arXiv
2504.07866, section 4.2, in Megatron's order).

Letters: p pipeline ranks, v virtual stages, n micro-batches.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from pangu_jax.parallel.mesh import MeshError

AXES = ("data", "pipe", "context", "tensor")
ContextStrategy = Literal["ring", "gather"]


class LayoutError(MeshError):
    """A layout that does not fit model, batch or devices; the text says what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Sizes of the mesh axes and how the step uses them.

    data, pipe, context, tensor: sizes of the mesh axes.
    virtual_stages: chunks of layers per pipeline rank.
    microbatches: per data replica and step.
    microbatch_rows: rows (sequences) of a micro-batch on one data replica.
    zero: what is divided over data: 0 nothing, 1 optimizer state, 2 also gradients, 3 also
      parameters.
    sequence_parallel: the residual stream is divided by sequence over tensor.
    overlap: all-gather -> product and product -> reduce-scatter run as rings of chunks that hide
      their communication, instead of XLA's own collectives.
    context_strategy: keys and values go around the context ranks ('ring') or are gathered.
    """

    data: int = 1
    pipe: int = 1
    context: int = 1
    tensor: int = 1
    virtual_stages: int = 1
    microbatches: int = 1
    microbatch_rows: int = 1
    zero: int = 1
    sequence_parallel: bool = True
    overlap: bool = False
    context_strategy: ContextStrategy = "ring"

    def __post_init__(self):
        for field in (*AXES, "virtual_stages", "microbatches", "microbatch_rows"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LayoutError(f"layout.{field}={value!r} must be a whole number of at least 1.")
        if self.zero not in (0, 1, 2, 3):
            raise LayoutError(
                f"layout.zero={self.zero!r} must be 0 (nothing divided over data), 1 (optimizer "
                "state), 2 (also gradients) or 3 (also parameters)."
            )
        if self.context_strategy not in get_args(ContextStrategy):
            raise LayoutError(
                f"layout.context_strategy={self.context_strategy!r} must be one of "
                f"{', '.join(get_args(ContextStrategy))}."
            )

    @property
    def mesh_shape(self) -> tuple[int, int, int, int]:
        """Sizes in the order of AXES."""
        return self.data, self.pipe, self.context, self.tensor

    @property
    def devices(self) -> int:
        return self.data * self.pipe * self.context * self.tensor

    @property
    def batch_rows(self) -> int:
        """Rows of the global batch."""
        return self.data * self.microbatches * self.microbatch_rows

    @property
    def stages(self) -> int:
        return self.pipe * self.virtual_stages

    @property
    def bubble(self) -> float:
        """Share of a step in which a pipeline rank idles, (p - 1) / (p - 1 + n v).

        All chunks are taken to last equally long, communication to be hidden, and p to divide n
        where v > 1. Source: Pangu Ultra section 4.2.
        """
        return (self.pipe - 1) / (self.pipe - 1 + self.microbatches * self.virtual_stages)

    def end_slots(self) -> int:
        """Slots that embedding and head take: one each where there is a pipeline."""
        return 2 if self.pipe > 1 else 0

    def slots_per_stage(self, num_layers: int) -> int:
        """Slots of a stage; a slot holds a layer, the embedding, the head, or nothing."""
        return -(-(num_layers + self.end_slots()) // self.stages)

    def empty_slots(self, num_layers: int) -> int:
        """Slots of all stages together that hold nothing; fewer than there are stages."""
        return self.slots_per_stage(num_layers) * self.stages - num_layers - self.end_slots()

    def stage_layers(self, num_layers: int) -> tuple[range, ...]:
        """The layers of every stage, in the order of the stages.

        The embedding takes a slot of stage 0 and the head one of the last stage. Slots that are
        left over are taken one by one from the last stages backwards, so that no two stages
        differ by more than one slot in use.
        """
        slots, stages = self.slots_per_stage(num_layers), self.stages
        counts = [slots] * stages
        if self.end_slots():
            counts[0] -= 1
            counts[-1] -= 1
        empty = self.empty_slots(num_layers)
        for stage in reversed(range(stages)):
            if empty and counts[stage]:
                counts[stage] -= 1
                empty -= 1
        starts = [sum(counts[:stage]) for stage in range(stages)]
        return tuple(range(a, a + c) for a, c in zip(starts, counts, strict=True))
