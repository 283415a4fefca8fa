"""Collectives and their times against hand counts."""

import dataclasses

import pytest

from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.topology import topology
from pangu_jax.planning.communication import step_collectives
from pangu_jax.planning.execution import Execution
from pangu_jax.planning.links import collective_seconds, group_of
from pangu_jax.planning.pipeline import executed_units

ULTRA = preset("ultra_135b")
ASCEND = topology("ascend_8192")
PAPER = Layout(data=128, pipe=8, tensor=8, virtual_stages=6, microbatches=16)
STREAM = 4096 * 12_288 * 2  # bytes of a row of the residual stream


def _find(layout, execution=None, model=ULTRA, seq_len=4096, **wanted):
    found = step_collectives(model, layout, ASCEND, seq_len, execution)
    return [c for c in found if all(getattr(c, k) == v for k, v in wanted.items())]


def test_pipeline_permutes_by_hand():
    plain = dataclasses.replace(PAPER, virtual_stages=1, sequence_parallel=False)
    # (16 + 7) ticks hold a forward part, as many a backward one: 4.63 GB, if there were permutes
    # in those alone.
    assert executed_units(plain, Execution()) == 23
    assert 23 * 2 * STREAM == pytest.approx(4.63e9, rel=1e-3)
    # The first backward comes after 7 ticks, the last one 7 + 15 ticks after the first.
    permutes = _find(plain, axis="pipe", kind="collective-permute")
    assert [c.count for c in permutes] == [30, 30]
    assert sum(c.output_bytes for c in permutes) == 60 * STREAM
    apart = _find(plain, Execution(lock_step=False), axis="pipe", kind="collective-permute")
    assert [c.count for c in apart] == [16, 16]
    # Six virtual stages: more transfers, each an eighth by sequence parallelism.
    permutes = _find(PAPER, axis="pipe", kind="collective-permute")
    assert sum(c.output_bytes for c in permutes) == 2 * (16 * 6 + 7 + 47) * STREAM / 8
    assert {c.links for c in permutes} == {"between nodes"}


@pytest.mark.parametrize(
    ("remat", "stash", "gathers", "scatters"),
    [
        # Per layer and micro-batch: forward 2 + 2, backward 2 + 2, once more 2 gathers for the
        # gradients of the weights (also where everything is kept), a rerun 2 + 2.
        ("none", "activations", 6, 4),
        ("none", "inputs", 8, 6),
        ("nothing", "activations", 6, 6),
        ("nothing", "inputs", 8, 8),
    ],
)
def test_tensor_parallel_collectives_of_a_layer(remat, stash, gathers, scatters):
    layers = 2 * 6  # of the ranks in the middle
    model = dataclasses.replace(ULTRA, remat=remat)
    execution = Execution(stash=stash, lock_step=False)
    for kind, expected in (("all-gather", gathers), ("reduce-scatter", scatters)):
        found = _find(PAPER, execution, model, kind=kind, axis="tensor")
        counted = sum(c.count for c in found if c.purpose.startswith("tensor parallel"))
        assert counted == expected * layers * 16
        assert all(c.bytes == STREAM for c in found)
        assert {c.links for c in found} == {"inside a node"}


@pytest.mark.parametrize("exchange", ["ring", "direct"])
def test_overlapped_collectives_are_permutes_of_pieces(exchange):
    model = dataclasses.replace(ULTRA, remat="none")
    execution = Execution(stash="activations", lock_step=False, exchange=exchange)
    found = _find(dataclasses.replace(PAPER, overlap=True), execution, model, axis="tensor")
    layers = [c for c in found if c.purpose.startswith("tensor parallel")]
    assert {(c.kind, c.bytes) for c in layers} == {("collective-permute", STREAM / 8)}
    assert sum(c.count for c in layers) == 7 * 10 * 12 * 16
    # Round the ring one of the seven links of a node's mesh is in use, directly all of them.
    bandwidth = (196e9 if exchange == "direct" else 28e9) * 0.8
    expected = sum(c.bytes * c.count for c in layers) / bandwidth
    assert sum(c.total_seconds for c in layers) == pytest.approx(expected, rel=0.12)


def test_in_lock_step_idle_ticks_are_executed():
    model = dataclasses.replace(ULTRA, remat="none")
    found = _find(PAPER, Execution(), model, kind="reduce-scatter", axis="tensor")
    counted = sum(c.count for c in found if c.purpose.startswith("tensor parallel"))
    assert counted == 6 * 2 * (16 * 6 + 7)  # 2 layers a chunk, 103 ticks


def test_without_sequence_parallelism_all_reduces_take_their_place():
    plain = dataclasses.replace(PAPER, sequence_parallel=False)
    model = dataclasses.replace(ULTRA, remat="none")
    execution = Execution(stash="activations", lock_step=False)
    found = _find(plain, execution, model, axis="tensor")
    layers = [c for c in found if c.purpose.startswith("tensor parallel")]
    assert {c.kind for c in layers} == {"all-reduce"}
    assert sum(c.count for c in layers) == 4 * 12 * 16


def test_zero_stages_by_hand():
    layout = Layout(data=8, microbatches=4)
    model, count = preset("llama3_8b"), preset("llama3_8b").num_parameters()
    kinds = {}
    for zero in range(4):
        found = step_collectives(
            model, dataclasses.replace(layout, zero=zero), topology("h100_8"), 4096,
            Execution(cast_first=True),
        )  # fmt: skip
        kinds[zero] = {c.kind: c for c in found}
    assert kinds[0]["all-reduce"].sent == pytest.approx(2 * 4 * count * 7 / 8)
    assert kinds[1]["reduce-scatter"].sent == pytest.approx(4 * count * 7 / 8)
    assert kinds[1]["all-gather"].sent == pytest.approx(2 * count * 7 / 8)  # bfloat16
    assert kinds[2]["reduce-scatter"].sent == pytest.approx(4 * 4 * count * 7 / 8)
    assert kinds[3]["all-gather"].sent == pytest.approx(4 * 2 * 2 * count * 7 / 8)
    late = step_collectives(model, layout, topology("h100_8"), 4096)
    gather = next(c for c in late if c.kind == "all-gather")
    assert gather.sent == pytest.approx(4 * count * 7 / 8)  # float32, as stored


def test_ring_and_gather_of_keys_and_values():
    layout = Layout(data=16, pipe=8, context=8, tensor=8, virtual_stages=6, microbatches=6)
    keys = 2 * 2 * (131_072 / 8) * 128  # k and v of one head, bfloat16
    model = dataclasses.replace(ULTRA, remat="none")
    execution = Execution(stash="activations", lock_step=False)
    ring = [
        c
        for c in _find(layout, execution, model, 131_072, axis="context")
        if c.kind == "collective-permute"
    ]
    # Keys and values forward and backward, and float32 sums of their gradients: 7 hops each.
    assert sorted(c.bytes for c in ring) == [keys, keys, 2 * keys]
    assert {c.count for c in ring} == {7 * 12 * 6}
    gathered = dataclasses.replace(layout, context_strategy="gather")
    found = _find(gathered, execution, model, 131_072, axis="context")
    layers = [c for c in found if c.purpose.startswith("context")]
    assert {c.bytes for c in layers if c.kind == "all-gather"} == {8 * keys}
    assert [c.bytes for c in layers if c.kind == "reduce-scatter"] == [16 * keys]


def test_gradients_are_summed_whole_or_divided():
    layout = Layout(data=16, pipe=8, context=8, tensor=8, virtual_stages=6, microbatches=6)
    whole = _find(layout, Execution(), seq_len=131_072, purpose="gradients, sum over context")
    divided = _find(
        layout, Execution(scatter_first=True), seq_len=131_072,
        purpose="gradients, sum over context",
    )  # fmt: skip
    assert whole[0].bytes == pytest.approx(16 * divided[0].bytes)
    for found, ways in ((Execution(), 1), (Execution(scatter_first=True), 128)):
        (ends,) = _find(PAPER, found, purpose="gradients of the ends")
        assert ends.bytes == pytest.approx(
            4 * (2 * ULTRA.vocab_size + 1) * ULTRA.hidden_dim / 8 / ways
        )


def test_groups_lie_where_the_device_order_puts_them():
    assert group_of(PAPER, "tensor", ASCEND).links == "inside a node"
    assert group_of(PAPER, "pipe", ASCEND).links == "between nodes"
    assert group_of(PAPER, "data", ASCEND).links == "between nodes"
    small = Layout(data=2048, context=2, tensor=2)
    assert group_of(small, "context", ASCEND).links == "inside a node"
    data = group_of(small, "data", ASCEND)
    assert (data.stride, data.inside, data.nodes) == (4, 2, 1024)
    assert data.links == "inside and between nodes"
    assert group_of(Layout(), "tensor", ASCEND).links == "none"


def test_times_by_hand():
    inside = group_of(PAPER, "tensor", ASCEND)
    # Full mesh of 196 GB/s: 7 / 8 of the array, one message of 5 us.
    expected = 7 / 8 * 1e9 / 196e9 + 5e-6
    assert collective_seconds("all-gather", 1e9, inside, ASCEND, 1.0) == pytest.approx(expected)
    assert collective_seconds("all-reduce", 1e9, inside, ASCEND, 1.0) == pytest.approx(2 * expected)
    assert collective_seconds("all-gather", 1e9, inside, ASCEND, 0.5) == pytest.approx(
        2 * (expected - 5e-6) + 5e-6
    )
    between = group_of(PAPER, "data", ASCEND)
    expected = 127 / 128 * 1e9 / 25e9 + 127 * 15e-6
    got = collective_seconds("reduce-scatter", 1e9, between, ASCEND, 1.0)
    assert got == pytest.approx(expected)
    # One neighbour: one of the seven links of the mesh, or the link between nodes.
    assert collective_seconds("collective-permute", 28e9, inside, ASCEND, 1.0) == pytest.approx(
        1 + 5e-6
    )
    pipe = group_of(PAPER, "pipe", ASCEND)
    assert collective_seconds("collective-permute", 25e9, pipe, ASCEND, 1.0) == pytest.approx(
        1 + 15e-6
    )


def test_both_kinds_of_links_work_at_the_same_time():
    # 64 GPUs in 8 nodes: an eighth of the array goes over each device's own link.
    where, layout = topology("h100_64"), Layout(data=64)
    group = group_of(layout, "data", where)
    outer = 1e9 / 8 * 7 / 8 / 50e9 + 7 * where.inter_latency
    inner = 1e9 * 7 / 8 / 450e9 + 7 * where.intra_latency
    assert collective_seconds("all-gather", 1e9, group, where, 1.0) == max(outer, inner)


def test_a_torus_axis_has_its_share_of_the_links():
    where = topology("tpu_v5p_8192")  # 16 x 16 x 32, 600 GB/s
    one = group_of(Layout(data=256, tensor=32), "tensor", where)
    assert collective_seconds("all-gather", 1e9, one, where, 1.0) == pytest.approx(
        1e9 * 31 / 32 / 200e9 + 31e-6
    )
    # To a neighbour: one link in one direction.
    assert collective_seconds("collective-permute", 1e9, one, where, 1.0) == pytest.approx(
        1e9 / 100e9 + 1e-6
    )
    whole = group_of(Layout(data=8192), "data", where)
    assert collective_seconds("all-gather", 1e9, whole, where, 1.0) == pytest.approx(
        1e9 * 8191 / 8192 / 600e9 + (31 + 15 + 15) * 1e-6
    )
