"""How long a training step takes, from work, data sheets and a handful of efficiencies.

One layer and micro-batch on one device takes

    products     max(FLOPs / (peak * matmul), bytes / (memory bandwidth * memory)), each product
    attention    FLOPs / (peak * attention_...); unfused also the traffic of its scores
    pointwise    bytes / (memory bandwidth * memory)
    collectives  what is left after hiding `overlap_...` of them behind the work beside them

for each of its passes: forward, a second forward where a pipeline kept inputs alone ('rerun'), what
the remat policy asks for ('recompute'), backward. The schedule of the pipeline is then played with
these durations (`pangu_jax/parallel/pipeline_timeline.py`); with equal units and free transfers
that gives the bubble (p - 1) / (p - 1 + n v). At last come what the collectives over data leave
exposed, and the optimizer.

Left out: launch and host overheads, input, stragglers, and the spread between devices.
Letters: see `layer.py`; p pipe, v virtual stages, n micro-batches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.topology import Topology
from pangu_jax.planning.communication import (
    PASSES,
    Collective,
    layer_collectives,
    step_collectives,
)
from pangu_jax.planning.execution import PRODUCTS, Efficiencies, Execution, PlanError, itemsize
from pangu_jax.planning.layer import (
    LayerWork,
    Product,
    head_product,
    layer_work,
    layers_of_stages,
    tokens_per_device,
)
from pangu_jax.planning.memory import MemoryPlan, memory_plan, rank_parameters
from pangu_jax.planning.pipeline import pipeline_timeline

# Bytes that the optimizer moves per parameter: reads parameter, gradient (twice: norm and update)
# and two moments, writes parameter and moments; all float32.
_OPTIMIZER_BYTES = 32.0
# Bytes moved per logit by the loss, beside its products (float32 logits written, read for maximum,
# sum and gradient; gradient in the model's dtype written and read twice).
_LOGIT_BYTES = 22.0
_FUSED_BACKWARD = 2.5  # FLOPs of fused attention's backward pass over its forward ones


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Time of something on one device, by what it is spent on."""

    products: float = 0.0
    attention: float = 0.0
    pointwise: float = 0.0
    recomputation: float = 0.0
    ends: float = 0.0
    tensor: float = 0.0
    context: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())

    # Not dataclasses.astuple: it copies deeply, and a sweep adds many thousands of these.
    def __add__(self, other: Seconds) -> Seconds:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Seconds(*(a + b for a, b in pairs))

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(*(factor * a for a in vars(self).values()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a step is predicted to take.

    seconds: of a step. parts: its seconds by cause; they sum to it.
    mfu: of the model's FLOPs, causal half of attention, nothing for recomputation (the trainer's
    meter). hfu: of the FLOPs that are really done. tokens: of a step, all devices.
    forward, backward: seconds of every stage's unit, for a timeline.
    """

    layout: Layout
    seq_len: int
    seconds: float
    parts: dict[str, float]
    tokens: int
    mfu: float
    hfu: float
    memory: MemoryPlan
    fits: bool
    collectives: tuple[Collective, ...]
    forward: tuple[float, ...]
    backward: tuple[float, ...]

    @property
    def tokens_per_second_per_device(self) -> float:
        return self.tokens / self.seconds / self.layout.devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Machine:
    peak: float
    memory: float  # bytes/s that one-pass kernels reach
    efficiencies: Efficiencies
    size: int  # bytes of a number in the model's dtype

    def product(self, product: Product) -> float:
        return max(
            product.flops / (self.peak * self.efficiencies.matmul),
            product.traffic(self.size) / self.memory,
        )

    def weight_gradient(self, product: Product, fused: bool) -> float:
        """A product whose result is added to float32 sums."""
        weights = product.k * product.n
        ends = product.m * (product.k + product.n) * self.size
        compute = product.flops / (self.peak * self.efficiencies.matmul)
        if fused:
            return max(compute, (ends + 8 * weights) / self.memory)
        apart = (self.size + 8) * weights / self.memory
        return max(compute, (ends + self.size * weights) / self.memory) + apart


def predict(
    model: DecoderConfig,
    layout: Layout,
    topology: Topology,
    seq_len: int,
    execution: Execution | None = None,
    efficiencies: Efficiencies | None = None,
    *,
    play: bool = True,
) -> Prediction:
    """Predicts one training step; see the head of this file for the model.

    Args:
      seq_len: tokens of a row. The batch is layout.batch_rows rows.
      play: the schedule of the pipeline; False takes p - 1 mean units of idling and transfers in
        the open, which is quick and near for equal stages and p dividing n.

    Raises:
      PlanError: more devices than the topology has.
      LayoutError, TopologyError: a layout or dtype that does not fit.
    """
    execution, efficiencies = execution or Execution(), efficiencies or Efficiencies()
    if layout.devices > topology.devices:
        raise PlanError(
            f"the layout needs {layout.devices:,} devices, topology {topology.name!r} has "
            f"{topology.devices:,}; choose axes whose product is at most that."
        )
    machine = _Machine(
        peak=topology.peak(model.dtype), memory=topology.memory_bandwidth * efficiencies.memory,
        efficiencies=efficiencies, size=itemsize(model.dtype),
    )  # fmt: skip
    work = layer_work(model, layout, seq_len, execution)
    exchanged = layer_collectives(model, layout, topology, seq_len, execution, efficiencies)
    passes = {
        name: _layer_pass(name, model, layout, execution, machine, work, exchanged[name])
        for name in PASSES
    }
    if layout.pipe == 1 or execution.stash == "activations":
        passes["rerun"] = Seconds()
    collectives = step_collectives(model, layout, topology, seq_len, execution, efficiencies)
    ends = _ends(model, layout, seq_len, machine, collectives)
    stages = _stages(layers_of_stages(model, layout, execution), passes, ends)
    p, n = layout.pipe, layout.microbatches

    per_rank = [sum((f + b for f, b in stages[rank::p]), start=Seconds()) for rank in range(p)]
    slowest = max(per_rank, key=lambda s: s.total)
    busy = slowest * n
    forward = [f.total for f, _ in stages]
    backward = [b.total for _, b in stages]
    played = transfers = busy.total
    if p > 1:
        hop = next(c.seconds for c in collectives if c.axis == "pipe" and "permute" in c.kind)
        if play:
            played = pipeline_timeline(layout, forward, backward, 0.0, execution).step_time
            transfers = pipeline_timeline(layout, forward, backward, hop, execution).step_time
        else:
            played += (p - 1) * (sum(forward) + sum(backward)) / len(stages)
            transfers = played + 2 * (p - 1) * hop
    window = slowest.total * (n if layout.zero >= 2 else 1)
    hidden = efficiencies.overlap_data if execution.overlap_data or layout.zero == 3 else 0.0
    data = _exposed((c for c in collectives if c.beside == "layers"), hidden, window)
    data += sum(
        c.total_seconds for c in collectives if c.beside == "" and c.purpose.startswith("gradients")
    )
    parts = dict(vars(busy)) | {
        "bubble": played - busy.total,
        "pipeline": transfers - played,
        "data": data,
        "optimizer": _optimizer(model, layout, execution, machine),
    }
    seconds = sum(parts.values())
    tokens = layout.batch_rows * seq_len
    available = seconds * layout.devices * machine.peak
    plan = memory_plan(model, layout, seq_len, execution)
    return Prediction(
        layout=layout, seq_len=seq_len, seconds=seconds, parts=parts, tokens=tokens,
        mfu=tokens * model.flops_per_token(seq_len) / available,
        hfu=_hardware_flops(model, layout, seq_len, execution, work) / available,
        memory=plan, fits=plan.total <= topology.memory_bytes,
        collectives=tuple(collectives),
        forward=tuple(forward), backward=tuple(backward),
    )  # fmt: skip


def _exposed(collectives: Iterable[Collective], overlap: float, window: float) -> float:
    """Seconds that stay after hiding a share of them, at most `window`."""
    total = sum(c.total_seconds for c in collectives)
    return total - min(overlap * total, window)


def _layer_pass(name, model, layout, execution, machine, work: LayerWork, exchanged) -> Seconds:
    """One pass of one layer over one micro-batch."""
    again = execution.recomputed(model)
    parts = again if name == "recompute" else (*PRODUCTS, "attention", "pointwise")
    chosen = [p for part, group in work.products.items() if part in parts for p in group]
    eff, peak = machine.efficiencies, machine.peak
    if name == "backward":
        products = sum(
            machine.product(p) + machine.weight_gradient(p, execution.fused_accumulation)
            for p in chosen
        )
    else:
        products = sum(machine.product(p) for p in chosen)
    attention = pointwise = 0.0
    if "attention" in parts:
        if execution.fused_attention and name == "backward":
            attention = _FUSED_BACKWARD * work.attention_flops / (peak * eff.attention_backward)
        elif execution.fused_attention:
            attention = work.attention_flops / (peak * eff.attention_forward)
        else:
            times = 2.0 if name == "backward" else 1.0
            attention = times * work.attention_flops / (peak * eff.matmul)
            attention += times * work.score_bytes / machine.memory
        attention *= execution.context_imbalance
    if "pointwise" in parts:
        pointwise = (2.0 if name == "backward" else 1.0) * work.pointwise_bytes / machine.memory
    pointwise += _casts(model, layout, execution, machine, chosen)
    tensor = sum(c.total_seconds for c in exchanged if c.axis == "tensor")
    if layout.overlap:
        tensor -= min(eff.overlap_tensor * tensor, products)
    context = sum(c.total_seconds for c in exchanged if c.axis == "context")
    if layout.context_strategy == "ring":
        context -= min(eff.overlap_context * context, attention)
    if name in ("rerun", "recompute"):
        return Seconds(
            recomputation=products + attention + pointwise, tensor=tensor, context=context
        )
    return Seconds(products, attention, pointwise, tensor=tensor, context=context)


def _casts(model, layout, execution, machine, products) -> float:
    """Seconds to turn stored weights into the model's dtype at their use."""
    stored = itemsize(execution.param_dtype)
    if stored == machine.size or execution.compute_copy:
        return 0.0
    weights = sum(p.k * p.n for p in products)
    share = layout.data if layout.zero == 3 and execution.cast_first else 1
    return weights * (stored + machine.size) / share / machine.memory


def _ends(model, layout, seq_len, machine, collectives):
    """(embedding forward, embedding backward, head and loss forward and backward) of one
    micro-batch; the loss makes its three products in one visit."""
    head = head_product(model, layout, seq_len)
    tokens = tokens_per_device(layout, seq_len)
    rows = machine.size * tokens * model.hidden_dim / machine.memory
    loss = 3 * machine.product(head) + head.m * head.n * _LOGIT_BYTES / machine.memory
    shared = {"embedding": 0.0, "gradient of the embedding": 0.0, "loss": 0.0}
    for one in collectives:
        if one.axis != "tensor":
            continue
        if one.purpose in shared:
            shared[one.purpose] += one.total_seconds / layout.microbatches
        elif one.purpose.startswith(("loss", "hidden", "gradient of the head")):
            shared["loss"] += one.total_seconds / layout.microbatches
    return (
        Seconds(ends=2 * rows, tensor=shared["embedding"]),
        Seconds(ends=4 * rows, tensor=shared["gradient of the embedding"]),
        Seconds(ends=loss, tensor=shared["loss"]),
    )


def _stages(layers_of, passes, ends) -> list[tuple[Seconds, Seconds]]:
    """(forward, backward) of every stage, in stage order; head and loss count as backward."""
    stages = []
    behind = passes["rerun"] + passes["recompute"] + passes["backward"]
    for index, layers in enumerate(layers_of):
        forward, backward = passes["forward"] * layers, behind * layers
        if index == 0:
            forward, backward = forward + ends[0], backward + ends[1]
        if index == len(layers_of) - 1:
            backward = backward + ends[2]
        stages.append((forward, backward))
    return stages


def _optimizer(model, layout, execution, machine) -> float:
    count = max(rank_parameters(model, layout, rank, execution) for rank in range(layout.pipe))
    own = count / layout.data if layout.zero else count
    moved = _OPTIMIZER_BYTES
    if execution.compute_copy or itemsize(execution.param_dtype) < 4:
        moved += machine.size
    return own * moved / machine.memory


def _hardware_flops(model, layout, seq_len, execution, work: LayerWork) -> float:
    """FLOPs of a step that are really done, all devices."""
    again = execution.recomputed(model)
    forward = work.product_flops + work.attention_flops
    backward = 2 * work.product_flops
    backward += (_FUSED_BACKWARD if execution.fused_attention else 2.0) * work.attention_flops
    repeated = sum(p.flops for part in again for p in work.products.get(part, ()))
    repeated += work.attention_flops if "attention" in again else 0.0
    if layout.pipe > 1 and execution.stash == "inputs":
        repeated += forward
    layers = model.num_layers * (forward + backward + repeated)
    head = 3 * head_product(model, layout, seq_len).flops
    return layout.data * layout.context * layout.tensor * layout.microbatches * (layers + head)
