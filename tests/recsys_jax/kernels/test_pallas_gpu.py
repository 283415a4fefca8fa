"""Mosaic GPU kernel of SiLU attention.

Without a GPU: numbers in interpret mode against the float64 reference, lowering for CUDA, and,
where the CUDA plugin and ptxas are installed, real compilation for an H100. With a Hopper GPU,
`pytest -m gpu` (and JAX_PLATFORMS=cuda) compares the kernel with XLA on the device.
"""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("jax.experimental.pallas.mosaic_gpu", reason="this JAX has no Mosaic GPU")

from recsys_jax.kernels.silu_attention import pallas_gpu_common as common
from recsys_jax.kernels.silu_attention import pallas_gpu_position as position_kernel
from recsys_jax.kernels.silu_attention import pallas_gpu_prepare as prepare
from recsys_jax.kernels.silu_attention.buckets import bucket_thresholds, time_bucket
from recsys_jax.kernels.silu_attention.pallas_gpu import silu_attention_pallas_gpu
from recsys_jax.kernels.silu_attention.reference import silu_attention_reference

ARGUMENTS = ("q", "k", "v", "position_weights", "time_weights")
TILE = common.TILE


def packed_segments(rng, batch, n, packed):
    """Row 0 packs several segments, row 1 has one short segment, later rows vary in length."""
    segments = np.zeros((batch, n), np.int32)
    if not packed:
        segments[0, : n // 2 + 1] = 1
        for row in range(1, batch):
            segments[row, : max(0, n - 7 * row)] = 1
        return segments
    cuts = np.sort(rng.integers(0, n + 1, 3))
    for segment, (a, b) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True), 1):
        segments[0, a:b] = segment
    for row, length in zip(range(1, batch), (min(n, TILE + 1), n, 0, TILE, TILE - 1), strict=False):
        segments[row, :length] = 1
    return segments


def make(
    seed, batch, n, heads, width_qk, width_v, *, semantic=True, time=True, position=True,
    num_buckets=128, table_length=None, max_gap=5000, packed=True,
):  # fmt: skip
    """Random arguments; about a third of the events share the second of their neighbour."""
    rng = np.random.default_rng(seed)
    segments = packed_segments(rng, batch, n, packed)
    gaps = rng.integers(0, max_gap, (batch, n)) * (rng.random((batch, n)) < 0.7)
    timestamps = np.cumsum(gaps, 1).astype(np.int32)
    query_times = np.concatenate([timestamps[:, 1:], timestamps[:, -1:] + 7], 1).astype(np.int32)
    valid = (segments > 0)[:, :, None, None]
    inputs = {"v": rng.normal(size=(batch, n, heads, width_v)) * valid}
    if semantic:
        inputs["q"] = rng.normal(size=(batch, n, heads, width_qk)) * valid
        inputs["k"] = rng.normal(size=(batch, n, heads, width_qk)) * valid
    if position:
        inputs["position_weights"] = rng.normal(size=table_length or n)
    if time:
        inputs["time_weights"] = rng.normal(size=num_buckets + 1)
    fixed = {"segment_ids": segments, "timestamps": None, "query_times": None}
    if time:
        fixed |= {"timestamps": timestamps, "query_times": query_times}
    return inputs, fixed


def call(function, inputs, fixed, *, bias="separate", packed=True, **more):
    """The channels that are on, padded rows zeroed as the public entry does."""
    inputs = dict.fromkeys(ARGUMENTS) | inputs
    n = inputs["v"].shape[1]
    out = function(
        inputs.pop('q'), inputs.pop('k'), inputs.pop('v'), **inputs, **fixed,
        scale=1 / n, bias=bias, packed=packed, **more,
    )  # fmt: skip
    valid = (fixed["segment_ids"] > 0)[:, :, None, None]
    return [jnp.where(valid, x, 0) for x in out if x is not None]


def value_and_gradients(function, inputs, fixed, **more):
    out, vjp = jax.vjp(lambda x: call(function, x, fixed, **more), inputs)
    rng = np.random.default_rng(7)
    cotangents = [jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in out]
    return out, vjp(cotangents)[0]


def reference64(inputs, fixed, **more):
    with jax.enable_x64(True):
        inputs = {name: jnp.asarray(x, jnp.float64) for name, x in inputs.items()}
        reference = functools.partial(value_and_gradients, silu_attention_reference, **more)
        out, gradients = jax.jit(reference)(inputs, fixed)
        return [np.asarray(x) for x in out], {n: np.asarray(x) for n, x in gradients.items()}


def assert_near(got, want, tolerance, what):
    want = np.asarray(want, np.float64)
    error = np.abs(np.asarray(got, np.float64) - want).max()
    assert error <= tolerance * (np.abs(want).max() + 1e-3), f"{what}: error {error}"


INTERPRET = {
    "unpacked": ({"n": 70, "heads": 2, "width_qk": 5, "width_v": 6}, {"packed": False}),
    # Three tiles through two ring slots; the padded width 128 makes two head groups forward.
    "separate": ({"n": 130, "heads": 2, "width_qk": 5, "width_v": 66}, {}),
    "added": ({"n": 70, "heads": 2, "width_qk": 7, "width_v": 3}, {"bias": "added"}),
    "no_semantic": (
        {"n": 65, "heads": 1, "width_qk": 1, "width_v": 4, "semantic": False, "table_length": 10},
        {},
    ),
    "added_no_time": (
        {"n": 13, "heads": 2, "width_qk": 3, "width_v": 4, "time": False},
        {"bias": "added"},
    ),
}


@pytest.mark.parametrize("name", INTERPRET)
def test_interpret_matches_float64_reference(name, monkeypatch):
    if name != "unpacked":  # As many heads to a block as fit, which only long inputs have.
        monkeypatch.setattr(common, "_WANTED_BLOCKS", 1)
    sizes, options = INTERPRET[name]
    inputs, fixed = make(0, 2, **sizes, packed=options.get("packed", True))
    want = reference64(inputs, fixed, bias=options.get("bias", "separate"))
    inputs = {key: jnp.asarray(x, jnp.float32) for key, x in inputs.items()}
    kernel = functools.partial(silu_attention_pallas_gpu, interpret=True)
    out, gradients = jax.jit(functools.partial(value_and_gradients, kernel, **options))(
        inputs, fixed
    )
    for channel, (got, expected) in enumerate(zip(out, want[0], strict=True)):
        assert_near(got, expected, 1e-5, f"channel {channel}")
    for key, expected in want[1].items():
        assert gradients[key].dtype == jnp.float32
        assert_near(gradients[key], expected, 2e-5, f"gradient of {key}")


def spec_for(batch, n, **more):
    facts = {
        'added': False, 'semantic': True, 'time': True, 'position': False, 'scale': 1.0,
        'dtype': np.dtype('float32'), 'batch': batch, 'tiles': -(-n // TILE), 'heads': 1,
        'width_qk': 32, 'width_v': 32, 'num_buckets': 128, 'interpret': True,
    }  # fmt: skip
    return common.Spec(**(facts | more))


@functools.partial(jax.jit, static_argnums=0)
def _tables(spec, fixed):
    prepared = prepare.Prepared(spec, **fixed)
    return prepared.span, prepared.buckets


@hypothesis.given(
    seed=st.integers(0, 10**6),
    n=st.sampled_from([13, 130, 192]),
    max_gap=st.sampled_from([1, 3, 100, 10**4, 10**7]),
    shuffled=st.booleans(),
)
@hypothesis.example(seed=206, n=130, max_gap=10**7, shuffled=False)
@hypothesis.settings(max_examples=30, deadline=None)
def test_tile_tables_cover_every_visible_pair(seed, n, max_gap, shuffled):
    """Skipping is safe: no visible pair lies outside its tile range or bucket range."""
    _, fixed = make(seed, 3, n, 1, 1, 1, max_gap=max_gap)
    if shuffled:
        rng = np.random.default_rng(seed)
        for name in ("timestamps", "query_times"):
            fixed[name] = rng.permuted(fixed[name], axis=1)
    span, buckets = map(np.asarray, _tables(spec_for(3, n), fixed))
    dt = fixed["query_times"][:, :, None] - fixed["timestamps"][:, None, :]
    bucket = np.asarray(time_bucket(jnp.asarray(dt), 128))
    segments = fixed["segment_ids"]
    visible = (segments[:, :, None] == segments[:, None, :]) & (segments[:, :, None] > 0)
    b, i, j = np.nonzero(visible & np.tri(n, dtype=bool))
    row, col = i // TILE, j // TILE
    assert (span[b, row, 0] <= col).all() and (col < span[b, row, 1]).all()
    assert (span[b, col, 2] <= row).all() and (row < span[b, col, 3]).all()
    seen = bucket[b, i, j]
    assert (buckets[0, b, row, col] <= seen).all() and (seen <= buckets[1, b, row, col]).all()


def test_packed_rows_skip_tiles_of_other_segments():
    segments = np.repeat(np.arange(1, 5, dtype=np.int32), TILE)[None]
    prepared = prepare.Prepared(spec_for(1, 4 * TILE, time=False), segments, None, None)
    span = np.asarray(prepared.span)[0]
    own = np.arange(4)
    np.testing.assert_array_equal(span, np.stack([own, own + 1, own, own + 1], 1))


@pytest.mark.parametrize("lookup", ["select", "gather", "auto"])
@pytest.mark.parametrize("num_buckets", [0, 1, 7, 71, 128])
def test_bias_tile_is_the_exact_bucket(lookup, num_buckets):
    theta = bucket_thresholds(128).astype(np.int64)
    edges = np.concatenate([theta - 1, theta, theta + 1, np.arange(300), [2**31 - 1, 2**31 - 2]])
    dt = np.random.default_rng(0).integers(0, 2**31 - 1, TILE * TILE)
    dt[: len(edges)] = edges
    dt = jnp.asarray(dt.reshape(TILE, TILE), jnp.int32)
    spec = spec_for(1, TILE, num_buckets=num_buckets, lookup=lookup)
    zeros = np.zeros((1, TILE), np.int32)
    prepared = prepare.Prepared(spec, zeros, zeros, zeros)
    table = jnp.arange(common.TABLE, dtype=jnp.float32)
    ops, known = common.Ops(spec), common.time_difference(dt, 0)
    tile = common.time_bias(ops, spec, known, 0, min(num_buckets, 71), prepared.theta, table)
    np.testing.assert_array_equal(tile, time_bucket(dt, num_buckets))


@pytest.mark.parametrize("length", [1, 60, 64, 100, 192, 250])
def test_diagonal_sums_invert_toeplitz_tiles(length):
    """<tiles(w), G> == <w, sums(G)> where only pairs with key <= query count."""
    tiles = 3
    weights = jnp.asarray(np.random.default_rng(0).normal(size=length), jnp.float32)
    r = np.arange(TILE)
    mask = np.arange(tiles)[:, None, None] * TILE + r[:, None] - r >= 0
    g = np.where(mask, np.random.default_rng(1).normal(size=mask.shape), 0).astype(np.float32)
    want = np.zeros(length)
    for d, i, j in zip(*np.nonzero(mask), strict=True):
        want[min(d * TILE + i - j, length - 1)] += g[d, i, j]
    np.testing.assert_allclose(
        position_kernel._sum_diagonals(jnp.asarray(g), length), want, atol=2e-4
    )
    dense = np.asarray(prepare.position_tiles(weights, tiles), np.float64)
    np.testing.assert_allclose((dense * g).sum(), (np.asarray(weights) * want).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    "shape, dtype, message",
    [
        ((1, 8, 1, 32), jnp.float32, "float32 inputs; the kernel takes bfloat16 and float16"),
        ((1, 8, 1, 200), jnp.bfloat16, "head width 200 is above 128"),
        ((0, 8, 1, 32), jnp.bfloat16, "an empty batch"),
    ],
)
def test_unsupported_calls_say_why(shape, dtype, message):
    x = jnp.zeros(shape, dtype)
    fixed = {"segment_ids": jnp.ones(shape[:2], jnp.int32)}
    with pytest.raises(NotImplementedError, match=message):
        call(
            silu_attention_pallas_gpu, {'q': x, 'k': x, 'v': x},
            fixed | {'timestamps': None, 'query_times': None},
        )  # fmt: skip


# Batch, N, heads, width: the configurations of the specification, and the benchmark's lengths.
CONFIGS = {
    "ml1m": (4, 200, 1, 50),
    "ml1m_large": (4, 211, 2, 25),
    "kuairand": (2, 1024, 4, 32),
    "ml20m_4096": (2, 4096, 4, 64),
    "ml20m_large_8192": (2, 8192, 8, 32),
    "wide": (2, 1024, 2, 128),
}
MODES = {
    "fuxi": {"position": False},
    "fuxi_packed": {},
    "hstu": {"bias": "added"},
    "gather": {"bias": "added", "lookup": "gather"},
}


def training_call(mode, config, sharding=None):
    """A jitted forward and backward pass, and abstract arguments for it."""
    batch, n, heads, width = CONFIGS[config]
    options = dict(MODES[mode])
    position = options.pop("position", True)

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)

    ids = shape(batch, n, dtype=jnp.int32)
    tensor = shape(batch, n, heads, width, dtype=jnp.bfloat16)
    inputs = dict.fromkeys(("q", "k", "v"), tensor) | {"time_weights": shape(129)}
    if position:
        inputs["position_weights"] = shape(n)
    fixed = dict.fromkeys(("segment_ids", "timestamps", "query_times"), ids)
    step = functools.partial(value_and_gradients, silu_attention_pallas_gpu, **options)
    return jax.jit(step), (inputs, fixed)


@pytest.mark.parametrize(
    'mode, config',
    [
        ('fuxi', 'ml1m'), ('fuxi', 'ml20m_4096'), ('fuxi', 'ml20m_large_8192'),
        ('fuxi_packed', 'ml1m_large'), ('hstu', 'wide'), ('gather', 'kuairand'),
    ],
)  # fmt: skip
def test_lowers_for_cuda_without_a_gpu(mode, config):
    step, arguments = training_call(mode, config)
    text = step.trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    # Forward, rows, keys, and the position table where there is one in the kernel.
    assert text.count("@mosaic_gpu") == (3 if mode == "fuxi" else 4)
    _, n, heads, _ = CONFIGS[config]
    assert f"x{heads}x{n}x{n}x" not in text and f"x{n}x{n}x{heads}x" not in text


H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 } device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.fixture(scope="module")
def h100():
    """Sharding on one H100 that is not here; needs the CUDA plugin of JAX and ptxas."""
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            platform="cuda", topology_name="", topology="1x1x1", target_config=H100
        )
    except Exception as error:
        pytest.skip(f'no compiler for CUDA here (pip install "jax[cuda12-local]"): {error}')
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("x",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


@pytest.mark.parametrize(
    "mode, config",
    [("fuxi", "ml1m"), ("fuxi_packed", "ml20m_4096"), ("hstu", "wide"), ("gather", "kuairand")],
)
def test_compiles_for_h100_without_a_gpu(h100, mode, config):
    step, arguments = training_call(mode, config, h100)
    compiled = step.lower(*arguments).compile()
    assert 'custom_call_target="mosaic_gpu' in compiled.as_text()


def on_hopper():
    if jax.default_backend() != "gpu":
        return False
    return str(jax.devices()[0].compute_capability).startswith("9.")


SHAPES = (
    (6, 13, 1, 5, 7), (6, 130, 2, 25, 25), (6, 200, 1, 50, 50), (3, 1024, 4, 32, 64),
    (2, 300, 2, 128, 128),
)  # fmt: skip
ON_DEVICE = [  # The lengths of 2048 have several heads in a block.
    *((*shape, bias, "auto", True) for shape in SHAPES for bias in ("separate", "added")),
    (6, 200, 1, 50, 50, "separate", "select", True),
    (6, 200, 1, 50, 50, "added", "gather", True),
    (4, 300, 2, 32, 32, "separate", "auto", False),
    (4, 200, 2, 25, 25, "added", "auto", False),
    (4, 2048, 4, 32, 32, "separate", "auto", False),
    (4, 2048, 4, 32, 32, "added", "auto", True),
]


@pytest.mark.gpu
@pytest.mark.skipif(not on_hopper(), reason="needs a Hopper GPU and JAX_PLATFORMS=cuda")
@pytest.mark.parametrize("batch, n, heads, width_qk, width_v, bias, lookup, packed", ON_DEVICE)
def test_gpu_matches_float32_reference(batch, n, heads, width_qk, width_v, bias, lookup, packed):
    """On the device, bf16 kernel against the dense reference fed the same bf16 numbers."""
    inputs, fixed = make(1, batch, n, heads, width_qk, width_v, packed=packed)
    fixed = {name: jnp.asarray(x) for name, x in fixed.items()}
    rounded = {
        name: jnp.asarray(x, jnp.float32 if "weights" in name else jnp.bfloat16)
        for name, x in inputs.items()
    }
    exact = {name: x.astype(jnp.float32) for name, x in rounded.items()}
    options = {"bias": bias, "packed": packed}

    def compiled(function):
        return jax.jit(functools.partial(value_and_gradients, function, **options))

    run = compiled(functools.partial(silu_attention_pallas_gpu, lookup=lookup))
    if not packed and bias == "separate":  # The public entry keeps that channel for itself.
        del rounded["position_weights"], exact["position_weights"]
    out, gradients = run(rounded, fixed)
    with jax.default_matmul_precision("highest"):
        want = compiled(silu_attention_reference)(exact, fixed)
    for channel, (got, expected) in enumerate(zip(out, want[0], strict=True)):
        assert_near(got, expected, 0.02, f"channel {channel}")
    for name, expected in want[1].items():
        assert_near(gradients[name], expected, 0.02, f"gradient of {name}")
    # No block adds into memory of another: a second run must give the same bits.
    again = run(rounded, fixed)
    jax.tree.map(np.testing.assert_array_equal, (out, gradients), again)
