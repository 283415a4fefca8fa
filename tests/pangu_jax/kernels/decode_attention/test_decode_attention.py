"""Decode attention: implementations that run here against the float64 definition, the definition
against a loop over queries and against segment attention, and what pages must not change."""

from __future__ import annotations

import dataclasses
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pangu_jax.kernels.decode_attention import decode_attention, gather_pages
from pangu_jax.kernels.decode_attention.reference import decode_attention_reference
from pangu_jax.kernels.decode_attention.xla import _span, decode_attention_xla
from pangu_jax.kernels.implementation import UnknownImplementationError
from pangu_jax.kernels.segment_attention import segment_attention

SCALE = 0.3


@dataclasses.dataclass(frozen=True)
class Case:
    """One call; the pool has a few pages that no row owns."""

    lengths: tuple[int, ...]
    queries: int = 1
    heads: int = 6
    kv_heads: int = 2
    width: int = 8
    page: int = 4
    pages: int = 5
    window: int | None = None

    def arguments(self, seed=0):
        rng = np.random.default_rng(seed)
        batch = len(self.lengths)
        pool = (batch * self.pages + 3, self.kv_heads, self.page, self.width)
        tables = rng.permutation(pool[0])[: batch * self.pages].reshape(batch, self.pages)
        return {
            "q": rng.normal(size=(batch, self.queries, self.heads, self.width)),
            "k_pages": rng.normal(size=pool),
            "v_pages": rng.normal(size=pool),
            "block_tables": tables.astype(np.int32),
            "lengths": np.array(self.lengths, np.int32),
        }

    def __str__(self):
        lengths = ".".join(map(str, self.lengths))
        window = "" if self.window is None else f"-w{self.window}"
        return f"{lengths}-c{self.queries}-{self.heads}x{self.kv_heads}-p{self.page}{window}"


# Lengths of nothing, one key, one short of a page, a whole page, one more, all slots.
CASES = (
    Case((0, 1, 3, 4, 5, 19, 20)),
    Case((0, 1, 3, 4, 5, 19, 20), window=5),
    Case((0, 2, 7, 20), queries=7),
    Case((0, 2, 13, 20), queries=3, window=4),
    Case((9, 33), heads=3, kv_heads=1, width=6, page=16, pages=3),
    Case((17,), queries=20, heads=2, kv_heads=2, pages=7),
    Case((3, 2), heads=4, kv_heads=1, page=8, pages=1),
)


def converted(arguments, dtype):
    return {n: jnp.asarray(x, None if x.dtype == np.int32 else dtype) for n, x in arguments.items()}


def run(function, arguments, dtype, **static):
    """Output as NumPy float64."""
    call = jax.jit(functools.partial(function, scale=SCALE, **static))
    return np.asarray(call(**converted(arguments, dtype)), np.float64)


@functools.cache
def definition(case):
    with jax.enable_x64(True):
        return run(decode_attention_reference, case.arguments(), jnp.float64, window=case.window)


def loop(q, k_pages, v_pages, block_tables, lengths, window):
    """One query and head at a time, over a Python list of the slots it sees."""
    out = np.zeros_like(q)
    batch, queries, heads, _ = q.shape
    kv_heads, page = k_pages.shape[1:3]
    for b, c, n in np.ndindex(batch, queries, heads):
        at = lengths[b] - queries + c
        first = 0 if window is None else max(0, at - window + 1)
        slots = [(block_tables[b, p // page], n * kv_heads // heads, p % page)
                 for p in range(first, at + 1)]  # fmt: skip
        if slots:
            logits = np.array([q[b, c, n] @ k_pages[slot] for slot in slots]) * SCALE
            weights = np.exp(logits - logits.max())
            out[b, c, n] = weights @ np.array([v_pages[s] for s in slots]) / weights.sum()
    return out


@pytest.mark.parametrize("case", CASES, ids=str)
def test_definition_equals_a_loop_over_queries(case):
    want = loop(**case.arguments(), window=case.window)
    np.testing.assert_allclose(definition(case), want, atol=1e-12)


@pytest.mark.parametrize("pages_per_turn", [1, 2, None])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_turns_equal_the_definition_in_float64(case, pages_per_turn):
    with jax.enable_x64(True):
        got = run(
            decode_attention_xla, case.arguments(), jnp.float64, window=case.window,
            pages_per_turn=pages_per_turn,
        )  # fmt: skip
    np.testing.assert_allclose(got, definition(case), atol=1e-12)


@pytest.mark.parametrize("implementation", ["auto", "xla"])
@pytest.mark.parametrize(
    "dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 3e-2), (jnp.float16, 4e-3)], ids=str
)
def test_public_entry_in_lower_precision(implementation, dtype, tolerance):
    for case in CASES[1:4]:
        got = run(
            decode_attention, case.arguments(), dtype, window=case.window,
            implementation=implementation,
        )  # fmt: skip
        np.testing.assert_allclose(got, definition(case), atol=tolerance)


def test_float32_queries_on_16_bit_pages_round_the_pages_alone():
    args = CASES[0].arguments()
    for dtype in (jnp.bfloat16, jnp.float16):
        call = converted(args, jnp.float32)
        rounded = {n: call[n].astype(dtype) for n in ("k_pages", "v_pages")}
        got = decode_attention(**(call | rounded), scale=SCALE)
        again = {n: x.astype(jnp.float32) for n, x in rounded.items()}
        want = decode_attention(**(call | again), scale=SCALE)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_one_query_may_come_without_its_axis():
    args = converted(CASES[0].arguments(), jnp.float32)
    with_axis = decode_attention(**args, scale=SCALE)
    args["q"] = args["q"][:, 0]
    np.testing.assert_array_equal(decode_attention(**args, scale=SCALE), with_axis[:, 0])


@functools.partial(jax.jit, static_argnames=("window", "pages_per_turn"))
def turns(q, k_pages, v_pages, block_tables, lengths, window=None, pages_per_turn=2):
    return decode_attention_xla(
        q, k_pages, v_pages, block_tables, lengths, scale=SCALE, window=window,
        pages_per_turn=pages_per_turn,
    )  # fmt: skip


any_lengths = st.lists(st.integers(0, 20), min_size=4, max_size=4)
windows = st.sampled_from([None, 1, 6])
seeds = st.integers(0, 2**31 - 1)


@hypothesis.given(any_lengths, windows, seeds)
def test_where_pages_lie_changes_nothing(lengths, window, seed):
    args = converted(Case(tuple(lengths), queries=3).arguments(seed), jnp.float32)
    want = turns(**args, window=window)
    place = np.random.default_rng(seed).permutation(len(args["k_pages"]))
    moved = dict(args, block_tables=jnp.asarray(place, jnp.int32)[args["block_tables"]])
    for name in ("k_pages", "v_pages"):
        moved[name] = args[name].at[place].set(args[name])
    np.testing.assert_array_equal(turns(**moved, window=window), want)


@pytest.mark.parametrize("implementation", ["xla", "definition"])
@hypothesis.given(any_lengths, windows, seeds, st.sampled_from([np.nan, np.inf, 1e30]))
def test_what_nobody_sees_changes_nothing(implementation, lengths, window, seed, garbage):
    """Garbage in pages of nobody, in slots past the length, and before the window of the row's
    oldest query; block tables past the length name any page."""
    function = turns if implementation == "xla" else jax.jit(
        functools.partial(decode_attention_reference, scale=SCALE), static_argnames="window"
    )  # fmt: skip
    case = Case(tuple(lengths), queries=3)
    args = case.arguments(seed)
    want = function(**converted(args, jnp.float32), window=window)
    seen = np.zeros(args["k_pages"].shape[:1] + (case.page,), bool)
    tables = args["block_tables"].copy()
    for b, length in enumerate(lengths):
        oldest = 0 if window is None else max(0, length - case.queries - window + 1)
        for p in range(oldest, length):
            seen[tables[b, p // case.page], p % case.page] = True
        tables[b, -(-length // case.page) :] = seed % len(seen)
    spoiled = dict(args, block_tables=tables)
    for name in ("k_pages", "v_pages"):
        spoiled[name] = np.where(seen[:, None, :, None], args[name], garbage)
    got = function(**converted(spoiled, jnp.float32), window=window)
    np.testing.assert_array_equal(got, want)


@hypothesis.given(any_lengths, windows, seeds)
def test_rows_together_equal_rows_alone(lengths, window, seed):
    args = converted(Case(tuple(lengths), queries=3).arguments(seed), jnp.float32)
    together = turns(**args, window=window)
    for b in range(len(lengths)):
        own = {n: args[n][b : b + 1] for n in ("q", "block_tables", "lengths")}
        alone = turns(**(args | own), window=window)
        np.testing.assert_allclose(together[b], alone[0], atol=1e-6)


@hypothesis.given(any_lengths, windows, seeds)
def test_a_chunk_equals_its_queries_one_by_one(lengths, window, seed):
    args = converted(Case(tuple(lengths), queries=5).arguments(seed), jnp.float32)
    together = turns(**args, window=window)
    for c in range(5):
        one = dict(args, q=args["q"][:, c : c + 1])
        one["lengths"] = jnp.maximum(args["lengths"] - 4 + c, 0)
        np.testing.assert_allclose(turns(**one, window=window)[:, 0], together[:, c], atol=1e-6)


@hypothesis.settings(max_examples=10)
@hypothesis.given(any_lengths, windows, seeds)
def test_equals_segment_attention_over_the_keys_in_a_row(lengths, window, seed):
    queries = 4
    args = converted(Case(tuple(lengths), queries=queries).arguments(seed), jnp.float32)
    k, v = (
        jnp.moveaxis(gather_pages(args[n], args["block_tables"]), 1, 2)
        for n in ("k_pages", "v_pages")
    )
    rows, slots = k.shape[:2]
    at = args["lengths"][:, None] - queries + jnp.arange(queries, dtype=jnp.int32)
    order = jnp.broadcast_to(jnp.arange(slots, dtype=jnp.int32), (rows, slots))
    want = segment_attention(
        args["q"], k, v, q_segment_ids=(at >= 0).astype(jnp.int32),
        kv_segment_ids=(order < args["lengths"][:, None]).astype(jnp.int32),
        q_positions=at, kv_positions=order, scale=SCALE, window=window,
    )  # fmt: skip
    np.testing.assert_allclose(turns(**args, window=window), want, atol=2e-6)


def test_turns_past_the_longest_row_and_before_the_window_are_not_taken():
    """The bounds of the loop, which must be one."""
    args = converted(Case((9, 12), pages=50).arguments(), jnp.float32)
    text = jax.jit(functools.partial(turns, pages_per_turn=1)).lower(**args).as_text()
    assert "stablehlo.while" in text

    def span(lengths, queries, window, size):
        return tuple(map(int, _span(jnp.asarray(lengths, jnp.int32), queries, window, size)))

    assert span((9, 12), 1, None, 4) == (0, 3)
    assert span((9, 13), 1, None, 4) == (0, 4)
    assert span((0, 0), 1, 3, 4) == (0, 0)
    # The older row's oldest visible slot is 41 - 2 - 8 + 1 = 32; the idle row does not count.
    assert span((41, 60, 0), 2, 8, 8) == (4, 8)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"q": np.zeros((2, 4), "f4")}, "rows, heads, width"),
        ({"k_pages": np.zeros((5, 3, 8, 4), "f4"), "v_pages": np.zeros((5, 3, 8, 4), "f4")},
         "no multiple"),
        ({"v_pages": np.zeros((5, 2, 8, 6), "f4")}, "both must be"),
        ({"v_pages": np.zeros((5, 2, 8, 4), "f2")}, "one type for both"),
        ({"k_pages": np.zeros((5, 2, 8, 4), "i1"), "v_pages": np.zeros((5, 2, 8, 4), "i1")},
         "of float64, float32, bfloat16, float16"),
        ({"q": np.zeros((2, 4, 4), "i4")}, "floating"),
        ({"block_tables": np.zeros((3, 3), "i4")}, r"int32\[2, pages"),
        ({"block_tables": np.zeros((2, 3), "i8")}, "int64"),
        ({"lengths": np.zeros((2, 1), "i4")}, r"int32\[2\] is needed"),
        ({"window": 0}, "at least 1"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(change, message):
    arguments = {
        "q": np.zeros((2, 4, 4), "f4"),
        "k_pages": np.zeros((5, 2, 8, 4), "f4"),
        "v_pages": np.zeros((5, 2, 8, 4), "f4"),
        "block_tables": np.zeros((2, 3), "i4"),
        "lengths": np.zeros(2, "i4"),
    }
    with pytest.raises(ValueError, match=message):
        decode_attention(**(arguments | {"scale": 1.0} | change))


def test_unknown_implementation():
    args = converted(CASES[0].arguments(), jnp.float32)
    with pytest.raises(UnknownImplementationError, match="Did you mean"):
        decode_attention(**args, scale=1.0, implementation="xl")
