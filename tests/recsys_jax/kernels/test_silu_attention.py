"""SiLU attention: every implementation that runs here against the float64 definition."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pangu_jax.kernels.implementation import ImplementationUnavailableError
from recsys_jax.kernels.silu_attention import api, silu_attention
from recsys_jax.kernels.silu_attention.reference import silu_attention_reference
from recsys_jax.kernels.silu_attention.xla import silu_attention_xla

ENABLE_X64 = jax.enable_x64
DIFFERENTIABLE = ("q", "k", "v", "position_weights", "time_weights")


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; `rows` holds, per batch row, the lengths of its segments."""

    rows: tuple[tuple[int, ...], ...]
    n: int
    heads: int = 1
    width_qk: int = 4
    width_v: int = 4
    bias: str = "separate"
    packed: bool = False
    off: tuple[str, ...] = ()
    table: int = 129

    def __str__(self):
        kind = "-".join([self.bias, *["packed"] * self.packed, *(f"no_{x}" for x in self.off)])
        return f"n{self.n}-h{self.heads}-k{self.width_qk}-d{self.width_v}-{kind}"

    def arguments(self, seed=0):
        """NumPy float64 / int32 arguments; half of the steps between events take no time."""
        rng = np.random.default_rng(seed)
        rows, n = len(self.rows), self.n
        segments = np.zeros((rows, n), np.int32)
        for row, lengths in enumerate(self.rows):
            ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
            segments[row, : ids.size] = ids
        step = rng.integers(0, 90_000, (rows, n + 1)) * (rng.random((rows, n + 1)) < 0.5)
        times = np.cumsum(step, axis=1).astype(np.int32)
        wide = (rows, n, self.heads)
        args = {
            "q": rng.normal(size=(*wide, self.width_qk)),
            "k": rng.normal(size=(*wide, self.width_qk)),
            "v": rng.normal(size=(*wide, self.width_v)),
            "position_weights": rng.normal(size=n + 3),
            "time_weights": rng.normal(size=self.table),
            "segment_ids": segments,
            "timestamps": times[:, :-1],
            "query_times": times[:, 1:],
        }
        off = {"semantic": ("q", "k"), "time": ("time_weights",), "position": ("position_weights",)}
        for channel in self.off:
            args |= dict.fromkeys(off[channel])
        return args

    @property
    def static(self):
        return {"scale": 1.0 / self.n, "bias": self.bias, "packed": self.packed}


LENGTHS = ((130,), (128,), (127,), (1,), ())
CASES = (
    Case(((1,), ()), 1),
    Case(((7,), (3,), ()), 7, heads=2, width_qk=5, width_v=3),
    Case(((2, 1, 4), (7,), ()), 7, heads=2, width_v=3, packed=True),
    Case(((13,), (6,)), 13, width_qk=8, bias="added"),
    Case(LENGTHS, 130, heads=2, width_qk=16, width_v=8),
    Case(LENGTHS, 130, heads=2, width_qk=8, width_v=16, bias="added"),
    Case(((50, 60, 20), (3,) * 40, (129,)), 130, heads=2, packed=True),
    Case(((50, 60, 20), (1,) * 130, ()), 130, bias="added", packed=True),
    Case(((13,), (5,)), 13, off=("time",)),
    Case(((13,), (5,)), 13, off=("position",)),
    Case(((13,), (5,)), 13, off=("semantic",)),
    Case(((13,), (5,)), 13, off=("semantic", "time")),
    Case(((6, 7), (5,)), 13, off=("semantic", "time"), packed=True),
    Case(((13,), (5,)), 13, off=("time", "position"), bias="added"),
    Case(((13,), (5,)), 13, off=("position",), bias="added"),
    # Three heads of 50 fill one and a half groups of lanes; a head of 130 needs two of its own.
    Case(((9,),), 9, heads=3, width_qk=50, width_v=130),
    Case(((9,),), 9, table=5),
)


def cotangent_like(x, seed=1):
    return np.random.default_rng(seed).normal(size=x.shape)


def run(function, case, arguments, dtype, **extra):
    """Output channels and gradients of the differentiable arguments, as NumPy float64."""
    args = {
        name: None
        if x is None
        else jnp.asarray(x, dtype if name in DIFFERENTIABLE[:3] else None)
        if x.dtype != np.float64
        else jnp.asarray(x, dtype if name in DIFFERENTIABLE[:3] else jnp.promote_types(dtype, "f4"))
        for name, x in arguments.items()
    }
    inputs = {name: args.pop(name) for name in DIFFERENTIABLE}

    def call(inputs):
        return function(**inputs, **args, **case.static, **extra)

    @jax.jit
    def both(inputs):
        out, pull = jax.vjp(call, inputs)
        g = jax.tree.map(lambda x: jnp.asarray(cotangent_like(x), x.dtype), out)
        return out, pull(g)[0]

    out, grads = both(inputs)
    tree = {**{f"out_{k}": x for k, x in out._asdict().items()}, **grads}
    return {k: np.asarray(x, np.float64) for k, x in tree.items() if x is not None}


def reference(case, arguments=None):
    """The definition in float64; the case's own arguments if none are given."""
    if arguments is None:
        return _own_reference(case)
    with ENABLE_X64(True):
        return run(silu_attention_reference, case, arguments, jnp.float64)


@functools.cache
def _own_reference(case):
    return reference(case, case.arguments())


def assert_close(got, want, tolerance):
    assert got.keys() == want.keys()
    for name in want:
        size = max(np.abs(want[name]).max(initial=0.0), 1e-3)
        error = np.abs(got[name] - want[name]).max(initial=0.0) / size
        assert error < tolerance, f"{name}: error {error:.1e} of the largest entry"


class ImplementationSuite:
    """Run once for each implementation; a subclass names it."""

    implementation: str

    def run(self, case, arguments, dtype=jnp.float32):
        return run(silu_attention, case, arguments, dtype, implementation=self.implementation)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_matches_float64_reference(self, case):
        arguments = case.arguments()
        assert_close(self.run(case, arguments), reference(case), 3e-6)

    def test_bfloat16_accumulates_in_float32(self):
        case = Case(((70,), (33,)), 70, heads=2, width_qk=16, width_v=16)
        arguments = case.arguments()
        got = self.run(case, arguments, jnp.bfloat16)
        assert_close(got, reference(case), 2e-2)

    def test_padding_is_zero_and_keeps_nan_out(self):
        case = Case(((5,), (2,)), 9)
        arguments = case.arguments()
        clean = self.run(case, arguments)
        padded = arguments["segment_ids"] == 0
        for name in ("q", "k", "v"):
            arguments[name] = np.where(padded[..., None, None], np.nan, arguments[name])
            assert not clean[name][padded].any()
        assert not clean["out_semantic"][padded].any()
        assert not clean["out_time"][padded].any()
        assert not clean["out_position"][padded].any()
        assert_close(self.run(case, arguments), clean, 1e-12)


class TestXla(ImplementationSuite):
    implementation = "xla"

    @pytest.mark.parametrize("bias", ["separate", "added"])
    def test_packed_equals_one_row_per_segment(self, bias):
        lengths = (4, 1, 6)
        packed = Case((lengths,), 12, heads=2, bias=bias, packed=True)
        arguments = packed.arguments()
        got = self.run(packed, arguments)
        alone = dataclasses.replace(packed, rows=tuple((x,) for x in lengths), packed=False)
        rows = alone.arguments()
        begins = np.cumsum((0, *lengths[:-1]))
        for name in ("q", "k", "v", "timestamps", "query_times"):
            rows[name] = np.zeros_like(rows[name])
            for row, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
                rows[name][row, :length] = arguments[name][0, begin : begin + length]
        for name in ("position_weights", "time_weights"):
            rows[name] = arguments[name]
        want = self.run(alone, rows)
        for name in (x for x in want if x.startswith("out_")):
            for row, (begin, length) in enumerate(zip(begins, lengths, strict=True)):
                np.testing.assert_allclose(
                    got[name][0, begin : begin + length], want[name][row, :length], atol=1e-6
                )

    @pytest.mark.parametrize("bias", ["separate", "added"])
    @pytest.mark.parametrize("packed", [False, True])
    def test_block_size_does_not_matter(self, bias, packed):
        case = Case(((20, 17),) if packed else ((37,),), 40, heads=2, bias=bias, packed=packed)
        arguments = case.arguments()
        if bias == "separate" and not packed:
            arguments["position_weights"] = None
        results = [
            run(silu_attention_xla, case, arguments, jnp.float32, block=block) for block in (16, 40)
        ]
        assert_close(*results, 2e-6)

    def test_float64(self):
        case = Case(((7,), (3,)), 7, heads=2)
        arguments = case.arguments()
        with ENABLE_X64(True):
            got = run(silu_attention, case, arguments, jnp.float64, implementation="xla")
        assert_close(got, reference(case), 1e-13)

    @pytest.mark.parametrize("bias", ["separate", "added"])
    def test_looped_groups(self, bias):
        """Past 512 positions row blocks run in loops; 530 leaves a ragged rest."""
        case = Case(((300, 230),), 530, width_qk=4, width_v=4, bias=bias, packed=True)
        arguments = case.arguments()
        assert_close(self.run(case, arguments), reference(case), 3e-6)

    def test_memory_is_linear_in_the_block_not_the_square(self):
        n, heads, block = 2048, 2, 64
        case = Case(((n,),), n, heads=heads, width_qk=16, width_v=16)
        arguments = {
            name: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None)
            for name, x in case.arguments().items()
        }

        def loss(inputs):
            out = silu_attention_xla(**{**inputs, 'position_weights': None}, **case.static,
                                     block=block)  # fmt: skip
            return out.semantic.sum() + out.time.sum()

        inputs = {name: arguments.pop(name) for name in ("q", "k", "v", "time_weights")}
        compiled = jax.jit(jax.grad(lambda x: loss({**x, **arguments}))).lower(inputs).compile()
        map_of_a_block = heads * n * block * 4
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        assert temporaries < 20 * map_of_a_block < heads * n * n * 4

    def test_split_over_devices_equals_one_device(self):
        devices = jax.devices()
        if len(devices) < 2:
            pytest.skip("needs at least two (fake) devices")
        case = Case(((7,), (3,), (5,), (6,)), 7, heads=2)
        arguments = {
            name: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None)
            for name, x in case.arguments().items()
        }
        mesh = jax.make_mesh(
            (2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=devices[:2]
        )

        def place(x):
            spec = jax.P("data") if x.ndim > 1 else jax.P()
            return jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))

        def gradient(inputs):
            fixed = {k: x for k, x in arguments.items() if k not in DIFFERENTIABLE}

            def loss(inputs):
                out = silu_attention(**inputs, **fixed, **case.static, implementation="xla")
                return sum((x**2).sum() for x in out)

            return jax.jit(jax.grad(loss))(inputs)

        inputs = {k: arguments[k] for k in DIFFERENTIABLE}
        want, got = gradient(inputs), gradient(jax.tree.map(place, inputs))
        for name in want:
            np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)


class TestPallasTpuInterpreted(ImplementationSuite):
    implementation = "interpret"


def test_reference_against_plain_loops():
    """float64 NumPy, one pair at a time, from the definition and not from the code."""
    for packed in (False, True):
        case = Case(((4, 3), (5,)) if packed else ((6,), (2,)), 8, heads=2, packed=packed)
        args = case.arguments()
        q, k, v, segments = args["q"], args["k"], args["v"], args["segment_ids"]
        rows, n, heads, _ = v.shape
        want = {c: np.zeros(v.shape) for c in ("semantic", "time", "position", "added")}
        for b, i, j, h in np.ndindex(rows, n, n, heads):
            if j > i or segments[b, i] != segments[b, j] or segments[b, i] == 0:
                continue
            dt = abs(int(args["query_times"][b, i]) - int(args["timestamps"][b, j]))
            bucket = min(max(int(np.floor(np.log(max(dt, 1)) / 0.301)), 0), 128)
            time, position = args["time_weights"][bucket], args["position_weights"][i - j]
            s = float(q[b, i, h] @ k[b, j, h])
            want["semantic"][b, i, h] += s / (1 + np.exp(-s)) / n * v[b, j, h]
            want["time"][b, i, h] += time * v[b, j, h]
            want["position"][b, i, h] += position * v[b, j, h]
            s += time + position
            want["added"][b, i, h] += s / (1 + np.exp(-s)) / n * v[b, j, h]
        got = reference(case, args)
        for channel in ("semantic", "time", "position"):
            np.testing.assert_allclose(got[f"out_{channel}"], want[channel], atol=1e-13)
        added = reference(dataclasses.replace(case, bias="added"), args)
        np.testing.assert_allclose(added["out_semantic"], want["added"], atol=1e-13)


@hypothesis.given(
    cut=st.integers(1, 11), shift=st.integers(-(10**6), 10**6), bias=st.sampled_from(
        ['separate', 'added']), seed=st.integers(0, 99),
)  # fmt: skip
@hypothesis.settings(max_examples=15, deadline=None)
def test_causal_and_invariant_to_the_origin_of_time(cut, shift, bias, seed):
    case = Case(((12,),), 12, heads=2, bias=bias)
    arguments = case.arguments(seed)
    want = outputs(case, arguments)
    later = case.arguments(seed + 1)
    for name in ("q", "k", "v", "timestamps", "query_times"):
        arguments[name] = arguments[name].copy()
        arguments[name][:, cut:] = later[name][:, cut:]
        if name in ("timestamps", "query_times"):
            arguments[name] = arguments[name] + np.int32(shift)
    got = outputs(case, arguments)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a[:, :cut], b[:, :cut], atol=1e-6)
        assert np.abs(a[:, cut:] - b[:, cut:]).max() > 1e-6


@hypothesis.given(seed=st.integers(0, 99))
@hypothesis.settings(max_examples=10, deadline=None)
def test_heads_and_rows_are_independent(seed):
    case = Case(((12,), (7,)), 12, heads=2, bias="separate")
    arguments = case.arguments(seed)
    want = outputs(case, arguments)
    flipped = {
        name: x[::-1].copy() if x.ndim == 2 else x[::-1, :, ::-1].copy() if x.ndim == 4 else x
        for name, x in arguments.items()
    }
    for a, b in zip(outputs(case, flipped), want, strict=True):
        np.testing.assert_allclose(a[::-1, :, ::-1], b, atol=1e-6)


def outputs(case, arguments):
    args = {
        name: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None)
        for name, x in arguments.items()
    }
    return [np.asarray(x) for x in _jitted(args, case) if x is not None]


def _call(args, case):
    return silu_attention(**args, **case.static, implementation="xla")


_jitted = jax.jit(_call, static_argnums=1)


GOOD = Case(((5,),), 5, heads=2)
BAD = [
    ({"bias": "add"}, "bias='add' is unknown; allowed are 'separate' and 'added'"),
    ({"k": None}, "q and k must both be given"),
    ({"q": None, "k": None, "bias": "added"}, "bias='added' needs q and k"),
    ({"q": None, "k": None, "time_weights": None, "position_weights": None}, "All channels are"),
    ({"position_weights": jnp.zeros(4)}, r"position_weights has shape \(4,\).*0\.\.4"),
    ({"timestamps": None}, "needs timestamps and query_times"),
    ({"segment_ids": jnp.ones((1, 5))}, r"segment_ids is float32\[1, 5\]; int32\[1, 5\]"),
    ({"query_times": jnp.zeros((1, 4), jnp.int32)}, r"query_times is int32\[1, 4\]"),
    ({"q": jnp.zeros((1, 5, 1, 4))}, r"q has shape \(1, 5, 1, 4\)"),
    ({"v": jnp.zeros((1, 5, 2, 4), jnp.bfloat16)}, "must be equal"),
    ({"v": jnp.zeros((1, 5, 8))}, r"v has shape \(1, 5, 8\)"),
    ({"implementation": "palas_tpu"}, "Did you mean 'pallas_tpu'"),
]


@pytest.mark.parametrize("change, message", BAD, ids=[m[:24] for _, m in BAD])
def test_bad_arguments(change, message):
    args = {
        name: jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else None)
        for name, x in GOOD.arguments().items()
    }
    with pytest.raises(ValueError, match=message):
        silu_attention(**{**args, **GOOD.static, **change})


def test_demanded_implementation_says_why_not():
    with ENABLE_X64(True):
        args = {name: jnp.asarray(x) for name, x in GOOD.arguments().items()}
        with pytest.raises(ImplementationUnavailableError, match="interpret: the TPU kernel takes"):
            silu_attention(**args, **GOOD.static, implementation="interpret")


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("case", CASES[:8], ids=str)
def test_auto_on_gpu(case):
    arguments = case.arguments()
    for name in ("q", "k", "v"):  # The definition is fed the same numbers.
        arguments[name] = np.asarray(jnp.asarray(arguments[name], jnp.bfloat16), np.float64)
    got = run(silu_attention, case, arguments, jnp.bfloat16, implementation="auto")
    assert_close(got, reference(case, arguments), 3e-2)


def test_auto_names_only_what_there_is():
    for rule in api.MEASURED:
        assert rule.implementation in api._TABLE and rule.variant in (None, *api.BIAS_MODES)
