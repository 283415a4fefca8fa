"""All layouts of a model on a topology, by predicted step time."""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Iterator

from pangu_jax.models.config import DecoderConfig
from pangu_jax.parallel.layout import Layout, LayoutError, check_layout
from pangu_jax.parallel.topology import Topology
from pangu_jax.planning.cost import Prediction, predict
from pangu_jax.planning.execution import Efficiencies, Execution, PlanError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What a sweep tries.

    tensor, pipe, context: sizes; empty for all that divide the devices (pipe at most max_pipe,
      context powers of two that leave at least `rank_tokens` tokens of a row).
    virtual_stages, microbatch_rows, remat, zero, overlap: values to try. zero 3 only without a
      pipeline, which would gather parameters for every unit. remat from the policy that repeats
      least to the one that repeats most: of every layout the first one that fits is taken.
    room: share of the memory that the plan may fill; the compiler's own temporaries need the rest.
    top: how many of the best to return.
    """

    tensor: tuple[int, ...] = ()
    pipe: tuple[int, ...] = ()
    context: tuple[int, ...] = ()
    virtual_stages: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)
    microbatch_rows: tuple[int, ...] = (1, 2)
    remat: tuple[str, ...] = ("none", "products", "dots", "nothing")
    zero: tuple[int, ...] = (1, 3)
    overlap: tuple[bool, ...] = (False, True)
    max_pipe: int = 32
    rank_tokens: int = 2048
    room: float = 0.9
    top: int = 5

    def __post_init__(self):
        if not 0 < self.room <= 1:
            raise PlanError(f"sweep.room={self.room} must be above 0, at most 1.")
        for field in ("top", "max_pipe", "rank_tokens"):
            if getattr(self, field) < 1:
                raise PlanError(f"sweep.{field}={getattr(self, field)} must be at least 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepEntry:
    """A layout that fits. remat: the model's policy in it. notes: of `check_layout`."""

    remat: str
    prediction: Prediction
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepResult:
    """entries: the best, fastest first. tried: layouts that are allowed, times remat policies.
    too_large: of these, those that do not fit. refused: layouts that check_layout refuses."""

    entries: tuple[SweepEntry, ...]
    tried: int
    too_large: int
    refused: int


def sweep(
    model: DecoderConfig,
    topology: Topology,
    *,
    seq_len: int,
    batch_rows: int,
    base: Layout | None = None,
    execution: Execution | None = None,
    efficiencies: Efficiencies | None = None,
    config: SweepConfig | None = None,
) -> SweepResult:
    """The fastest layouts that use every device for exactly `batch_rows` rows and fit.

    Args:
      base: fields that are not swept (sequence_parallel, context_strategy).

    Layouts are ranked by the quick form of `predict`; the best are predicted again with their
    schedule played, and ordered by that.

    Raises:
      PlanError: no layout at all fits; the text says how many failed for which reason.
    """
    config, base = config or SweepConfig(), base or Layout()
    # The policies that are swept say what is recomputed.
    execution = dataclasses.replace(execution or Execution(), recompute=None)
    count: collections.Counter[str] = collections.Counter()
    best: list[tuple[float, int, DecoderConfig, Layout, tuple[str, ...]]] = []
    limit = config.room * topology.memory_bytes
    for layout in candidates(model, topology, seq_len, batch_rows, base, config):
        try:
            notes = check_layout(
                layout, model, seq_len=seq_len, batch_rows=batch_rows, topology=topology
            )
        except LayoutError:
            count["refused"] += 1
            continue
        for remat in config.remat:
            chosen = dataclasses.replace(model, remat=remat)
            count["tried"] += 1
            found = predict(chosen, layout, topology, seq_len, execution, efficiencies, play=False)
            if found.memory.total > limit:
                count["too large"] += 1
                continue
            item = (-found.seconds, count["tried"], chosen, layout, notes)
            if len(best) < 3 * config.top:
                heapq.heappush(best, item)
            else:
                heapq.heappushpop(best, item)
            break  # the policies after it only repeat more
    if not best:
        raise PlanError(
            f"No layout fits: {count['refused']} do not suit the model, {count['too large']} of "
            f"{count['tried']} others need more than {config.room:.0%} of the "
            f"{topology.memory_bytes / 1e9:.0f} GB of a device of {topology.name!r}. Allow more "
            "(sweep.pipe, sweep.context, sweep.room) or take a larger topology."
        )
    entries = [
        SweepEntry(
            remat=chosen.remat, notes=notes,
            prediction=predict(chosen, layout, topology, seq_len, execution, efficiencies),
        )
        for _, _, chosen, layout, notes in best
    ]  # fmt: skip
    entries.sort(key=lambda entry: entry.prediction.seconds)
    return SweepResult(
        entries=tuple(entries[: config.top]), tried=count["tried"],
        too_large=count["too large"], refused=count["refused"],
    )  # fmt: skip


def candidates(
    model: DecoderConfig,
    topology: Topology,
    seq_len: int,
    batch_rows: int,
    base: Layout,
    config: SweepConfig,
) -> Iterator[Layout]:
    """Layouts whose axes multiply to the devices and whose micro-batches make up the batch."""
    devices = topology.devices
    tensors = config.tensor or _divisors(topology.devices_per_node, 64)
    pipes = config.pipe or _divisors(devices, config.max_pipe)
    contexts = config.context or tuple(
        c for c in _divisors(devices, devices)
        if c & (c - 1) == 0 and (c == 1 or seq_len // c >= config.rank_tokens)
    )  # fmt: skip
    for tensor, pipe, context in itertools.product(tensors, pipes, contexts):
        data, left = divmod(devices, tensor * pipe * context)
        if left or data < 1 or batch_rows % data:
            continue
        for rows in config.microbatch_rows:
            if batch_rows // data % rows:
                continue
            for virtual, zero, overlap in itertools.product(
                config.virtual_stages, config.zero, config.overlap
            ):
                if overlap and (tensor == 1 or not base.sequence_parallel):
                    continue
                if (virtual > 1 and pipe == 1) or (zero == 3 and pipe > 1):
                    continue
                if pipe * virtual > model.num_layers + 2:
                    continue
                yield dataclasses.replace(
                    base, data=data, pipe=pipe, context=context, tensor=tensor,
                    virtual_stages=virtual, microbatches=batch_rows // data // rows,
                    microbatch_rows=rows, zero=zero, overlap=overlap,
                )  # fmt: skip


def _divisors(number: int, most: int) -> tuple[int, ...]:
    return tuple(d for d in range(1, min(number, most) + 1) if number % d == 0)
