"""The TPU kernels lower, and where libtpu is installed compile, on a machine without a TPU."""

from __future__ import annotations

import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.kernels.silu_attention import silu_attention
from recsys_jax.kernels.silu_attention.arg_specs import CONFIGS, ArgSpec, by_name
from recsys_jax.kernels.silu_attention.pallas_tpu import block_ranges, lane_groups


def training_function(spec, bias, packed):
    """Outputs and all gradients as a function of the arguments in `spec.abstract_args`."""

    def function(q, k, v, position_weights, time_weights, segment_ids, timestamps, query_times):
        def forward(q, k, v, p, t):
            return silu_attention(
                q, k, v, segment_ids=segment_ids, position_weights=p, time_weights=t,
                timestamps=timestamps, query_times=query_times, scale=1 / spec.n, bias=bias,
                packed=packed, implementation='pallas_tpu',
            )  # fmt: skip

        out, pull = jax.vjp(forward, q, k, v, position_weights, time_weights)
        return out, pull(out)

    return function


SHAPES = (by_name('ml1m'), by_name('ml20m_large'), by_name('kuairand_1k'), by_name('long_8k'),
          ArgSpec('n200', 8, 200, 1, 50, 50))  # fmt: skip


@pytest.mark.parametrize("bias, packed", [("separate", False), ("separate", True), ("added", True)])
@pytest.mark.parametrize("spec", SHAPES, ids=lambda s: s.name)
def test_lowers_for_tpu(spec, bias, packed):
    args = spec.abstract_args(jnp.bfloat16)
    function = jax.jit(training_function(spec, bias, packed))
    lowered = function.trace(*args.values()).lower(lowering_platforms=("tpu",)).as_text()
    assert lowered.count("tpu_custom_call") == 3  # Forward, rows, columns.
    if packed:  # Otherwise the position channel is one N x N matrix for the whole batch.
        assert f"{spec.n}x{spec.n}" not in lowered


def test_a_tile_that_does_not_fit_the_lanes_is_refused():
    from recsys_jax.kernels.silu_attention.pallas_tpu import silu_attention_pallas_tpu

    spec = ArgSpec("odd", 2, 200, 1, 8, 8)

    def forward(q, k, v, position_weights, time_weights, segment_ids, timestamps, query_times):
        return silu_attention_pallas_tpu(
            q, k, v, segment_ids=segment_ids, time_weights=time_weights, timestamps=timestamps,
            query_times=query_times, scale=1.0, block=100,
        )  # fmt: skip

    with pytest.raises(ValueError, match="divisible by"):
        args = spec.abstract_args().values()
        jax.jit(forward).trace(*args).lower(lowering_platforms=("tpu",))


@pytest.mark.parametrize("heads, width", [(1, 50), (2, 25), (3, 50), (8, 32), (4, 64), (2, 130)])
def test_lane_groups_hold_every_head(heads, width):
    lanes = lane_groups(heads, width)
    assert lanes.groups * lanes.per_group >= heads
    assert lanes.per_group * width <= lanes.width
    assert lanes.groups == 1 or lanes.width % 128 == 0


def test_block_ranges_cover_every_pair_that_meets():
    rng = np.random.default_rng(0)
    segments = np.zeros((6, 24), np.int32)
    for row in range(5):
        ids = np.repeat(np.arange(1, 25), rng.integers(1, 9, 24))[: rng.integers(0, 25)]
        segments[row, : ids.size] = ids
    first, last = block_ranges(jnp.asarray(segments), 4)
    for b, i, j in np.ndindex(6, 6, 6):
        mine, theirs = segments[b, 4 * i : 4 * i + 4], segments[b, 4 * j : 4 * j + 4]
        meets = j <= i and np.intersect1d(mine[mine > 0], theirs).size > 0
        assert not meets or (first[b, i] <= j and i <= last[b, j])
    assert (first[5] == 6).all() and (last[5] == -1).all()


@pytest.mark.tpu_aot
@pytest.mark.parametrize("bias, packed", [("separate", False), ("added", True)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bf16", "f32"])
def test_compiles_ahead_of_time_for_v5p(bias, packed, dtype):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip('libtpu is not installed; install the extra: pip install ".[aot]"')
    from jax.experimental import topologies

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
    topology = topologies.get_topology_desc("v5p:2x2x1", platform="tpu")
    mesh = topologies.make_mesh(topology, (4,), ("data",))
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    for spec in (CONFIGS[0], by_name("kuairand_1k")):
        function = jax.shard_map(
            training_function(spec, bias, packed),
            mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False,
        )  # fmt: skip
        args = spec.abstract_args(dtype).values()
        compiled = jax.jit(function, in_shardings=whole).lower(*args).compile()
        assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3
