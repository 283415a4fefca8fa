"""The layouts in which the phases of a run use one cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pangu_jax.parallel.layout import Layout, LayoutError, check_layout

if TYPE_CHECKING:  # both import this package
    from pangu_jax.models.config import DecoderConfig
    from pangu_jax.parallel.topology import Topology
    from pangu_jax.training.phases import PhaseSchedule


def phase_layouts(
    schedule: PhaseSchedule,
    model: DecoderConfig,
    *,
    topology: Topology,
    pipe: int = 8,
    tensor: int = 8,
    virtual_stages: int = 6,
    zero: int = 1,
    rank_tokens: int = 8192,
    **others,
) -> dict[str, Layout]:
    """A checked layout for every phase: the whole cluster, micro-batches of one row.

    Pipeline, virtual stages and tensor are those of Pangu Ultra (section 4.2) by default. What is
    left of the devices is context x data: context starts at 1 and doubles until a context rank
    holds at most `rank_tokens` of a row and data divides the rows of the batch. Micro-batch size,
    ZeRO stage and context of the paper are not stated; `rank_tokens` is our choice.

    For Pangu Ultra on 8,192 devices: 4K and 8K data 128; 32K data 32, context 4; 128K data 8,
    context 16 (its 96 rows allow at most data 32). Context 8 would leave 6 micro-batches for 8
    pipeline ranks, and virtual stages stall when there are fewer than ranks.

    Args:
      topology: the cluster. others: further fields of `Layout`, the same for all phases.

    Raises:
      LayoutError: a phase has no such layout; the text names it.
    """
    left = topology.devices // (pipe * tensor)
    if left * pipe * tensor != topology.devices:
        raise LayoutError(
            f"pipe {pipe} x tensor {tensor} does not divide the {topology.devices} devices of "
            f"topology {topology.name!r}; choose divisors of {topology.devices}."
        )
    layouts = {}
    for phase in schedule.phases:
        context = 1
        while left % context == 0 and (
            phase.seq_len > rank_tokens * context or phase.batch_rows % (left // context)
        ):
            context *= 2
        if left % context:
            raise LayoutError(
                f"Phase {phase.name!r} ({phase.batch_rows} rows of {phase.seq_len} tokens): no "
                f"context x data = {left} with context a power of two keeps at most {rank_tokens} "
                "tokens of a row on a context rank and lets data divide the rows; change the "
                "phase's batch_rows, rank_tokens, pipe or tensor."
            )
        data = left // context
        layout = Layout(
            data=data,
            pipe=pipe,
            context=context,
            tensor=tensor,
            virtual_stages=virtual_stages,
            microbatches=phase.batch_rows // data,
            zero=zero,
            **others,
        )
        try:
            check_layout(
                layout,
                model,
                seq_len=phase.seq_len,
                batch_rows=phase.batch_rows,
                topology=topology,
            )
        except LayoutError as error:
            raise LayoutError(f"Phase {phase.name!r}: {error}") from error
        layouts[phase.name] = layout
    return layouts
