# ruff: noqa: E501  (lines of HLO)
"""Collectives read from HLO: small programs compiled here, and snippets of other dialects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from pangu_jax.planning.hlo import hlo_collectives, shape_bytes


def _mesh():
    return jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def _compiled(function, *shapes, out):
    mapped = jax.shard_map(
        function, mesh=_mesh(), in_specs=(PartitionSpec("a", "b"),) * len(shapes), out_specs=out,
        check_vma=False,
    )  # fmt: skip
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(mapped).lower(*arguments).compile().as_text()


def test_kinds_sizes_and_groups_of_a_compiled_program():
    def step(x):  # (4, 8) on a device
        gathered = lax.all_gather(x, "b", axis=1, tiled=True)  # (4, 32)
        scattered = lax.psum_scatter(gathered, "b", scatter_dimension=1, tiled=True)  # (4, 8)
        moved = lax.ppermute(scattered, "b", [(i, (i + 1) % 4) for i in range(4)])
        return lax.psum(moved, "a")

    totals = hlo_collectives(_compiled(step, (8, 32), out=PartitionSpec(None, "b"))).totals()
    assert totals == {
        ("all-gather", 4): (1, 4 * 32 * 4),
        ("reduce-scatter", 4): (1, 4 * 8 * 4),
        ("collective-permute", 4): (1, 4 * 8 * 4),
        ("all-reduce", 2): (1, 4 * 8 * 4),
    }


@pytest.mark.parametrize("loop", ["scan", "fori", "nested"])
def test_loops_are_multiplied_out(loop):
    def once(x):
        return lax.psum(x * 1.5, "b")

    def step(x):
        if loop == "scan":
            return lax.scan(lambda c, _: (once(c), None), x, None, length=7)[0]
        if loop == "fori":
            return lax.fori_loop(0, 5, lambda _, c: once(c), x)
        inner = lambda c, _: (lax.scan(lambda d, _: (once(d), None), c, None, length=3)[0], None)  # noqa: E731
        return lax.scan(inner, x, None, length=4)[0]

    found = hlo_collectives(_compiled(step, (8, 32), out=PartitionSpec("a", "b")))
    expected = {"scan": 7, "fori": 5, "nested": 12}[loop]
    assert found.totals()[("all-reduce", 4)] == (expected, expected * 4 * 8 * 4)
    assert found.unknown_loops == ()


def test_a_loop_of_unknown_length_is_counted_once_and_reported():
    def step(x):
        going = lambda c: jnp.sum(c) < 100.0  # noqa: E731
        return lax.while_loop(going, lambda c: lax.psum(c, ("a", "b")), x)

    found = hlo_collectives(_compiled(step, (8, 32), out=PartitionSpec("a", "b")))
    assert len(found.unknown_loops) == 1
    assert found.totals()[("all-reduce", 8)][0] == 1


def test_branches_are_marked():
    def step(x):
        flag = lax.axis_index("a") == 0
        return lax.cond(flag, lambda v: lax.psum(v, "b"), lambda v: v * 2.0, x)

    found = hlo_collectives(_compiled(step, (8, 32), out=PartitionSpec("a", "b")))
    assert [op.conditional for op in found.operations] == [True]


# Hand-written in the notations of the GPU and TPU compilers.
_GPU = """HloModule jit_step, is_scheduled=true, replica_count=1, num_partitions=8192

%add (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%async_rs (p: f32[1024]) -> f32[8] {
  %p = f32[1024]{0} parameter(0)
  ROOT %rs = f32[8]{0} reduce-scatter(%p), replica_groups=[64,128]<=[128,64]T(1,0), dimensions={0}, to_apply=%add
}

%cond (s: (s32[], bf16[16])) -> pred[] {
  %s = (s32[], bf16[16]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(23)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (s.1: (s32[], bf16[16])) -> (s32[], bf16[16]) {
  %s.1 = (s32[], bf16[16]{0}) parameter(0)
  %v = bf16[16]{0} get-tuple-element(%s.1), index=1
  %ars = bf16[16]{0} all-reduce-start(%v), channel_id=1, replica_groups=[1024,8]<=[8192], to_apply=%add
  %ard = bf16[16]{0} all-reduce-done(%ars)
  %cps = (bf16[16]{0}, bf16[16]{0}, u32[], u32[]) collective-permute-start(%ard), source_target_pairs={{0,8},{8,16},{16,24}}
  %cpd = bf16[16]{0} collective-permute-done(%cps)
  ROOT %t = (s32[], bf16[16]{0}) tuple(%i.2, %cpd)
}

ENTRY %main (a: bf16[16], g: f32[1024]) -> (bf16[64], bf16[32]) {
  %a = bf16[16]{0} parameter(0)
  %g = f32[1024]{0} parameter(1)
  %w = (s32[], bf16[16]{0}) while(%init), condition=%cond, body=%body
  %rs-start = ((f32[1024]{0}), f32[8]{0}, u32[]) async-start(%g), calls=%async_rs
  %rs-done = f32[8]{0} async-done(%rs-start)
  %ags = ((bf16[16]{0}, bf16[8]{0}), (bf16[64]{0}, bf16[32]{0})) all-gather-start(%a, %b), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  ROOT %agd = (bf16[64]{0}, bf16[32]{0}) all-gather-done(%ags)
}
"""


def test_dialect_of_the_gpu_compiler():
    assert hlo_collectives(_GPU).totals() == {
        ("all-reduce", 8): (23, 23 * 32),
        ("collective-permute", 4): (23, 23 * 32),
        ("all-gather", 4): (1, 128 + 64),
        ("reduce-scatter", 128): (1, 32),
    }


_TPU = """HloModule jit_step, num_partitions=16

cond.1 (s: (s32[])) -> pred[] {
  s = (s32[]{:T(128)}) parameter(0)
  i = s32[]{:T(128)} get-tuple-element(s), index=0
  n = s32[]{:T(128)} constant(6)
  ROOT lt = pred[]{:T(512)} compare(i, n), direction=LT
}

odd.2 (s: (s32[])) -> pred[] {
  s = (s32[]{:T(128)}) parameter(0)
  i = s32[]{:T(128)} get-tuple-element(s), index=0
  n = s32[]{:T(128)} constant(6)
  ROOT ne = pred[]{:T(512)} compare(i, n), direction=NE
}

body.3 (s: (s32[])) -> (s32[]) {
  x = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ag = bf16[8,512]{1,0:T(8,128)(2,1)} all-gather(x), replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={1}
  ROOT ar = bf16[8,128]{1,0:T(8,128)(2,1)} all-reduce(x), replica_groups=mesh['d'=2,'t'=8] {'t':(4)2}, to_apply=add
}

ENTRY main.4 (a: bf16[8,128]) -> bf16[8,128] {
  a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  w = (s32[]) while(init), condition=cond.1, body=body.3, backend_config={"known_trip_count":{"n":"10"}}
  u = (s32[]) while(init), condition=cond.1, body=body.3
  k = (s32[]) while(init), condition=odd.2, body=body.3
  ROOT all = bf16[8,128]{1,0} all-reduce(a), replica_groups={}, to_apply=add
}
"""


def test_dialect_of_the_tpu_compiler():
    found = hlo_collectives(_TPU)
    assert found.unknown_loops == ("k",)
    runs = 10 + 6 + 1
    assert found.totals() == {
        ("all-gather", 4): (runs, runs * 8 * 512 * 2),
        ("all-reduce", 2): (runs, runs * 8 * 128 * 2),
        ("all-reduce", 16): (1, 8 * 128 * 2),
    }


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]", 4), ("bf16[8,128]{1,0:T(8,128)(2,1)}", 2048), ("(f32[2], s4[3])", 10),
        ("pred[5]", 5), ("f8e4m3fn[16]", 16), ("token[]", 0), ("c64[2]", 16), ("f32[<=4,2]", 32),
    ],
)  # fmt: skip
def test_bytes_of_shapes(shape, size):
    assert shape_bytes(shape) == size


def test_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo_collectives("HloModule nothing\n")


def test_bytes_agree_with_the_arrays():
    for dtype in (np.float32, np.int8, np.uint16, np.float64):
        name = {"float32": "f32", "int8": "s8", "uint16": "u16", "float64": "f64"}[
            np.dtype(dtype).name
        ]
        array = np.zeros((3, 5), dtype)
        assert shape_bytes(f"{name}[3,5]{{1,0}}") == array.nbytes
