"""A layout: how one training step is divided over devices.

Mesh axes, slowest to fastest: ('data', 'pipe', 'context', 'tensor'). A stage is a chunk of layers;
rank r of p pipeline ranks holds stages r, p + r, 2p + r, ... (interleaving; Pangu Ultra, arXiv
2504.07866, section 4.2, in Megatron's order).

Letters: p pipeline ranks, v virtual stages, n micro-batches.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal, get_args

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from pangu_jax.parallel.mesh import MeshError

if TYPE_CHECKING:  # models import this package
    from pangu_jax.models.config import DecoderConfig
    from pangu_jax.parallel.topology import Topology

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

    def sequence_multiple(self) -> int:
        """Row lengths are multiples of it.

        The per-document zigzag gives every context rank two chunks of a document, and sequence
        parallelism divides a context rank's tokens over tensor.
        """
        chunks = 2 * self.context if self.context > 1 else 1
        return math.lcm(chunks, self.context * (self.tensor if self.sequence_parallel else 1))


def check_layout(
    layout: Layout,
    model: DecoderConfig,
    *,
    seq_len: int,
    batch_rows: int | None = None,
    topology: Topology | None = None,
) -> tuple[str, ...]:
    """Checks that a layout fits a model, the rows, the batch and the devices.

    Args:
      seq_len: tokens of a row.
      batch_rows: rows of the global batch; None leaves it unchecked.
      topology: None leaves devices and nodes unchecked.

    Returns:
      Sentences on what is allowed but costs time: slots that hold nothing, fewer micro-batches
      than pipeline ranks. Empty for a layout without such costs.

    Raises:
      LayoutError: something does not fit; the text names the value and the nearest allowed ones.
    """
    if topology is not None:
        _check_devices(layout, topology)
    _check_tensor(layout, model)
    _check_sequence(layout, seq_len)
    if batch_rows is not None:
        _check_batch(layout, batch_rows)
    return _check_pipeline(layout, model.num_layers)


def _check_devices(layout: Layout, topology: Topology) -> None:
    if layout.devices != topology.devices:
        shape = " x ".join(
            f"{axis} {size}" for axis, size in zip(AXES, layout.mesh_shape, strict=True)
        )
        others = layout.devices // layout.data
        remedy = (
            f"set layout.data to {topology.devices // others}"
            if topology.devices % others == 0
            else f"change pipe x context x tensor ({others}) to a divisor of {topology.devices}: "
            f"{_near(_divisors(topology.devices), others)}"
        )
        raise LayoutError(
            f"The layout takes {layout.devices} devices ({shape}), but topology "
            f"{topology.name!r} has {topology.devices}; {remedy}."
        )
    node = topology.devices_per_node
    if node % layout.tensor:
        raise LayoutError(
            f"layout.tensor={layout.tensor} crosses the nodes of topology {topology.name!r}, which "
            f"have {node} devices; tensor must divide {node}: "
            f"{_near(_divisors(node), layout.tensor)}."
        )


def _check_tensor(layout: Layout, model: DecoderConfig) -> None:
    tensor = layout.tensor
    allowed = _divisors(math.gcd(model.num_heads, model.num_kv_heads, model.mlp_dim))
    for field in ("num_heads", "num_kv_heads", "mlp_dim"):
        if getattr(model, field) % tensor:
            raise LayoutError(
                f"layout.tensor={tensor} does not divide the model's {field}="
                f"{getattr(model, field)} (heads are not copied); tensor may be "
                f"{_near(allowed, tensor)}."
            )
    if layout.overlap and tensor > 1 and not layout.sequence_parallel:
        raise LayoutError(
            "layout.overlap=True needs layout.sequence_parallel=True: its rings gather and scatter "
            "the sequence; set both, or neither."
        )


def _check_sequence(layout: Layout, seq_len: int) -> None:
    multiple = layout.sequence_multiple()
    if seq_len < 1 or seq_len % multiple:
        lower = seq_len // multiple * multiple
        near = [str(length) for length in (lower, lower + multiple) if length > 0]
        raise LayoutError(
            f"seq_len={seq_len} cannot be divided over context={layout.context}, "
            f"tensor={layout.tensor} (sequence_parallel={layout.sequence_parallel}): it must be a "
            f"multiple of {multiple}; the nearest are {' and '.join(near)}."
        )


def _check_batch(layout: Layout, batch_rows: int) -> None:
    if layout.batch_rows == batch_rows:
        return
    visit = layout.data * layout.microbatch_rows
    if batch_rows % visit == 0:
        remedy = f"set layout.microbatches to {batch_rows // visit}"
    else:
        rows = batch_rows // math.gcd(batch_rows, layout.microbatch_rows)
        remedy = (
            f"choose layout.data among divisors of the batch, {_near(_divisors(rows), layout.data)}"
            ", and give the devices that are left to layout.context"
        )
    raise LayoutError(
        f"The layout's batch has {layout.batch_rows} rows (data {layout.data} x microbatches "
        f"{layout.microbatches} x microbatch_rows {layout.microbatch_rows}), but {batch_rows} are "
        f"wanted; {remedy}."
    )


def _check_pipeline(layout: Layout, num_layers: int) -> tuple[str, ...]:
    pipe, virtual, count = layout.pipe, layout.virtual_stages, layout.microbatches
    if virtual > 1 and pipe == 1:
        raise LayoutError(
            f"layout.virtual_stages={virtual} needs a pipeline, but layout.pipe=1; set "
            "virtual_stages to 1 or pipe to at least 2."
        )
    need = num_layers + layout.end_slots()
    if layout.stages > need:
        raise LayoutError(
            f"{num_layers} layers, embedding and head fill {need} stages, but pipe {pipe} x "
            f"virtual_stages {virtual} are {layout.stages}; lower virtual_stages to "
            f"{max(need // pipe, 1)} or pipe."
        )
    notes = []
    empty = layout.empty_slots(num_layers)
    if empty:
        notes.append(
            f"{empty} of {layout.stages * layout.slots_per_stage(num_layers)} layer slots hold "
            f"nothing: {num_layers} layers and {layout.end_slots()} ends on {layout.stages} stages."
        )
    if count < pipe:
        stall = "" if virtual == 1 else ", and virtual stages wait for one another"
        notes.append(
            f"microbatches={count} are fewer than the {pipe} pipeline ranks, which idle even in "
            f"the middle of the step{stall}; a smaller layout.data (with more context) or a larger "
            "batch gives more."
        )
    return tuple(notes)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _near(allowed: list[int], value: int, count: int = 8) -> str:
    """The allowed numbers nearest to a value, ascending."""
    nearest = sorted(allowed, key=lambda number: abs(math.log(number / value)))[:count]
    return ", ".join(map(str, sorted(nearest)))


def padded_vocabulary(vocab_size: int, layout: Layout, *, multiple: int = 1) -> int:
    """The next vocabulary size that tensor divides into parts of a multiple of `multiple`."""
    whole = layout.tensor * multiple
    return -(-vocab_size // whole) * whole


def layout_mesh(layout: Layout, devices=None) -> Mesh:
    """Mesh of the layout with Auto axes AXES over `devices` (default: all of the run's).

    Successive devices, which share a node, lie along tensor; TPUs are placed by their coordinates.

    Raises:
      LayoutError: the layout does not use every device.
    """
    if devices is None:
        devices = jax.devices()
    devices = list(devices)
    if len(devices) != layout.devices:
        raise LayoutError(
            f"The layout takes {layout.devices} devices (data {layout.data} x pipe {layout.pipe} x "
            f"context {layout.context} x tensor {layout.tensor}), but there are {len(devices)}; "
            "change layout.data or another size so that their product is that number."
        )
    grid = mesh_utils.create_device_mesh(layout.mesh_shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def topology_mesh(
    layout: Layout,
    model: DecoderConfig,
    topology: Topology,
    *,
    seq_len: int,
    batch_rows: int | None = None,
    devices=None,
) -> Mesh:
    """`layout_mesh` after every check of `check_layout`: tensor inside a node of the topology, axes
    that divide heads, MLP columns, rows and batch, stages that the layers fill.

    The vocabulary is padded instead (`padded_vocabulary`).

    Raises:
      LayoutError: something does not fit; the text says what to change.
    """
    check_layout(layout, model, seq_len=seq_len, batch_rows=batch_rows, topology=topology)
    return layout_mesh(layout, devices)


def abstract_mesh(layout: Layout) -> AbstractMesh:
    """The same mesh without devices: programs can be traced and lowered for it, not compiled."""
    return AbstractMesh(layout.mesh_shape, AXES, axis_types=(AxisType.Auto,) * len(AXES))
