"""Layouts: sizes, slots of the pipeline, checks with remedies, meshes."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import (
    AXES,
    Layout,
    LayoutError,
    abstract_mesh,
    check_layout,
    layout_mesh,
    padded_vocabulary,
    topology_mesh,
)
from pangu_jax.parallel.mesh import MeshError
from pangu_jax.parallel.phase_layouts import phase_layouts
from pangu_jax.parallel.topology import topology
from pangu_jax.training.phases import PANGU_ULTRA, Phase, PhaseSchedule, Rate

ULTRA = preset("ultra_135b")
PAPER = Layout(data=128, pipe=8, tensor=8, virtual_stages=6, microbatches=16)
SMALL = st.integers(1, 6)


def test_layout_of_the_paper():
    assert PAPER.devices == 8192
    assert PAPER.batch_rows == 2048
    assert PAPER.stages == 48
    assert PAPER.slots_per_stage(94) == 2
    assert PAPER.empty_slots(94) == 0
    assert [len(layers) for layers in PAPER.stage_layers(94)] == [1] + [2] * 46 + [1]
    assert round(100 * PAPER.bubble, 2) == 6.80
    assert round(100 * dataclasses.replace(PAPER, virtual_stages=1).bubble, 2) == 30.43
    notes = check_layout(
        PAPER, ULTRA, seq_len=4096, batch_rows=2048, topology=topology("ascend_8192")
    )
    assert notes == ()


@given(pipe=SMALL, virtual=SMALL, layers=st.integers(1, 100))
def test_stages_hold_every_layer_once_and_evenly(pipe, virtual, layers):
    layout = Layout(pipe=pipe, virtual_stages=virtual)
    stages = layout.stage_layers(layers)
    assert [layer for stage in stages for layer in stage] == list(range(layers))
    used = [len(stage) for stage in stages]
    if pipe > 1:
        used[0] += 1
        used[-1] += 1
    slots = layout.slots_per_stage(layers)
    assert max(used) <= slots
    assert slots * layout.stages - sum(used) == layout.empty_slots(layers) < layout.stages
    if layout.stages <= layers:
        assert min(used) >= slots - 1


@pytest.mark.parametrize(
    "change, message",
    [
        ({"data": 0}, "layout.data=0"),
        ({"pipe": 2.0}, "layout.pipe=2.0"),
        ({"microbatches": True}, "layout.microbatches=True"),
        ({"zero": 4}, "layout.zero=4.*3 \\(also parameters\\)"),
        ({"context_strategy": "rings"}, "layout.context_strategy='rings'.*ring, gather"),
    ],
)
def test_senseless_sizes(change, message):
    with pytest.raises(LayoutError, match=message):
        Layout(**change)
    assert issubclass(LayoutError, MeshError)


@pytest.mark.parametrize(
    "change, more, message",
    [
        ({"data": 64}, {}, "4096 devices .*'ascend_8192' has 8192; set layout.data to 128"),
        ({"pipe": 5, "data": 1}, {}, "40 devices.*divisor of 8192: .*32, 64"),
        ({"tensor": 16, "data": 64}, {}, "tensor=16 crosses the nodes.*8 devices.*1, 2, 4, 8"),
        (
            {"tensor": 16, "data": 64},
            {"topology": None},
            "tensor=16 does not divide the model's num_kv_heads=8.*1, 2, 4, 8",
        ),
        ({"tensor": 3}, {"topology": None}, "tensor=3.*1, 2, 4, 8"),
        (
            {"tensor": 8},
            {"topology": None, "model": dataclasses.replace(ULTRA, mlp_dim=28_676)},
            "tensor=8 does not divide the model's mlp_dim=28676.*1, 2, 4",
        ),
        (
            {"context": 8, "data": 16},
            {"seq_len": 4100},
            "multiple of 64; the nearest are 4096 and 4160",
        ),
        (
            {"context": 8, "data": 16, "sequence_parallel": False},
            {"seq_len": 4100},
            "multiple of 16; the nearest are 4096 and 4112",
        ),
        ({"context": 8, "data": 16}, {"seq_len": 8}, "the nearest are 64[.]"),
        ({}, {"batch_rows": 1536}, "2048 rows.*1536 are wanted; set layout.microbatches to 12"),
        ({}, {"batch_rows": 96}, "96 are wanted; choose layout.data .*32.*layout.context"),
        (
            {"pipe": 1, "data": 1024},
            {},
            "virtual_stages=6 needs a pipeline.*virtual_stages to 1 or pipe to at least 2",
        ),
        ({"virtual_stages": 13}, {}, "fill 96 stages, but .* are 104; lower virtual_stages to 12"),
        ({"overlap": True, "sequence_parallel": False}, {}, "overlap=True needs .*sequence_par"),
    ],
)
def test_checks_say_what_to_change(change, more, message):
    arguments = {
        "model": ULTRA, "seq_len": 4096, "topology": topology("ascend_8192"), **more,
    }  # fmt: skip
    with pytest.raises(LayoutError, match=message):
        check_layout(dataclasses.replace(PAPER, **change), **arguments)


def test_costs_that_are_allowed_are_told():
    layout = Layout(pipe=8, virtual_stages=5, microbatches=6)
    empty, few = check_layout(layout, ULTRA, seq_len=4096)
    assert "24 of 120 layer slots hold nothing" in empty
    assert "microbatches=6 are fewer than the 8 pipeline ranks" in few


def test_phases_of_pangu_ultra():
    layouts = phase_layouts(PANGU_ULTRA, ULTRA, topology=topology("ascend_8192"))
    assert list(layouts) == [phase.name for phase in PANGU_ULTRA.phases]
    for phase in PANGU_ULTRA.phases:
        layout = layouts[phase.name]
        assert layout.devices == 8192
        assert layout.batch_rows == phase.batch_rows
        assert phase.seq_len // layout.context <= 8192
        assert layout.microbatches >= layout.pipe
    sizes = {name: (x.data, x.context, x.microbatches) for name, x in layouts.items()}
    assert sizes["general_1"] == (128, 1, 8)
    assert sizes["general_2"] == (128, 1, 12)
    assert sizes["general_3"] == sizes["general_4"] == (128, 1, 16)
    assert sizes["reasoning"] == (128, 1, 12)
    assert sizes["long_32k"] == (32, 4, 12)
    assert sizes["long_128k"] == (8, 16, 12)


def test_phases_with_longer_shares_of_rows():
    layouts = phase_layouts(
        PANGU_ULTRA, ULTRA, topology=topology("ascend_8192"), rank_tokens=16_384, overlap=True
    )
    assert (layouts["long_128k"].context, layouts["long_128k"].data) == (8, 16)
    assert layouts["long_128k"].overlap
    # However long a share may be: 96 rows allow no more than 32 replicas.
    most = phase_layouts(PANGU_ULTRA, ULTRA, topology=topology("ascend_8192"), rank_tokens=1 << 20)
    assert (most["long_128k"].context, most["long_128k"].data) == (4, 32)


def test_phases_without_a_layout():
    odd = PhaseSchedule(
        phases=(Phase(name="odd", tokens=1e9, seq_len=8192, batch_rows=2048),),
        rates=(Rate(until=1e9, end=1e-4),),
    )
    with pytest.raises(LayoutError, match="Phase 'odd' .*rank_tokens"):
        phase_layouts(odd, ULTRA, topology=topology("ascend_8192"), rank_tokens=32)
    with pytest.raises(LayoutError, match="pipe 7 x tensor 8.*8192"):
        phase_layouts(odd, ULTRA, topology=topology("ascend_8192"), pipe=7)
    with pytest.raises(LayoutError, match="Phase 'odd': .*num_heads=20"):
        phase_layouts(odd, preset("proxy_2_6b"), topology=topology("ascend_8192"), virtual_stages=4)


@given(vocab=st.integers(1, 200_000), tensor=SMALL, multiple=st.sampled_from([1, 2, 128]))
def test_padded_vocabulary(vocab, tensor, multiple):
    padded = padded_vocabulary(vocab, Layout(tensor=tensor), multiple=multiple)
    assert padded % (tensor * multiple) == 0
    assert 0 <= padded - vocab < tensor * multiple


def test_padded_vocabulary_of_pangu():
    assert padded_vocabulary(153_376, PAPER) == 153_376
    assert padded_vocabulary(153_376, PAPER, multiple=128) == 153_600


def test_mesh_keeps_neighbours_along_tensor():
    mesh = layout_mesh(Layout(data=2, pipe=2, tensor=2))
    assert mesh.axis_names == AXES == ("data", "pipe", "context", "tensor")
    assert mesh.axis_types == (AxisType.Auto,) * 4
    ids = np.vectorize(lambda device: device.id)(mesh.devices)
    np.testing.assert_array_equal(ids.ravel(), np.arange(8))
    assert (np.diff(ids, axis=-1) == 1).all()


def test_mesh_over_some_devices_and_too_few():
    assert layout_mesh(Layout(tensor=4), jax.devices()[4:]).devices.size == 4
    with pytest.raises(LayoutError, match="takes 16 devices.*there are 8; change layout.data"):
        layout_mesh(Layout(data=16))


def test_mesh_of_a_topology_is_checked():
    model = preset("debug", num_heads=4, num_kv_heads=4)
    node = topology("cpu_8")
    layout = Layout(data=2, tensor=4)
    mesh = topology_mesh(layout, model, node, seq_len=64, batch_rows=2)
    assert dict(mesh.shape) == {"data": 2, "pipe": 1, "context": 1, "tensor": 4}
    for wrong, message in (
        (Layout(data=2, tensor=2), "set layout.data to 4"),
        (Layout(tensor=8), "tensor may be"),
        (Layout(data=4, tensor=2), "wanted; choose layout.data among"),
    ):
        with pytest.raises(LayoutError, match=message):
            topology_mesh(wrong, model, node, seq_len=64, batch_rows=2)
    across = dataclasses.replace(node, nodes=4, devices_per_node=2)
    with pytest.raises(LayoutError, match="crosses the nodes"):
        topology_mesh(layout, model, across, seq_len=64, batch_rows=2)


def test_programs_are_lowered_for_8192_devices():
    mesh = abstract_mesh(PAPER)
    assert mesh.shape_tuple == tuple(zip(AXES, (128, 8, 1, 8), strict=True))
    x = jax.ShapeDtypeStruct(
        (2048, 1024), np.float32, sharding=NamedSharding(mesh, PartitionSpec("data", "tensor"))
    )
    text = jax.jit(lambda a: a * 2).trace(x).lower(lowering_platforms=("tpu",)).as_text()
    assert "num_partitions = 8192" in text
