"""The collectives of a training step: what, how large, how often, over which links.

What the step program does (`pangu_jax/parallel/decoder`): Megatron's tensor parallelism with
sequence parallelism (all-gather before the first product of a branch, reduce-scatter after the
last; the backward pass exchanges the two and gathers the input once more for the weights'
gradient), a pipeline of permutations, ZeRO over data, keys and values round the context ranks.
Scalars (gradient norm, loss, token counts) are left out.

Letters: see `layer.py`; P parameters of one (pipe, tensor) rank.
"""

from __future__ import annotations

import dataclasses

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.topology import Topology
from pangu_jax.planning.execution import Efficiencies, Execution, itemsize
from pangu_jax.planning.layer import (
    end_parameters,
    layer_parameters,
    layers_of_stages,
    stream_tokens,
    tokens_per_device,
)
from pangu_jax.planning.links import collective_seconds, group_of
from pangu_jax.planning.memory import rank_parameters
from pangu_jax.planning.pipeline import executed_units, permutes

PASSES = ("forward", "rerun", "recompute", "backward")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One kind of collective of a step.

    purpose: what for. axis: of the mesh. kind: as XLA names it.
    bytes: of the gathered, reduced or sent array on one device, once.
    count: per step and device (of the device that does most).
    seconds: of one, nothing hidden. beside: what may hide it ('' for nothing).
    links: which links it crosses.
    """

    purpose: str
    axis: str
    kind: str
    group: int
    bytes: float
    count: float
    seconds: float
    beside: str
    links: str

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a step."""
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return self.count * self.bytes * share * (2.0 if self.kind == "all-reduce" else 1.0)

    @property
    def output_bytes(self) -> float:
        """Bytes of the results on a device in a step, as an HLO text counts them."""
        scattered = self.group if self.kind == "reduce-scatter" else 1
        return self.count * self.bytes / scattered

    @property
    def total_seconds(self) -> float:
        return self.count * self.seconds


class _Maker:
    """Builds collectives of one layout on one topology."""

    def __init__(self, layout: Layout, topology: Topology, efficiencies: Efficiencies):
        self.layout, self.topology, self.efficiencies = layout, topology, efficiencies

    def __call__(self, purpose, axis, kind, size, count, beside="") -> Collective:
        group = group_of(self.layout, axis, self.topology)
        return Collective(
            purpose=purpose, axis=axis, kind=kind, group=group.size, bytes=size, count=count,
            seconds=collective_seconds(
                kind, size, group, self.topology, self.efficiencies.links
            ),
            beside=beside, links=group.links,
        )  # fmt: skip


def layer_collectives(
    model: DecoderConfig,
    layout: Layout,
    topology: Topology,
    seq_len: int,
    execution: Execution,
    efficiencies: Efficiencies,
) -> dict[str, list[Collective]]:
    """Collectives of one layer and one micro-batch, by pass; `count` is per layer and micro-batch.

    'rerun' is the second forward pass of a chunk whose inputs alone were kept, 'recompute' what
    the remat policy asks for. Without either, their lists are empty.
    """
    make = _Maker(layout, topology, efficiencies)
    passes: dict[str, list[Collective]] = {name: [] for name in PASSES}
    again = execution.recomputed(model)
    rerun = layout.pipe > 1 and execution.stash == "inputs"
    if layout.tensor > 1:
        beside = "products" if layout.overlap else ""
        size = itemsize(model.dtype) * tokens_per_device(layout, seq_len) * model.hidden_dim
        tensor = lambda kind, count: _pieces(  # noqa: E731
            make("tensor parallel", "tensor", kind, size, count, beside), make, execution
        )
        redone = float(("o" in again) + ("down" in again))
        if layout.sequence_parallel:
            # The gathers for the gradients of the weights; XLA merges them with those that are
            # run again.
            passes["forward"] += [tensor("all-gather", 2), tensor("reduce-scatter", 2)]
            passes["recompute"] += [
                tensor("all-gather", 2), tensor("reduce-scatter", redone),
            ]  # fmt: skip
            passes["backward"] += [tensor("all-gather", 2), tensor("reduce-scatter", 2)]
        else:
            passes["forward"].append(tensor("all-reduce", 2))
            passes["recompute"].append(tensor("all-reduce", redone))
            passes["backward"].append(tensor("all-reduce", 2))
    if layout.context > 1:
        c = layout.context
        keys = tokens_per_device(layout, seq_len) * model.num_kv_heads * model.head_dim
        size = 2.0 * itemsize(model.dtype) * keys / layout.tensor
        if layout.context_strategy == "ring":
            ring = lambda size: make(  # noqa: E731
                "context ring", "context", "collective-permute", size, c - 1, "attention"
            )
            passes["forward"].append(ring(size))
            if "attention" in again:
                passes["recompute"].append(ring(size))
            # Keys and values once more, and the sums of their gradients in float32.
            passes["backward"] += [ring(size), ring(size * 4 / itemsize(model.dtype))]
        else:
            gather = make("context gather", "context", "all-gather", c * size, 1)
            wide = c * size * 4 / itemsize(model.dtype)
            scatter = make("context gather", "context", "reduce-scatter", wide, 1)
            passes["forward"].append(gather)
            if "attention" in again:
                passes["recompute"].append(gather)
            passes["backward"] += [gather, scatter]
    if rerun:
        passes["rerun"] = list(passes["forward"])
    return {name: [c for c in found if c.count] for name, found in passes.items()}


def _pieces(one: Collective, make: _Maker, execution: Execution) -> Collective:
    """With layout.overlap, the permutations that a gather or scatter over tensor is made of."""
    if not make.layout.overlap:
        return one
    hops = one.group - 1
    piece = make(
        one.purpose, one.axis, "collective-permute", one.bytes / one.group, one.count * hops,
        one.beside,
    )  # fmt: skip
    if execution.exchange == "direct":
        return dataclasses.replace(piece, seconds=one.seconds / hops)
    return piece


def step_collectives(
    model: DecoderConfig,
    layout: Layout,
    topology: Topology,
    seq_len: int,
    execution: Execution | None = None,
    efficiencies: Efficiencies | None = None,
) -> list[Collective]:
    """All collectives of a step, of the device that takes part in most.

    Idle units of a lock-step pipeline still permute; they are counted.
    """
    execution, efficiencies = execution or Execution(), efficiencies or Efficiencies()
    make = _Maker(layout, topology, efficiencies)
    found: list[Collective] = []
    n, size = layout.microbatches, itemsize(model.dtype)
    stages = layers_of_stages(model, layout, execution)
    layers = n * max(sum(stages[rank :: layout.pipe]) for rank in range(layout.pipe))
    if layout.pipe > 1 and execution.lock_step:
        # Of ranks whose slots are all in use.
        layers = executed_units(layout, execution) * max(stages)
    per_layer = layer_collectives(model, layout, topology, seq_len, execution, efficiencies)
    for name, collectives in per_layer.items():
        for one in collectives:
            purpose = f"{one.purpose}, {name}"
            found.append(dataclasses.replace(one, purpose=purpose, count=one.count * layers))
    found += _ends(make, model, layout, seq_len, size)
    if layout.pipe > 1:
        chunk = size * stream_tokens(layout, seq_len) * model.hidden_dim
        for name in ("activations", "their gradients"):
            found.append(
                make(
                    f"pipeline, {name}",
                    "pipe",
                    "collective-permute",
                    chunk,
                    permutes(layout, execution),
                    "next unit",
                )  # fmt: skip
            )
    found += data_collectives(model, layout, topology, execution, efficiencies)
    return [c for c in found if c.count and c.group > 1]


def _ends(make, model, layout, seq_len, size) -> list[Collective]:
    """Embedding and loss of a vocabulary divided over tensor; of the last pipeline rank."""
    if layout.tensor == 1:
        return []
    n, tokens = layout.microbatches, tokens_per_device(layout, seq_len)
    stream = size * tokens * model.hidden_dim
    pieces = -(-tokens // (layout.microbatch_rows * (model.loss_chunk or tokens)))
    made = [
        make("loss: maximum, sum, own logit", "tensor", "all-reduce", 4.0 * tokens / pieces,
             3 * n * pieces)
    ]  # fmt: skip
    if layout.sequence_parallel:
        made.append(make("hidden states to the head", "tensor", "all-gather", stream, n))
        made.append(make("gradient of the head's input", "tensor", "reduce-scatter", stream, n))
    else:
        made.append(make("gradient of the head's input", "tensor", "all-reduce", stream, n))
    if layout.pipe == 1:
        if layout.sequence_parallel:
            made.append(make("embedding", "tensor", "reduce-scatter", stream, n))
            made.append(make("gradient of the embedding", "tensor", "all-gather", stream, n))
        else:
            made.append(make("embedding", "tensor", "all-reduce", stream, n))
    return made


def data_collectives(
    model: DecoderConfig,
    layout: Layout,
    topology: Topology,
    execution: Execution,
    efficiencies: Efficiencies,
) -> list[Collective]:
    """Gradients and parameters over data, context, pipe and tensor ranks.

    zero 0: gradients all-reduced; 1: reduce-scattered once, parameters gathered once; 2:
    reduce-scattered after every micro-batch; 3: parameters gathered for every forward and backward
    pass. zero 3 takes one collective per layer (what can overlap), the others one per step.
    """
    make = _Maker(layout, topology, efficiencies)
    ends = execution.replicate_ends
    count = max(rank_parameters(model, layout, rank, execution) for rank in range(layout.pipe))
    grad, n = itemsize(execution.grad_dtype), layout.microbatches
    travel = itemsize(execution.param_dtype)
    if execution.cast_first:
        travel = min(travel, itemsize(model.dtype))
    made: list[Collective] = []
    shard = count / layout.data if layout.zero else count
    if layout.data > 1:
        if layout.zero == 0:
            made.append(make("gradients", "data", "all-reduce", grad * count, 1, "layers"))
        elif layout.zero < 3:
            times = 1 if layout.zero == 1 else n
            made.append(make("gradients", "data", "reduce-scatter", grad * count, times, "layers"))
            made.append(
                make("updated parameters", "data", "all-gather", travel * count, 1, "layers")
            )
        else:
            pieces = max(round(count * layout.tensor / layer_parameters(model)), 1)
            rerun = layout.pipe > 1 and execution.stash == "inputs"
            gathers = 3 if rerun else 2
            made.append(
                make("parameters of a layer", "data", "all-gather", travel * count / pieces,
                     gathers * n * pieces, "layers")
            )  # fmt: skip
            made.append(
                make("gradients of a layer", "data", "reduce-scatter", grad * count / pieces,
                     n * pieces, "layers")
            )  # fmt: skip
    divided = execution.scatter_first or layout.zero >= 2
    if layout.context > 1:
        size = grad * (shard if divided else count)
        made.append(make("gradients, sum over context", "context", "all-reduce", size, 1, "layers"))
    if layout.pipe > 1 and ends:
        both = sum(end_parameters(model)) / layout.tensor
        both /= layout.data if execution.scatter_first and layout.zero else 1
        made.append(make("gradients of the ends", "pipe", "all-reduce", grad * both, 1))
    if layout.tensor > 1 and layout.sequence_parallel:
        norms = model.parameter_counts()["norms"] / layout.pipe
        made.append(make("gradients of norms", "tensor", "all-reduce", grad * norms, 1))
    return made
