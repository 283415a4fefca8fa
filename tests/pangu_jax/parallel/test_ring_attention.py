"""Attention over a divided sequence, on fake devices: values and gradients of the undivided op,
whatever the order of the tokens, and what is exchanged on the way."""

from __future__ import annotations

import collections
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pangu_jax.kernels.implementation import ImplementationUnavailableError
from pangu_jax.kernels.segment_attention import segment_attention
from pangu_jax.kernels.segment_attention.reference import segment_attention_reference
from pangu_jax.parallel.ring_attention import gathered_segment_attention, ring_segment_attention

STRATEGIES = [ring_segment_attention, gathered_segment_attention]
NAMES = ("out", "dq", "dk", "dv")
SHARDED = jax.P(None, "context")


def zigzag(documents, ranks):
    """(segment ids, positions), each int32 [ranks * shard]: every document cut into 2 * ranks
    pieces of nearly equal length, of which rank r takes r and 2 * ranks - 1 - r; shards are filled
    up with padding to equal length."""
    shards = [([], []) for _ in range(ranks)]
    for number, size in enumerate(documents):
        pieces = np.array_split(np.arange(size), 2 * ranks)
        for rank, (ids, positions) in enumerate(shards):
            for piece in (pieces[rank], pieces[2 * ranks - 1 - rank]):
                ids.extend([number + 1] * len(piece))
                positions.extend(piece)
    longest = max(max(len(ids) for ids, _ in shards), 1)
    padded = [
        [part + [0] * (longest - len(part)) for part in shard] for shard in shards
    ]  # fmt: skip
    return (np.concatenate([shard[n] for shard in padded]).astype(np.int32) for n in (0, 1))


def rows_of(documents, ranks, length):
    """Ids and positions [rows, length] of rows of documents; length is a multiple of ranks."""
    ids, positions = np.zeros((2, len(documents), ranks, length // ranks), np.int32)
    for row, lengths in enumerate(documents):
        for whole, part in zip((ids, positions), zigzag(lengths, ranks), strict=True):
            part = part.reshape(ranks, -1)
            whole[row, :, : part.shape[1]] = part
    return ids.reshape(len(documents), -1), positions.reshape(len(documents), -1)


def arguments(ids, positions, heads=4, kv_heads=2, width=5, seed=0):
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(size=(*ids.shape, n, width))
        for name, n in (("q", heads), ("k", kv_heads), ("v", kv_heads), ("d_out", heads))
    }
    return arrays | {"ids": ids, "positions": positions}


def keywords(ids, positions):
    return {
        "q_segment_ids": ids, "kv_segment_ids": ids,
        "q_positions": positions, "kv_positions": positions,
    }  # fmt: skip


def training(function, **static):
    """(q, k, v, d_out, ids, positions) -> (out, dq, dk, dv)."""

    def step(q, k, v, d_out, ids, positions):
        given = keywords(ids, positions)
        out, pull = jax.vjp(lambda *x: function(*x, **given, scale=0.4, **static), q, k, v)
        return out, *pull(d_out)

    return step


def divided(function, ranks, **static):
    """`training` with the sequence over `ranks` devices."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:ranks]), ("context",))
    step = training(function, axis_name="context", **static)
    return jax.jit(
        jax.shard_map(step, mesh=mesh, in_specs=SHARDED, out_specs=SHARDED, check_vma=False)
    )


def run(step, args, dtype):
    arrays = [jnp.asarray(args[name], dtype) for name in ("q", "k", "v", "d_out")]
    return [np.asarray(x, np.float64) for x in step(*arrays, args["ids"], args["positions"])]


def definition(args, window=None):
    with jax.enable_x64(True):
        step = jax.jit(training(segment_attention_reference, window=window))
        return run(step, args, jnp.float64)


def assert_close(got, want, tolerance):
    for name, a, b in zip(NAMES, got, want, strict=True):
        error = np.abs(a - b).max() / max(np.abs(b).max(), 0.1)  # dq of one token alone is 0
        assert error < tolerance, f"{name}: error {error:.1e} of the largest entry"


CASES = {
    # ranks, documents of each row, length, window, (heads, kv_heads, width)
    "2": (2, ((23, 9), (40,)), 42, None, (4, 2, 5)),
    "3_window": (3, ((23, 9), (40,)), 45, 11, (3, 1, 4)),
    "4": (4, ((31, 2, 1, 13), (5,), ()), 68, None, (4, 2, 5)),
    "8": (8, ((70, 9), (33, 40)), 88, 30, (2, 2, 3)),
}


@pytest.mark.parametrize("function", STRATEGIES)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_undivided_op(function, name):
    """Zigzag order, grouped heads, padding inside and a row of nothing else, odd sizes."""
    ranks, documents, length, window, heads = CASES[name]
    args = arguments(*rows_of(documents, ranks, length), *heads)
    step = divided(function, ranks, window=window)
    got = run(step, args, jnp.float32)
    assert_close(got, definition(args, window), 1e-5)
    padding = args["ids"] == 0
    assert padding.any() and all((x[padding] == 0).all() for x in got)
    if name == "4":
        with jax.enable_x64(True):
            got = run(divided(function, ranks, window=window), args, jnp.float64)
        assert_close(got, definition(args, window), 1e-12)
        assert_close(run(step, args, jnp.bfloat16), definition(args, window), 3e-2)


def test_more_than_one_block_of_a_shard():
    """Shards longer than the 64 positions of a block on CPU, and no whole number of blocks."""
    args = arguments(*rows_of(((150, 51),), 2, 210), 2, 1, 4)
    for function in STRATEGIES:
        assert_close(run(divided(function, 2), args, jnp.float32), definition(args), 1e-5)


@functools.cache
def compiled(function):
    return divided(function, 4)


@hypothesis.settings(max_examples=10)
@hypothesis.given(
    st.lists(st.integers(1, 30), max_size=5), st.booleans(), st.integers(0, 2**31 - 1)
)
def test_random_documents_in_any_order(lengths, shuffled, seed):
    """Zigzag or wholly shuffled; one row, one compilation."""
    length = 4 * 17
    while sum(-(-n // 8) * 2 for n in lengths) > length // 4:
        lengths = lengths[:-1]
    ids, positions = rows_of((lengths,), 4, length)
    if shuffled:
        columns = np.random.default_rng(seed).permutation(length)
        ids, positions = ids[:, columns], positions[:, columns]
    args = arguments(ids, positions, seed=seed)
    want = definition(args)
    for function in STRATEGIES:
        assert_close(run(compiled(function), args, jnp.float32), want, 1e-5)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("function", STRATEGIES)
def test_one_rank_and_no_segments(function, ranks):
    """Segment ids None, and an axis of size 1: the same as the public op in row order."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, 12, n, 4)), jnp.float32) for n in (4, 2, 2))
    positions = jnp.tile(jnp.arange(12, dtype=jnp.int32), (2, 1))

    def local(q, k, v, positions):
        return function(
            q, k, v, q_positions=positions, kv_positions=positions, scale=0.5, axis_name="context"
        )

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:ranks]), ("context",))
    step = jax.shard_map(local, mesh=mesh, in_specs=SHARDED, out_specs=SHARDED, check_vma=False)
    want = segment_attention(q, k, v, scale=0.5)
    np.testing.assert_allclose(jax.jit(step)(q, k, v, positions), want, atol=1e-6)


def equations_in(jaxpr, times=1):
    """(equation, how often it runs) of a jaxpr and those inside it; loops with a known length."""
    for equation in jaxpr.eqns:
        yield equation, times
        inside = (
            times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        )
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations_in(inner, inside)


COLLECTIVES = ("ppermute", "all_gather", "reduce_scatter", "psum", "all_to_all", "pmax")


def collectives(function, ranks, backward, length=64):
    """Counter of (collective, rank of the array) as they run, and the largest array."""
    x = jax.ShapeDtypeStruct((1, length * ranks, 1, 4), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length * ranks), jnp.int32)
    step = divided(function, ranks)
    if not backward:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:ranks]), ("context",))
        step = jax.shard_map(
            lambda q, k, v, _, ids, positions: function(
                q, k, v, **keywords(ids, positions), scale=1.0, axis_name="context"
            ),
            mesh=mesh, in_specs=SHARDED, out_specs=SHARDED, check_vma=False,
        )  # fmt: skip
    count, largest = collections.Counter(), 0
    for equation, times in equations_in(jax.make_jaxpr(step)(x, x, x, x, ids, ids).jaxpr):
        if equation.primitive.name in COLLECTIVES:
            count[equation.primitive.name, equation.invars[0].aval.ndim] += times
        for variable in equation.outvars:
            largest = max(largest, variable.aval.size)
    return count, largest


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8])
def test_hops_of_the_ring(ranks):
    """Keys and ids (arrays of rank 5 and 3) take ranks - 1 hops forward; backward they do so once
    more, and the gradients of keys and values as often. Nothing else is exchanged."""
    hops = ranks - 1
    forward, _ = collectives(ring_segment_attention, ranks, backward=False)
    both, _ = collectives(ring_segment_attention, ranks, backward=True)
    assert forward == collections.Counter(
        {("ppermute", 5): hops, ("ppermute", 3): hops} if hops else {}
    )
    assert both == collections.Counter(
        {("ppermute", 5): 3 * hops, ("ppermute", 3): 2 * hops} if hops else {}
    )


def test_no_hop_in_a_loop_waits_for_the_work_beside_it():
    """What is sent in a loop's body is what the body was given."""
    x = jax.ShapeDtypeStruct((1, 40, 1, 4), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, 40), jnp.int32)
    jaxpr = jax.make_jaxpr(divided(ring_segment_attention, 5))(x, x, x, x, ids, ids).jaxpr
    hops = 0
    for equation, _ in equations_in(jaxpr):
        if equation.primitive.name == "scan":
            body = equation.params["jaxpr"].jaxpr
            for inner in body.eqns:
                if inner.primitive.name == "ppermute":
                    hops += 1
                    assert inner.invars[0] in body.invars
    assert hops == 2 + 3  # Forward keys and ids; backward their gradients as well.


def test_collectives_of_the_gathered_form():
    forward, _ = collectives(gathered_segment_attention, 4, backward=False)
    both, _ = collectives(gathered_segment_attention, 4, backward=True)
    assert forward == {("all_gather", 5): 1, ("all_gather", 3): 1}
    assert both == {("all_gather", 5): 2, ("all_gather", 3): 2, ("reduce_scatter", 5): 1}


@pytest.mark.parametrize("function", STRATEGIES)
def test_compiled_program_exchanges_nothing_else(function):
    args = arguments(*rows_of(((20,),), 4, 24))
    arrays = [jnp.asarray(args[name], jnp.float32) for name in ("q", "k", "v", "d_out")]
    text = divided(function, 4).lower(*arrays, args["ids"], args["positions"]).compile().as_text()
    ring = function is ring_segment_attention
    assert (" collective-permute" in text) == ring
    for name in ("all-gather", "reduce-scatter"):
        assert (f" {name}" in text) != ring
    assert " all-reduce" not in text and " all-to-all" not in text


def test_no_array_of_queries_times_keys():
    """At 2048 positions per rank: neither local queries by local keys, nor by all keys."""
    for function in STRATEGIES:
        _, largest = collectives(function, 2, backward=True, length=2048)
        assert largest < 2048**2


def test_recomputation_keeps_the_result_by_name():
    """Under the policy that keeps attention's result, the ring does not run forward twice."""
    ranks = 4
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:ranks]), ("context",))
    names = jax.checkpoint_policies.save_only_these_names("segment_attention")

    def hops(policy):
        def local(q, ids):
            def attend(q):
                return ring_segment_attention(
                    q, q, q, **keywords(ids, ids), scale=1.0, axis_name="context"
                )

            kept = jax.checkpoint(attend, policy=policy)
            value, gradient = jax.value_and_grad(lambda q: jnp.sum(kept(q)))(q)
            return value[None], gradient

        step = jax.shard_map(
            local, mesh=mesh, in_specs=SHARDED, out_specs=(jax.P("context"), SHARDED),
            check_vma=False,
        )  # fmt: skip
        q = jax.ShapeDtypeStruct((1, 32, 1, 4), jnp.float32)
        ids = jax.ShapeDtypeStruct((1, 32), jnp.int32)
        text = jax.jit(step).lower(q, ids).compile().as_text()
        return text.count(" collective-permute(")

    # A forward ring is a loop with two hops in its body: keys and ids.
    assert hops(jax.checkpoint_policies.nothing_saveable) - hops(names) == 2


def test_arguments_that_do_not_fit():
    x = jnp.ones((1, 6, 2, 4))
    ids = jnp.ones((1, 6), jnp.int32)
    for function in STRATEGIES:
        with pytest.raises(ValueError, match="q_positions and kv_positions are needed"):
            function(x, x, x, q_positions=None, kv_positions=None, scale=1.0, axis_name="context")
        with pytest.raises(ValueError, match="no multiple"):
            function(
                x[:, :, :1], x, x, q_positions=ids, kv_positions=ids, scale=1.0,
                axis_name="context",
            )  # fmt: skip
        with pytest.raises(ImplementationUnavailableError, match="'dense' cannot"):
            args = arguments(np.ones((1, 8), np.int32), np.ones((1, 8), np.int32))
            run(divided(function, 2, implementation="dense"), args, jnp.float32)
