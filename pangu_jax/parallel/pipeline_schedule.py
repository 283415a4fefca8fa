"""Pipeline schedules as tables: what every rank does in every tick, and in which buffer slots.

The executor is one program for all ranks. A tick has four parts, and every rank passes through
all of them: (1) forward of one unit, (2) activations go to the next rank of the ring, (3) backward
of one unit, (4) gradients go to the previous rank. A unit is a (chunk, micro-batch); chunk c on
rank r is stage c p + r. A rank without a unit in a part does nothing there.

Inside a tick the buffers of a rank are used in this order:

    forward    takes its input from an activation slot (the first stage embeds tokens instead),
               and puts it into a stash slot
    permute    puts the activation that arrives into an activation slot
    backward   takes the input from its stash slot, and the gradient of its output from a gradient
               slot (the last stage has the loss instead); both slots are free from then on
    permute    puts the gradient that arrives into a gradient slot

Source: interleaved 1F1B, Narayanan et al. (arXiv 2104.04473), in the order of Megatron; tying one
forward and one backward to a common tick is our choice, because the program is the same on all
ranks. Where p divides n, unit k runs forward on rank r in tick r + k and backward in tick
(v p - 1) + (p - 1 - r) + k.

Letters: p pipeline ranks, r a rank, v virtual stages (chunks per rank), n micro-batches.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterable, Sequence

import numpy as np

from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.mesh import MeshError

NONE = -1
_NEVER = np.iinfo(np.int64).max
Unit = tuple[int, int]  # chunk, micro-batch


class ScheduleError(MeshError):
    """Sizes that give no schedule, or a schedule that breaks its own rules."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Schedule:
    """int32 tables [ticks, p]; NONE (-1) where a rank has nothing to do.

    forward_chunk, forward_microbatch, backward_chunk, backward_microbatch: the units.
    activation_take, activation_put: slots of received activations: read by the forward of this
      tick, written when this tick's activations arrive. NONE for the input of the first stage.
    stash_put, stash_take: slots of chunk inputs, from the forward to the backward of a unit.
    gradient_take, gradient_put: slots of received gradients. NONE for the last stage.
    """

    pipe: int
    virtual_stages: int
    microbatches: int
    forward_chunk: np.ndarray
    forward_microbatch: np.ndarray
    backward_chunk: np.ndarray
    backward_microbatch: np.ndarray
    activation_take: np.ndarray
    activation_put: np.ndarray
    stash_put: np.ndarray
    stash_take: np.ndarray
    gradient_take: np.ndarray
    gradient_put: np.ndarray

    @property
    def ticks(self) -> int:
        return len(self.forward_chunk)

    @property
    def stages(self) -> int:
        return self.pipe * self.virtual_stages

    @property
    def num_activation_slots(self) -> int:
        """Slots that every rank needs, the same number on all of them; so the next two."""
        return int(self.activation_put.max(initial=NONE)) + 1

    @property
    def num_stash_slots(self) -> int:
        return int(self.stash_put.max(initial=NONE)) + 1

    @property
    def num_gradient_slots(self) -> int:
        return int(self.gradient_put.max(initial=NONE)) + 1

    @property
    def forward_ticks(self) -> np.ndarray:
        """bool [ticks]: whether any rank runs a forward; the executor skips the other parts."""
        return (self.forward_chunk != NONE).any(axis=1)

    @property
    def backward_ticks(self) -> np.ndarray:
        """bool [ticks]: whether any rank runs a backward."""
        return (self.backward_chunk != NONE).any(axis=1)

    def in_flight(self, rank: int) -> int:
        """Most chunk inputs that a rank holds at one time.

        Where p divides n: (v - 1) p + 2 (p - r) - 1, at most n v, whatever n is.
        """
        puts = np.cumsum(self.stash_put[:, rank] != NONE)
        takes = np.cumsum(self.stash_take[:, rank] != NONE)
        # Backward comes after forward in a tick: the peak stands between the two.
        return int((puts - takes + (self.stash_take[:, rank] != NONE)).max())


def interleaved_1f1b(
    sizes: Layout | tuple[int, int, int], *, groups: Sequence[int] | None = None
) -> Schedule:
    """One forward, one backward: chunks interleaved over the ranks, backwards as early as may be.

    Units run in groups of micro-batches: all of a group through chunk 0, then through chunk 1, and
    so on; backward in the same order with the chunks reversed. With groups of p (Megatron) ranks
    idle only at the ends of the step, p - 1 forwards and p - 1 backwards each. That also holds for
    any group of more than p, which costs (v - 1) more inputs in flight for each micro-batch above
    p; a smaller group makes every chunk wait for the one before it.

    Args:
      sizes: a layout, or (p, v, n).
      groups: sizes of the groups, which sum to n. None: n // p groups (at least one) as equal as
        can be, larger ones first, so that none is smaller than p where n is not. Only with v > 1
        do groups matter.

    Raises:
      ScheduleError: sizes below 1, groups that do not sum to n.
    """
    pipe, virtual, count = _sizes(sizes)
    groups = _even_groups(pipe, count) if groups is None else list(groups)
    if not groups or sum(groups) != count or min(groups) < 1:
        raise ScheduleError(
            f"groups={tuple(groups)} must be at least 1 each and sum to microbatches={count}."
        )
    forward = _order(groups, range(virtual))
    backward = _order(groups, range(virtual)[::-1])
    return _build(pipe, virtual, count, forward, backward, wait_for_all=False)


def gpipe(pipe: int, microbatches: int, virtual_stages: int = 1) -> Schedule:
    """All forwards, then all backwards in reverse: what differentiating a loop over ticks gives.

    The same share of idling as `interleaved_1f1b`, but all n v chunk inputs in flight at once.
    Source: GPipe (arXiv 1811.06965); for comparison.

    Raises:
      ScheduleError: sizes below 1.
    """
    _sizes((pipe, virtual_stages, microbatches))
    forward = _order(_even_groups(pipe, microbatches), range(virtual_stages))
    return _build(pipe, virtual_stages, microbatches, forward, forward[::-1], wait_for_all=True)


def verify(schedule: Schedule) -> None:
    """Plays the executor with labels in place of arrays and checks every rule.

    Every unit runs forward and backward exactly once on its rank; every forward finds the output
    of the stage before it for its micro-batch in its slot, every backward its own input and the
    gradient from the stage after it; no slot is written while its content is still needed, none
    is read that nobody wrote, nothing that is sent gets lost, and no buffer holds anything at the
    end.

    Raises:
      ScheduleError: the first rule that is broken, with rank and tick.
    """
    pipe, last = schedule.pipe, schedule.stages - 1
    activations = [_Buffer("activation", rank) for rank in range(pipe)]
    stash = [_Buffer("stash", rank) for rank in range(pipe)]
    gradients = [_Buffer("gradient", rank) for rank in range(pipe)]
    done: dict[str, set[Unit]] = {"forward": set(), "backward": set()}

    def unit(direction, tick, rank) -> Unit | None:
        chunk = int(getattr(schedule, f"{direction}_chunk")[tick, rank])
        microbatch = int(getattr(schedule, f"{direction}_microbatch")[tick, rank])
        if chunk == NONE and microbatch == NONE:
            return None
        inside = 0 <= chunk < schedule.virtual_stages and 0 <= microbatch < schedule.microbatches
        label = (chunk * pipe + rank, microbatch)
        if not inside or label in done[direction]:
            raise ScheduleError(
                f"tick {tick}, rank {rank}: {direction} of chunk {chunk}, micro-batch "
                f"{microbatch} {'runs twice' if inside else 'does not exist'}"
            )
        done[direction].add(label)
        return label

    def exchange(buffers, puts, sent, step, end, tick):
        for rank in range(pipe):
            label = sent[(rank - step) % pipe]
            slot = int(puts[tick, rank])
            if label is not None and label[0] != end:
                buffers[rank].put(slot, label, tick)
            elif slot != NONE:
                raise ScheduleError(f"tick {tick}, rank {rank}: a slot for nothing that arrives")

    for tick in range(schedule.ticks):
        forward = [unit("forward", tick, rank) for rank in range(pipe)]
        for rank, label in enumerate(forward):
            before = None if not label or label[0] == 0 else (label[0] - 1, label[1])
            activations[rank].take(int(schedule.activation_take[tick, rank]), before, tick)
            stash[rank].put(int(schedule.stash_put[tick, rank]), label, tick)
        exchange(activations, schedule.activation_put, forward, 1, last, tick)
        backward = [unit("backward", tick, rank) for rank in range(pipe)]
        for rank, label in enumerate(backward):
            after = None if not label or label[0] == last else (label[0] + 1, label[1])
            stash[rank].take(int(schedule.stash_take[tick, rank]), label, tick)
            gradients[rank].take(int(schedule.gradient_take[tick, rank]), after, tick)
        exchange(gradients, schedule.gradient_put, backward, -1, 0, tick)
    for direction, units in done.items():
        if len(units) != schedule.stages * schedule.microbatches:
            raise ScheduleError(f"{direction}: {len(units)} units run, not all")
    for buffer in (*activations, *stash, *gradients):
        if buffer.slots:
            raise ScheduleError(f"{buffer.name} slots of rank {buffer.rank} are not empty")


@dataclasses.dataclass
class _Buffer:
    name: str
    rank: int
    slots: dict[int, Unit] = dataclasses.field(default_factory=dict)

    def put(self, slot: int, label: Unit | None, tick: int) -> None:
        if (slot == NONE) != (label is None) or slot in self.slots:
            raise ScheduleError(
                f"tick {tick}, rank {self.rank}: {label} is put into {self.name} slot {slot}, "
                f"which holds {self.slots.get(slot)}"
            )
        if label is not None:
            self.slots[slot] = label

    def take(self, slot: int, label: Unit | None, tick: int) -> None:
        found = None if slot == NONE else self.slots.pop(slot, "nothing")
        if found != label:
            raise ScheduleError(
                f"tick {tick}, rank {self.rank}: {self.name} slot {slot} has {found}, {label} is "
                "needed"
            )


def _sizes(sizes: Layout | tuple[int, int, int]) -> tuple[int, int, int]:
    if isinstance(sizes, Layout):
        return sizes.pipe, sizes.virtual_stages, sizes.microbatches
    for name, value in zip(("pipe", "virtual_stages", "microbatches"), sizes, strict=True):
        if value < 1:
            raise ScheduleError(f"{name}={value} must be at least 1.")
    return sizes


def _even_groups(pipe: int, count: int) -> list[int]:
    parts = max(count // pipe, 1)
    return [count // parts + (index < count % parts) for index in range(parts)]


def _order(groups: Sequence[int], chunks: Iterable[int]) -> list[Unit]:
    """All micro-batches of a group through one chunk after the other, group after group."""
    ends = np.cumsum(groups).tolist()
    return [
        (chunk, microbatch)
        for size, end in zip(groups, ends, strict=True)
        for chunk in chunks
        for microbatch in range(end - size, end)
    ]


def _build(
    pipe: int, virtual: int, count: int, forward: list[Unit], backward: list[Unit],
    *, wait_for_all: bool,
) -> Schedule:  # fmt: skip
    """Every rank runs its units in the given order, each in the first tick that allows it."""
    stages = pipe * virtual
    ran = {way: np.full((stages, count), _NEVER) for way in ("forward", "backward")}
    units = {"forward": forward, "backward": backward}
    at = {way: [0] * pipe for way in units}
    rows: dict[str, list] = {"forward": [], "backward": []}
    tick, hold = 0, wait_for_all

    def ready(way, stage, microbatch):
        if way == "forward":
            return stage == 0 or ran["forward"][stage - 1, microbatch] < tick
        if hold:
            return False
        if stage == stages - 1:
            return ran["forward"][stage, microbatch] <= tick
        return ran["backward"][stage + 1, microbatch] < tick

    while min(at["backward"]) < len(backward):
        hold = wait_for_all and min(at["forward"]) < len(forward)
        for way in units:
            row = [(NONE, NONE)] * pipe
            for rank in range(pipe):
                if at[way][rank] == len(units[way]):
                    continue
                chunk, microbatch = units[way][at[way][rank]]
                if ready(way, chunk * pipe + rank, microbatch):
                    row[rank] = (chunk, microbatch)
                    at[way][rank] += 1
            for rank, (chunk, microbatch) in enumerate(row):
                if chunk != NONE:
                    ran[way][chunk * pipe + rank, microbatch] = tick
            rows[way].append(row)
        tick += 1

    tables = {way: np.array(rows[way], np.int32) for way in rows}
    f, b = ran["forward"], ran["backward"]
    return Schedule(
        pipe=pipe,
        virtual_stages=virtual,
        microbatches=count,
        forward_chunk=tables["forward"][..., 0],
        forward_microbatch=tables["forward"][..., 1],
        backward_chunk=tables["backward"][..., 0],
        backward_microbatch=tables["backward"][..., 1],
        # In a tick activations and gradients are taken before new ones arrive, while the stash is
        # filled before it is emptied: only there does a slot stay taken for the rest of the tick.
        **_slots("activation", pipe, tick, _lives(f[:-1], f[1:], pipe, first=1), reuse=True),
        **_slots("stash", pipe, tick, _lives(f, b, pipe, first=0), reuse=False),
        **_slots("gradient", pipe, tick, _lives(b[1:], b[:-1], pipe, first=0), reuse=True),
    )


def _lives(put: np.ndarray, take: np.ndarray, pipe: int, *, first: int):
    """(rank, tick of put, tick of take) of every value; row i belongs to stage first + i."""
    for row, (starts, ends) in enumerate(zip(put.tolist(), take.tolist(), strict=True)):
        for start, end in zip(starts, ends, strict=True):
            yield (first + row) % pipe, start, end


def _slots(
    name: str, pipe: int, ticks: int, lives: Iterable[tuple[int, int, int]], *, reuse: bool
) -> dict[str, np.ndarray]:
    """The lowest free slot for every value; as many as live at one time, which is the least.

    reuse: a slot taken in a tick can be put into in the same tick.
    """
    put = np.full((ticks, pipe), NONE, np.int32)
    take = np.full((ticks, pipe), NONE, np.int32)
    free: list[list[int]] = [[] for _ in range(pipe)]
    opened = [0] * pipe
    busy: list[list[Unit]] = [[] for _ in range(pipe)]  # (tick of take, slot)
    for rank, start, end in sorted(lives, key=lambda life: life[1]):
        while busy[rank] and busy[rank][0][0] < start + reuse:
            heapq.heappush(free[rank], heapq.heappop(busy[rank])[1])
        if not free[rank]:
            heapq.heappush(free[rank], opened[rank])
            opened[rank] += 1
        slot = heapq.heappop(free[rank])
        heapq.heappush(busy[rank], (end, slot))
        put[start, rank] = take[end, rank] = slot
    return {f"{name}_put": put, f"{name}_take": take}
