"""Products with divided weights, on fake devices: values and gradients of the undivided products,
and which collectives the compiled programs hold."""

from __future__ import annotations

import re

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pangu_jax.parallel.collective_matmul import (
    copy_products,
    gather_products,
    product_scatter,
    product_sum,
)
from pangu_jax.parallel.mesh import MeshError

P = jax.P
EQUATIONS = ("btd,dnh->btnh", "btd,df->btf")
BACK = "btnh,nhd->btd"


def mesh(ranks):
    return jax.sharding.Mesh(np.array(jax.devices()[:ranks]), ("tensor",))


def arrays(ranks, rows=2, per_rank=3, width=5, heads=1, head=3, columns=2, seed=0):
    """x, kernels of the way in and back, and cotangents for a block; all whole."""
    rng = np.random.default_rng(seed)
    length, heads, columns = per_rank * ranks, heads * ranks, columns * ranks
    shapes = {
        "x": (rows, length, width),
        "k1": (width, heads, head),
        "k2": (width, columns),
        "back": (heads, head, width),
        "dy1": (rows, length, heads, head),
        "dy2": (rows, length, columns),
        "dy": (rows, length, width),
    }
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


SEQUENCE = P(None, "tensor")
INWARD = {"k1": P(None, "tensor"), "k2": P(None, "tensor")}
SPLIT = {"dy1": P(None, None, "tensor"), "dy2": P(None, None, "tensor")}
ROWS = {"back": P("tensor")}


def way_in(a):
    """Whole products of x with two kernels, and gradients of x and of the kernels."""
    ys, pull = jax.vjp(
        lambda x, k1, k2: (jnp.einsum(EQUATIONS[0], x, k1), jnp.einsum(EQUATIONS[1], x, k2)),
        a["x"], a["k1"], a["k2"],
    )  # fmt: skip
    return *ys, *pull((a["dy1"], a["dy2"]))


def way_back(a):
    y, pull = jax.vjp(lambda x, k: jnp.einsum(BACK, x, k), a["dy1"], a["back"])
    return y, *pull(a["dy"])


def divided_way_in(ranks, function, stream, **static):
    def local(x, k1, k2, dy1, dy2):
        def products(x, k1, k2):
            return function(x, (k1, k2), equations=EQUATIONS, axis_name="tensor", **static)

        ys, pull = jax.vjp(products, x, k1, k2)
        return *ys, *pull((dy1, dy2))

    split = tuple(SPLIT.values())
    specs = (stream, *INWARD.values(), *split)
    outs = (*split, stream, *INWARD.values())
    step = jax.jit(
        jax.shard_map(local, mesh=mesh(ranks), in_specs=specs, out_specs=outs, check_vma=False)
    )
    return step, ("x", "k1", "k2", "dy1", "dy2")


def divided_way_back(ranks, function, stream, **static):
    def local(x, kernel, dy):
        y, pull = jax.vjp(
            lambda x, k: function(BACK, x, k, axis_name="tensor", **static), x, kernel
        )
        return y, *pull(dy)

    specs = (SPLIT["dy1"], ROWS["back"], stream)
    outs = (stream, SPLIT["dy1"], ROWS["back"])
    step = jax.jit(
        jax.shard_map(local, mesh=mesh(ranks), in_specs=specs, out_specs=outs, check_vma=False)
    )
    return step, ("dy1", "back", "dy")


FORMS = {
    "gather": (divided_way_in, gather_products, SEQUENCE, {"overlap": False}, way_in),
    "gather_overlap": (divided_way_in, gather_products, SEQUENCE, {"overlap": True}, way_in),
    "copy": (divided_way_in, copy_products, P(), {}, way_in),
    "scatter": (divided_way_back, product_scatter, SEQUENCE, {"overlap": False}, way_back),
    "scatter_overlap": (divided_way_back, product_scatter, SEQUENCE, {"overlap": True}, way_back),
    "sum": (divided_way_back, product_sum, P(), {}, way_back),
}


def built(form, ranks):
    build, function, stream, static, whole = FORMS[form]
    step, names = build(ranks, function, stream, **static)
    return step, names, whole


def run(step, names, a, dtype):
    return [np.asarray(x, np.float64) for x in step(*(jnp.asarray(a[n], dtype) for n in names))]


def definition(whole, a):
    with jax.enable_x64(True):
        return [np.asarray(x) for x in whole({n: jnp.asarray(x) for n, x in a.items()})]


def assert_close(got, want, tolerance):
    for n, (a, b) in enumerate(zip(got, want, strict=True)):
        error = np.abs(a - b).max() / np.abs(b).max()
        assert error < tolerance, f"result {n}: error {error:.1e} of the largest entry"


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_undivided_products(form, ranks):
    """Values, and gradients of x and of every kernel; several positions, one column per rank."""
    a = arrays(ranks)
    step, names, whole = built(form, ranks)
    want = definition(whole, a)
    assert_close(run(step, names, a, jnp.float32), want, 1e-5)
    if ranks == 4:
        with jax.enable_x64(True):
            assert_close(run(*built(form, ranks)[:2], a, jnp.float64), want, 1e-13)
        assert_close(run(step, names, a, jnp.bfloat16), want, 3e-2)


@hypothesis.settings(max_examples=4)
@hypothesis.given(
    ranks=st.sampled_from([2, 4]),
    rows=st.integers(1, 3),
    per_rank=st.integers(1, 4),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_random_shapes(ranks, rows, per_rank, width, seed):
    a = arrays(ranks, rows, per_rank, width, seed=seed)
    for form in ("gather_overlap", "scatter_overlap"):
        step, names, whole = built(form, ranks)
        assert_close(run(step, names, a, jnp.float32), definition(whole, a), 1e-5)


# Collectives of a forward and a backward pass. A ring has C - 1 hops, and x (way in) or dy (way
# back) has one more array to fetch: x again for the kernels' gradients.
EXPECTED = {
    "gather": {"all_gather": 2, "reduce_scatter": 1},
    "gather_overlap": {"collective_permute": 3 * 3},
    "copy": {"all_reduce": 1},
    "scatter": {"all_gather": 1, "reduce_scatter": 1},
    "scatter_overlap": {"collective_permute": 2 * 3},
    "sum": {"all_reduce": 1},
}
KINDS = ("all_gather", "reduce_scatter", "collective_permute", "all_reduce", "all_to_all")


@pytest.mark.parametrize("form", FORMS)
def test_collectives_of_the_program(form):
    """As lowered; XLA may merge the two gathers of x where both passes are in one program, but it
    adds nothing of another kind."""
    ranks = 4
    a = arrays(ranks)
    step, names, _ = built(form, ranks)
    lowered = step.lower(*(jnp.asarray(a[n], jnp.float32) for n in names))
    text = lowered.as_text()
    found = {kind: len(re.findall(rf"stablehlo\.{kind}\b", text)) for kind in KINDS}
    assert {kind: count for kind, count in found.items() if count} == EXPECTED[form]
    text = lowered.compile().as_text().replace("-", "_")
    assert {kind for kind in KINDS if re.search(rf" {kind}(_start)?\(", text)} == set(
        EXPECTED[form]
    )


def waits(jaxpr, wanted, on):
    """For each equation `wanted` of the jaxpr, in order: how many equations `on` it needs first."""
    needed, counts = {}, []
    for number, equation in enumerate(jaxpr.eqns):
        inputs = [v for v in equation.invars if not hasattr(v, "val")]
        before = set().union(*(needed.get(v, set()) for v in inputs))
        if equation.primitive.name == wanted:
            counts.append(len(before))
        own = {number} if equation.primitive.name == on else set()
        needed.update({v: before | own for v in equation.outvars})
    return counts


def test_hops_and_products_do_not_wait_for_one_another():
    """A hop and a product of every step need what came before, but not each other; products stand
    in a row, or a compiler would merge them into one that waits for the last chunk."""
    a = {name: jnp.asarray(x, jnp.float32) for name, x in arrays(4).items()}
    for function, x, kernel, equation, streams in (
        (gather_products, a["x"], a["k2"], EQUATIONS[1], (SEQUENCE, P(None, None, "tensor"))),
        (product_scatter, a["dy1"], a["back"], BACK, (SPLIT["dy1"], SEQUENCE)),
    ):
        inward = function is gather_products

        def local(x, kernel, function=function, equation=equation, inward=inward):
            static = {"axis_name": "tensor", "overlap": True}
            if inward:
                return function(x, (kernel,), equations=(equation,), **static)[0]
            return function(equation, x, kernel, **static)

        weights = INWARD["k2"] if inward else ROWS["back"]
        jaxpr = jax.make_jaxpr(
            jax.shard_map(
                local, mesh=mesh(4), in_specs=(streams[0], weights), out_specs=streams[1],
                check_vma=False,
            )
        )(x, kernel).jaxpr  # fmt: skip
        body = next(inner_of(jaxpr, "ppermute"))
        assert waits(body, "dot_general", on="dot_general") == [0, 1, 2, 3]
        hops_of_products = waits(body, "dot_general", on="ppermute")
        products_of_hops = waits(body, "ppermute", on="dot_general")
        if inward:  # Chunk n arrives by n hops; it is sent on once chunk n - 1 is multiplied.
            assert (hops_of_products, products_of_hops) == ([0, 1, 2, 3], [0, 1, 2])
        else:  # The sum of n products is sent while the next product is formed.
            assert (hops_of_products, products_of_hops) == ([0, 0, 0, 0], [1, 2, 3])


def inner_of(jaxpr, name):
    """The jaxprs, this one or inside it, that hold an equation of that name."""
    if any(equation.primitive.name == name for equation in jaxpr.eqns):
        yield jaxpr
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                yield from inner_of(value, name)


@pytest.mark.parametrize("overlap", [False, True])
def test_what_is_kept_for_the_backward_pass(overlap):
    """The divided x and the kernels, not the gathered x."""
    ranks, a = 4, arrays(4)
    names = ("x", "k1", "k2")

    def local(x, k1, k2):
        _, pull = jax.vjp(
            lambda *w: gather_products(
                w[0], w[1:], equations=EQUATIONS, axis_name="tensor", overlap=overlap
            ),
            x, k1, k2,
        )  # fmt: skip
        return sum(residual.size for residual in jax.tree.leaves(pull))

    sizes = []
    step = jax.shard_map(
        lambda *w: (sizes.append(local(*w)), w[0])[1], mesh=mesh(ranks),
        in_specs=(SEQUENCE, *INWARD.values()), out_specs=SEQUENCE, check_vma=False,
    )  # fmt: skip
    jax.eval_shape(step, *(jnp.asarray(a[n], jnp.float32) for n in names))
    assert sizes == [sum(a[n].size for n in names) // ranks]


def test_16_bit_ring_adds_in_float32():
    """What travels is bfloat16 and the sum is taken in float32: no worse than rounding the whole
    sum once per hop."""
    ranks, rng = 8, np.random.default_rng(0)
    x = rng.normal(size=(1, 8 * ranks, ranks, 16)).astype(jnp.bfloat16)
    kernel = rng.normal(size=(ranks, 16, 32)).astype(jnp.bfloat16)
    dy = np.zeros((1, 8 * ranks, 32), jnp.bfloat16)
    step, _ = divided_way_back(ranks, product_scatter, SEQUENCE, overlap=True)
    text = step.lower(x, kernel, dy).as_text()
    hops = re.findall(r"collective_permute.*?-> tensor<[0-9x]*(\w+)>", text, re.DOTALL)
    assert hops and set(hops) == {"bf16"}
    y = np.asarray(step(x, kernel, dy)[0], np.float64)
    parts = np.einsum("btnh,nhd->nbtd", x.astype(np.float64), kernel.astype(np.float64))
    bound = np.abs(np.cumsum(parts, axis=0)).max() * 2.0**-8 * ranks
    assert np.abs(y - parts.sum(axis=0)).max() < bound


def test_arguments_that_do_not_fit():
    x = np.ones((1, 6, 4), np.float32)
    kernel = np.ones((4, 4), np.float32)

    def call(equation, x):
        return jax.shard_map(
            lambda x, k: product_scatter(equation, x, k, axis_name="tensor", overlap=False),
            mesh=mesh(4), in_specs=(P(None, None, "tensor"), P("tensor")), out_specs=SEQUENCE,
            check_vma=False,
        )(x, kernel)  # fmt: skip

    with pytest.raises(MeshError, match="6 positions cannot be divided over the 4 devices"):
        call("btf,fd->btd", x)
    with pytest.raises(ValueError, match="must begin with the same two axes"):
        call("tbf,fd->btd", x)
    with pytest.raises(ValueError, match="2 equations for 1 kernels"):
        copy_products(x, (kernel,), equations=("btd,df->btf",) * 2, axis_name="tensor")
