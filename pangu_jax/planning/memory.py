"""Bytes of memory that a step needs on one device, by part.

Formulas, with p pipe, v virtual stages, t tensor, d data ranks and n micro-batches; P the
parameters of one (pipe, tensor) rank:

    parameters   P * size(param_dtype) / (d if zero == 3)
    compute_copy P * size(dtype), where there is one
    gradients    P * size(grad_dtype) / (d if zero >= 2)
    optimizer    P * (4 + 4 + 4 if master) / (d if zero >= 1)      Adam's two moments, float32
    stash        units in flight * (chunk input, or what its layers keep); in lock step every rank
                 has the slots of the fullest one, those of received activations and gradients, and
                 one of each for idle ticks
    activations  of the chunk that is being differentiated: what its layers keep by the remat
                 policy, and all arrays of the one layer at work
    logits       of one loss chunk, on the last pipeline rank
    buffers      a chunk's parameters and gradients on their way out of and into those of all
                 chunks (v > 1), gathered stream and its gradient, gradients of the MLP's wide
                 arrays, gathered parameters of two layers (zero == 3), K and V of two context ranks

Letters: see `layer.py`.
"""

from __future__ import annotations

import dataclasses

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.layout import Layout
from pangu_jax.planning.execution import PARTS, Execution, PlanError, itemsize
from pangu_jax.planning.layer import (
    LayerWork,
    end_parameters,
    layer_parameters,
    layer_work,
    layers_of_stages,
    stream_tokens,
    tokens_per_device,
)
from pangu_jax.planning.pipeline import pipeline_schedule

_MOMENTS = 8  # two float32 numbers per parameter


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on one device of pipeline rank `rank`, by part."""

    rank: int
    parameters: float
    compute_copy: float
    gradients: float
    optimizer: float
    stash: float
    activations: float
    logits: float
    buffers: float

    @property
    def parts(self) -> dict[str, float]:
        names = [field.name for field in dataclasses.fields(self) if field.name != "rank"]
        return {name: getattr(self, name) for name in names}

    @property
    def arguments(self) -> float:
        """What lives from step to step: parameters and optimizer state."""
        return self.parameters + self.optimizer

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def units_in_flight(layout: Layout, rank: int = 0) -> int:
    """Units (chunk, micro-batch) between their forward and backward pass at a rank, at most.

    (v + 1) p - 1 - 2 r where p divides n, whatever n is, and never more than there are; from the
    schedule itself otherwise. The unit at work counts. 1 without a pipeline.
    """
    if not 0 <= rank < layout.pipe:
        raise PlanError(f"rank={rank} must lie in 0..{layout.pipe - 1} (layout.pipe).")
    p, v, n = layout.pipe, layout.virtual_stages, layout.microbatches
    if p == 1:
        return 1
    return (
        min((v + 1) * p - 1 - 2 * rank, n * v)
        if n % p == 0
        else (pipeline_schedule(layout).in_flight(rank))
    )


def rank_parameters(model: DecoderConfig, layout: Layout, rank: int, execution: Execution) -> float:
    """Parameters of one device of pipeline rank `rank`, before any division over data.

    In lock step all ranks hold equally many layer slots, those of the ends and empty ones too.
    """
    if execution.lock_step and not execution.even_layers:
        layers = layout.slots_per_stage(model.num_layers) * layout.virtual_stages
    else:
        layers = sum(layers_of_stages(model, layout, execution)[rank :: layout.pipe])
    replicate_ends = execution.replicate_ends
    embedding, head = end_parameters(model)
    total = layers * layer_parameters(model)
    if replicate_ends or rank == 0:
        total += embedding
    if replicate_ends or rank == layout.pipe - 1:
        total += head
        if model.tie_embeddings and not replicate_ends and rank != 0:
            total += embedding  # the last rank needs the table too
    return total / layout.tensor


def memory_plan(
    model: DecoderConfig,
    layout: Layout,
    seq_len: int,
    execution: Execution | None = None,
    *,
    rank: int | None = None,
) -> MemoryPlan:
    """Memory of one device of a pipeline rank; of the fullest one where `rank` is None.

    The compiler's own temporaries (fusions it does not make, fragmentation) are not in it.
    """
    execution = execution or Execution()
    work = layer_work(model, layout, seq_len, execution)
    if rank is None:
        plans = (_rank_plan(model, layout, seq_len, execution, work, r) for r in range(layout.pipe))
        return max(plans, key=lambda plan: plan.total)
    return _rank_plan(model, layout, seq_len, execution, work, rank)


def _rank_plan(model, layout, seq_len, execution, work: LayerWork, rank: int) -> MemoryPlan:
    data, size = layout.data, itemsize(model.dtype)
    count = rank_parameters(model, layout, rank, execution)
    again = execution.recomputed(model)
    per_layer = work.kept_bytes(again)
    own = layers_of_stages(model, layout, execution)[rank :: layout.pipe]
    stash, at_work = 0.0, per_layer * max(own)
    flying = units_in_flight(layout, rank)
    if layout.pipe > 1 and execution.stash == "inputs":
        if execution.lock_step:
            table = pipeline_schedule(layout)
            flying = 3 + table.num_stash_slots
            flying += table.num_activation_slots + table.num_gradient_slots
        stash = flying * size * stream_tokens(layout, seq_len) * model.hidden_dim
    elif layout.pipe > 1:
        stash, at_work = flying * per_layer * sum(own) / len(own), 0.0
    if execution.offload:
        # Two layers' worth is on its way to or from the host.
        stash, at_work = 0.0, min(at_work, 2 * per_layer)
    whole_layer = sum(work.saved_bytes[part] for part in PARTS if part in again)
    last = rank == layout.pipe - 1
    return MemoryPlan(
        rank=rank,
        parameters=count * itemsize(execution.param_dtype) / (data if layout.zero == 3 else 1),
        compute_copy=count * size if execution.compute_copy and layout.zero < 3 else 0.0,
        gradients=count * itemsize(execution.grad_dtype) / (data if layout.zero >= 2 else 1),
        optimizer=count * (_MOMENTS + 4 * execution.master) / (data if layout.zero >= 1 else 1),
        stash=stash,
        activations=at_work + whole_layer,
        logits=_logits(model, layout, seq_len) if last else 0.0,
        buffers=_buffers(model, layout, seq_len, size) + _chunk(model, layout, execution, own),
    )


def _logits(model: DecoderConfig, layout: Layout, seq_len: int) -> float:
    """One loss chunk: logits and weights (float32), their gradient (the model's dtype), the
    head's gradient (float32) and that of the hidden states."""
    tokens = tokens_per_device(layout, seq_len)
    length = seq_len / layout.context
    chunk = min(model.loss_chunk or length, length) * layout.microbatch_rows
    vocab = model.vocab_size / layout.tensor
    size = itemsize(model.dtype)
    return (
        chunk * vocab * (4 + 4 + size)
        + model.hidden_dim * vocab * 4.0
        + 2 * tokens * model.hidden_dim * size
    )


def _chunk(model: DecoderConfig, layout: Layout, execution: Execution, own) -> float:
    """A copy of one chunk's parameters, and its gradients before they are added."""
    if layout.pipe == 1 or layout.virtual_stages == 1:
        return 0.0
    weights = max(own) * layer_parameters(model) / layout.tensor
    return weights * (itemsize(execution.param_dtype) + itemsize(execution.grad_dtype))


def _buffers(model: DecoderConfig, layout: Layout, seq_len: int, size: int) -> float:
    tokens = tokens_per_device(layout, seq_len)
    total = 2.0 * size * tokens * model.hidden_dim  # the gathered stream and its gradient
    total += 2.0 * size * tokens * model.mlp_dim / layout.tensor  # gradients of gate and up
    if layout.zero == 3:
        total += 2.0 * size * layer_parameters(model) / layout.tensor
    if layout.context > 1:
        rows = 2 if layout.context_strategy == "ring" else layout.context
        keys = tokens * model.num_kv_heads * model.head_dim / layout.tensor
        total += 2.0 * rows * keys * size
    return total
