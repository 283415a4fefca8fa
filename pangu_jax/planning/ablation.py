"""The optimizations of Pangu Ultra switched on in turn, phase by phase.

What the paper says: 43 % MFU with data 128 x pipeline 8 (6 virtual stages) x tensor 8, over 52 %
with merged computation and communication, fused attention, other fusions, context parallelism by
sub-sequence and shared masks; no figure for any one of them (sections 4.2 and 4.3). The order here
is the paper's. The stack is reconstructed: Megatron's way of keeping activations, 16-bit
parameters with float32 copies divided over data.
"""

from __future__ import annotations

import dataclasses

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.topology import Topology
from pangu_jax.planning.cost import Prediction, predict
from pangu_jax.planning.execution import MEGATRON_STACK, PARTS, Efficiencies, Execution

# Attention work of the busiest context rank over the mean when whole rows, not documents, are cut
# zigzag: simulated for rows of 128K with documents of 64K on average and 8 context ranks
# (specification of the paper's training system, 5.3); documents of 4K give 1.93.
WHOLE_ROW_IMBALANCE = 1.28


@dataclasses.dataclass(frozen=True, kw_only=True)
class AblationStep:
    """One row: what was switched on in addition to the rows before, and a prediction per phase.

    recomputed: per phase, what the backward pass runs again so that the step fits in memory.
    """

    name: str
    predictions: dict[str, Prediction]
    recomputed: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def ablation(
    model: DecoderConfig,
    topology: Topology,
    phases: dict[str, tuple[int, Layout]],
    efficiencies: Efficiencies | None = None,
) -> list[AblationStep]:
    """Predictions with the optimizations switched on one after the other.

    Args:
      phases: name -> (tokens of a row, layout with everything on). Virtual stages and overlap are
        taken away for the rows before them.

    The paper does not say what is recomputed. Every row and phase takes the policy that is fastest
    among those that fit, or the one that needs least memory where none does.
    """
    slow = dataclasses.replace(
        MEGATRON_STACK, fused_attention=False, fused_pointwise=False, fused_accumulation=False,
        context_imbalance=WHOLE_ROW_IMBALANCE,
    )  # fmt: skip
    fused = dataclasses.replace(slow, fused_attention=True)
    all_fused = dataclasses.replace(fused, fused_pointwise=True, fused_accumulation=True)
    balanced = dataclasses.replace(all_fused, context_imbalance=1.0)
    bare = {"virtual_stages": 1, "overlap": False}
    rows: list[tuple[str, dict, Execution]] = [
        ("none: no virtual stages, attention with S x S scores and mask", bare, slow),
        ("virtual stages (the paper's 43 %)", {"overlap": False}, slow),
        ("products overlapped with tensor-parallel communication (MC2)", {"overlap": True}, slow),
        ("fused attention without a mask (NFA)", {"overlap": True}, fused),
        ("fused norms, rotary embedding, SwiGLU, accumulation", {"overlap": True}, all_fused),
        ("context parallelism by document (the paper's 52 %)", {"overlap": True}, balanced),
    ]
    steps = []
    for name, changes, execution in rows:
        step = AblationStep(name=name, predictions={})
        for phase, (seq_len, layout) in phases.items():
            chosen = dataclasses.replace(layout, **changes)
            single = chosen.context == 1
            how = dataclasses.replace(execution, context_imbalance=1.0) if single else execution
            again, found = fastest_that_fits(model, chosen, topology, seq_len, how, efficiencies)
            step.predictions[phase], step.recomputed[phase] = found, again
        steps.append(step)
    return steps


def fastest_that_fits(
    model: DecoderConfig,
    layout: Layout,
    topology: Topology,
    seq_len: int,
    execution: Execution,
    efficiencies: Efficiencies | None = None,
) -> tuple[tuple[str, ...], Prediction]:
    """(what is recomputed, prediction) of the fastest way that fits; the leanest if none does."""
    ways = [(), ("attention",), ("attention", "pointwise"), ("pointwise",), PARTS]
    found = [
        (
            again,
            predict(
                model, layout, topology, seq_len,
                dataclasses.replace(execution, recompute=again), efficiencies, play=False,
            ),
        )
        for again in ways
    ]  # fmt: skip
    fitting = [pair for pair in found if pair[1].fits]
    again = (
        min(fitting, key=lambda pair: pair[1].seconds)
        if fitting
        else min(found, key=lambda pair: pair[1].memory.total)
    )[0]
    execution = dataclasses.replace(execution, recompute=again)
    return again, predict(model, layout, topology, seq_len, execution, efficiencies)


def program_steps(
    model: DecoderConfig,
    topology: Topology,
    phases: dict[str, tuple[int, Layout]],
    execution: Execution,
    efficiencies: Efficiencies | None = None,
) -> list[AblationStep]:
    """The same layouts by the step program here, as it is and with what would speed it up.

    Each row keeps the changes of the rows before it.
    """
    rows: list[tuple[str, dict, dict]] = [
        ("as configured", {}, {}),
        ("overlap, with pieces exchanged directly", {"overlap": True}, {"exchange": "direct"}),
        ("gradients divided over data before other sums", {}, {"scatter_first": True}),
        (
            "one cast of the parameters per step, before they are gathered", {},
            {"compute_copy": True, "cast_first": True},
        ),
        ("gradients and parameters exchanged beside layers", {}, {"overlap_data": True}),
        ("ends stored on their own ranks alone", {}, {"replicate_ends": False}),
        ("activations kept instead of chunk inputs", {}, {"stash": "activations"}),
    ]  # fmt: skip
    steps, layout_changes = [], {}
    for name, of_layout, changes in rows:
        layout_changes |= of_layout
        execution = dataclasses.replace(execution, **changes)
        step = AblationStep(name=name, predictions={})
        for phase, (seq_len, layout) in phases.items():
            layout = dataclasses.replace(layout, **layout_changes)
            if execution.stash == "activations":  # may need recomputation to fit
                again, found = fastest_that_fits(
                    model, layout, topology, seq_len, execution, efficiencies
                )
            else:
                again = execution.recomputed(model)
                found = predict(model, layout, topology, seq_len, execution, efficiencies)
            step.predictions[phase], step.recomputed[phase] = found, again
        steps.append(step)
    return steps
