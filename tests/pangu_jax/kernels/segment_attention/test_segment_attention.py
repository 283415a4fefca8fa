"""Segment attention: every implementation that runs here against the float64 definition, and the
definition against a loop over queries."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pangu_jax.kernels.implementation import (
    ImplementationUnavailableError,
    UnknownImplementationError,
)
from pangu_jax.kernels.segment_attention import segment_attention, xla_short
from pangu_jax.kernels.segment_attention.blocks import whole_blocks, work_list
from pangu_jax.kernels.segment_attention.reference import segment_attention_reference
from pangu_jax.kernels.segment_attention.xla import segment_attention_xla
from pangu_jax.kernels.segment_attention.xla_short import segment_attention_short


@dataclasses.dataclass(frozen=True)
class Case:
    """One call. rows: lengths of the documents of each row (the rest is padding), None: all one.

    order: 'row' (no positions given), 'given' (positions restart in each document), 'permuted'
    (columns shuffled with their ids), 'later' (queries are the last half of the keys).
    """

    length: int
    rows: tuple[tuple[int, ...], ...] | None = None
    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    width: int = 4
    window: int | None = None
    order: str = "row"

    def arguments(self, seed=0):
        rng = np.random.default_rng(seed)
        batch, n = (len(self.rows) if self.rows else self.batch), self.length
        ids = np.ones((batch, n), np.int32)
        positions = np.tile(np.arange(n, dtype=np.int32), (batch, 1))
        for row, lengths in enumerate(self.rows or ()):
            ids[row] = 0
            start = 0
            for number, size in enumerate(lengths):
                ids[row, start : start + size] = 3 * number + 2  # ids need not be consecutive
                positions[row, start : start + size] = np.arange(size)
                start += size
        args = {
            "q": rng.normal(size=(batch, n, self.heads, self.width)),
            "k": rng.normal(size=(batch, n, self.kv_heads, self.width)),
            "v": rng.normal(size=(batch, n, self.kv_heads, self.width)),
            "q_segment_ids": ids, "kv_segment_ids": ids,
            "q_positions": positions, "kv_positions": positions,
        }  # fmt: skip
        if self.order == "row":
            args["q_positions"] = args["kv_positions"] = None
        if self.rows is None and self.order != "later":
            args["q_segment_ids"] = args["kv_segment_ids"] = None
        if self.order == "permuted":
            shuffle = rng.permutation(n)
            args = {name: None if x is None else x[:, shuffle] for name, x in args.items()}
        if self.order == "later":
            for name in ("q", "q_segment_ids", "q_positions"):
                args[name] = args[name][:, n // 2 :]
        return args

    @property
    def static(self):
        return {"scale": self.width**-0.5, "window": self.window}

    def __str__(self):
        kind = "whole" if self.rows is None else "docs"
        window = "" if self.window is None else f"-w{self.window}"
        return f"{self.length}-{kind}-{self.order}{window}-{self.heads}x{self.kv_heads}"


DOCS = ((20, 13), (7, 1, 1, 14), (33,), ())
CASES = (
    Case(1),
    Case(33),
    Case(33, heads=3, kv_heads=1, width=6),
    Case(32, heads=2, kv_heads=2, window=5),
    Case(33, DOCS),
    Case(33, DOCS, order="given"),
    Case(33, DOCS, order="permuted"),
    Case(33, DOCS, order="permuted", window=4),
    Case(33, DOCS, order="later"),
    Case(33, order="later"),
    Case(33, order="permuted"),
    Case(33, DOCS, window=9),
    Case(33, ((), ())),
)


def run(function, arguments, dtype, **static):
    """Output and gradients by q, k and v, as NumPy float64."""
    args = {
        name: x if x is None or x.dtype == np.int32 else jnp.asarray(x, dtype)
        for name, x in arguments.items()
    }
    inputs = [args.pop(name) for name in "qkv"]

    @jax.jit
    def both(*inputs):
        out, pull = jax.vjp(lambda *x: function(*x, **args, **static), *inputs)
        g = np.random.default_rng(9).normal(size=out.shape)
        return (out, *pull(jnp.asarray(g, out.dtype)))

    return [np.asarray(x, np.float64) for x in both(*inputs)]


@functools.cache
def definition(case):
    with jax.enable_x64(True):
        return run(segment_attention_reference, case.arguments(), jnp.float64, **case.static)


def assert_close(got, want, tolerance):
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        error = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-3)
        assert error < tolerance, f"{name}: error {error:.1e} of the largest entry"


def loop(q, k, v, q_segment_ids, kv_segment_ids, q_positions, kv_positions, scale, window):
    """One query and head at a time, over a Python list of the keys it sees."""
    out = np.zeros_like(q)
    share = q.shape[2] // k.shape[2]
    for b, t, n in np.ndindex(q.shape[:3]):
        seen = []
        for s in range(k.shape[1]):
            same = q_segment_ids is None or (
                q_segment_ids[b, t] == kv_segment_ids[b, s] and q_segment_ids[b, t] > 0
            )
            at = (t, s) if q_positions is None else (q_positions[b, t], kv_positions[b, s])
            if same and at[1] <= at[0] and (window is None or at[0] - at[1] < window):
                seen.append(s)
        if seen:
            logits = np.array([q[b, t, n] @ k[b, s, n // share] for s in seen]) * scale
            weights = np.exp(logits - logits.max())
            out[b, t, n] = weights @ v[b, seen, n // share] / weights.sum()
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_definition_equals_a_loop_over_queries(case):
    want = loop(**case.arguments(), **case.static)
    np.testing.assert_allclose(definition(case)[0], want, atol=1e-12)


SHAPES = [(case, (8, 16)) for case in CASES]
SHAPES += [(CASES[5], (8, 8)), (CASES[6], (16, 8)), (CASES[8], (64, 64))]


@pytest.mark.parametrize("case, blocks", SHAPES, ids=str)
def test_blocks_equal_the_definition_in_float64(case, blocks):
    with jax.enable_x64(True):
        got = run(
            segment_attention_xla, case.arguments(), jnp.float64, **case.static,
            block_q=blocks[0], block_k=blocks[1],
        )  # fmt: skip
    assert_close(got, definition(case), 1e-12)


def short(*args, q_positions, kv_positions, **kwargs):
    assert q_positions is kv_positions is None
    return segment_attention_short(*args, **kwargs)


@pytest.mark.parametrize("case", [case for case in CASES if case.order == "row"], ids=str)
@pytest.mark.parametrize("block", [5, 8, 64])
def test_short_rows_equal_the_definition_in_float64(case, block):
    with jax.enable_x64(True):
        got = run(short, case.arguments(), jnp.float64, **case.static, block=block)
    assert_close(got, definition(case), 1e-12)


def test_short_rows_with_segments_of_keys_of_their_own():
    arguments = Case(33, DOCS).arguments()
    arguments["kv_segment_ids"] = np.roll(arguments["kv_segment_ids"], 3, axis=1)
    with jax.enable_x64(True):
        want = run(segment_attention_reference, arguments, jnp.float64, scale=0.5)
        got = run(short, arguments, jnp.float64, scale=0.5, block=8)
    assert_close(got, want, 1e-12)


@pytest.mark.parametrize(
    "length, order, documents, platform, wanted",
    [
        (256, "row", True, "cpu", "short"),
        (512, "row", False, "cpu", "short"),
        (512, "row", True, "cpu", "loop"),
        (513, "row", False, "cpu", "loop"),
        (64, "given", True, "cpu", "loop"),
        (64, "row", True, "gpu", "loop"),
    ],
)
def test_xla_takes_short_rows_side_by_side(length, order, documents, platform, wanted, monkeypatch):
    taken = []
    for name, label in (("segment_attention_short", "short"), ("segment_attention_xla", "loop")):
        monkeypatch.setattr(xla_short, name, lambda q, k, v, label=label, **_: taken.append(label))
    monkeypatch.setattr(xla_short, "current_platform", lambda: platform)
    case = Case(length, ((length,),) if documents else None, batch=1, order=order)
    xla_short.segment_attention_on_xla(**case.arguments(), **case.static)
    assert taken == [wanted]


@pytest.mark.parametrize("implementation", ["auto", "xla", "dense"])
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2)], ids=str)
def test_public_entry_in_lower_precision(implementation, dtype, tolerance):
    case = Case(150, ((70, 60), (150,), (5,), ()), width=8)
    got = run(
        segment_attention, case.arguments(), dtype, **case.static, implementation=implementation
    )
    assert_close(got, definition(case), tolerance)


@pytest.mark.parametrize("function", [segment_attention_reference, segment_attention_xla])
def test_padding_gives_zeros_and_takes_no_gradient(function):
    case = Case(33, DOCS)
    args = case.arguments()
    padding = args["q_segment_ids"] == 0
    for x in run(function, args, jnp.float32, **case.static):
        assert np.isfinite(x).all()
        assert (x[padding] == 0).all()


@jax.jit
def packed_attention(q, k, v, ids):
    return segment_attention_xla(
        q, k, v, q_segment_ids=ids, kv_segment_ids=ids, scale=0.5, block_q=8, block_k=8
    )


@hypothesis.settings(max_examples=15)
@hypothesis.given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 2**31 - 1))
def test_packed_documents_equal_documents_alone(lengths, seed):
    rng = np.random.default_rng(seed)
    n = 24
    while sum(lengths) > n:
        lengths = lengths[:-1]
    q, k, v = (rng.normal(size=(1, n, heads, 4)).astype(np.float32) for heads in (4, 2, 2))
    ids = np.zeros((1, n), np.int32)
    ids[0, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    packed = packed_attention(q, k, v, ids)
    start = 0
    for size in lengths:
        part = np.s_[:, start : start + size]
        alone = loop(q[part], k[part], v[part], None, None, None, None, 0.5, None)
        np.testing.assert_allclose(packed[part], alone, atol=2e-6)
        start += size


def test_work_list_holds_every_visible_pair_and_skips_the_rest():
    """Against the dense mask: no visible pair is missed; in row order, and with short documents in
    permuted order, no block without a visible pair is visited."""
    size, count = 8, 12
    lengths = (20, 4, 30, 9, 33)
    for order in ("row", "given", "permuted"):
        case = Case(size * count, (lengths,), order=order)
        args = case.arguments()
        ids = [args[x] for x in ("q_segment_ids", "kv_segment_ids", "q_positions", "kv_positions")]
        work = work_list(*ids, blocks=(count, count), sizes=(size, size), window=None)
        dense = np.zeros((size * count,) * 2, bool)
        position = np.tile(np.arange(size * count), (1, 1)) if ids[2] is None else ids[2]
        for t, s in np.ndindex(dense.shape):
            same = ids[0][0, t] == ids[0][0, s] > 0
            dense[t, s] = same and position[0, s] <= position[0, t]
        needed = dense.reshape(count, size, count, size).any((1, 3))
        visited = np.zeros_like(needed)
        for i in range(count):
            visited[i, np.asarray(work.keys[i])[: work.count[i]]] = True
        assert not (needed & ~visited).any(), order
        if order != "permuted":
            assert (needed == visited).all(), order
        for window in (None, 19):
            distance = position[0][:, None] - position[0][None]
            seen = dense & (distance < (window or 1000))
            whole = whole_blocks(*ids, blocks=(count, count), sizes=(size, size), window=window)
            all_seen = seen.reshape(count, size, count, size).all((1, 3))
            assert (np.asarray(whole[0]) == all_seen).all(), (order, window)
            assert all_seen.any() == (order != "permuted")


def arrays_in(jaxpr):
    """Sizes of all arrays that a jaxpr and those inside it make."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield variable.aval.size
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from arrays_in(inner)


@pytest.mark.parametrize("function, is_small", [(segment_attention_xla, True),
                                                (segment_attention_reference, False)])  # fmt: skip
def test_no_array_of_queries_times_keys(function, is_small):
    """Forward and backward at T = 4096; the dense form shows that the test sees such arrays."""
    n = 4096
    x = jax.ShapeDtypeStruct((1, n, 1, 4), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, n), jnp.int32)

    def both(q, k, v, ids, positions):
        given = dict(q_segment_ids=ids, kv_segment_ids=ids)
        if positions is not None:
            given |= dict(q_positions=positions, kv_positions=positions)
        out, pull = jax.vjp(lambda *x: function(*x, **given, scale=1.0), q, k, v)
        return pull(out)

    for positions in (ids, None):
        jaxpr = jax.make_jaxpr(both)(x, x, x, ids, positions).jaxpr
        largest = max(arrays_in(jaxpr))
        assert (largest < n * n) == is_small, largest


def test_remat_changes_nothing():
    case = Case(33, DOCS)
    plain = run(segment_attention_xla, case.arguments(), jnp.float32, **case.static)

    def twice(q, k, v, **kwargs):
        function = functools.partial(segment_attention_xla, **kwargs)
        return jax.checkpoint(function, policy=jax.checkpoint_policies.nothing_saveable)(q, k, v)

    assert_close(run(twice, case.arguments(), jnp.float32, **case.static), plain, 1e-6)


def test_cudnn_and_splash_say_why_they_cannot():
    x = jnp.zeros((1, 8, 2, 4), jnp.bfloat16)
    ids = jnp.ones((1, 8), jnp.int32)
    with pytest.raises(ImplementationUnavailableError, match="NVIDIA GPU"):
        segment_attention(x, x, x, scale=1.0, implementation="cudnn")
    with pytest.raises(ImplementationUnavailableError, match="one document per row"):
        segment_attention(
            x, x, x, q_segment_ids=ids, kv_segment_ids=ids, scale=1.0, implementation="cudnn"
        )
    with pytest.raises(ImplementationUnavailableError, match="row order only"):
        segment_attention(
            x, x, x, q_positions=ids, kv_positions=ids, scale=1.0, implementation="splash"
        )
    with pytest.raises(UnknownImplementationError, match="Did you mean"):
        segment_attention(x, x, x, scale=1.0, implementation="xl")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": np.zeros((2, 8, 3, 4), "f4"), "v": np.zeros((2, 8, 3, 4), "f4")}, "no multiple"),
        ({"v": np.zeros((2, 8, 2, 6), "f4")}, "both must be"),
        ({"k": np.zeros((2, 8, 2, 4), "f2")}, "one floating type"),
        ({"q_segment_ids": np.ones((2, 8), "i4")}, "both be None"),
        ({"q": np.zeros((2, 5, 4, 4), "f4")}, "are needed"),
        ({"q_positions": np.zeros((2, 8), "i8"), "kv_positions": np.zeros((2, 8), "i4")}, "int32"),
        ({"window": 0}, "at least 1"),
        ({"q": np.zeros((2, 8, 4), "f4")}, "is needed"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    arguments = {"q": np.zeros((2, 8, 4, 4), "f4")}
    arguments |= {name: np.zeros((2, 8, 2, 4), "f4") for name in "kv"}
    with pytest.raises(ValueError, match=message):
        segment_attention(**(arguments | {"scale": 1.0} | change))
