"""Timing of calls: the loop calls as often as it says and computes what one call does."""

from __future__ import annotations

import fcntl
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.kernels import timing


def counted(function):
    calls = []

    def wrapped(*args):
        jax.debug.callback(lambda: calls.append(1))
        return function(*args)

    return wrapped, calls


@pytest.mark.parametrize("turns", [1, 2, 7])
def test_loop_calls_as_often_as_said(turns):
    function, calls = counted(lambda x: {"sum": x.sum(), "whole": x * 2})
    x = jnp.arange(1.0, 7.0).reshape(2, 3)
    carried, out = jax.jit(timing.chained(function, turns))(x, x)
    jax.block_until_ready(out)
    jax.effects_barrier()
    assert len(calls) == turns
    np.testing.assert_array_equal(carried, x)
    np.testing.assert_array_equal(out["whole"], x * 2)
    np.testing.assert_array_equal(out["sum"], x.sum())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_loop_gives_the_outputs_of_one_call(dtype):
    rng = np.random.default_rng(0)
    ids = jnp.arange(5)
    tree = {"a": jnp.asarray(rng.normal(size=(5, 4)), dtype), "b": jnp.ones(4, dtype)}

    def function(ids, tree):  # The first floating leaf is not the first leaf.
        return tree["a"] * tree["b"], ids + 1, jnp.zeros((0, 2)), jnp.log(-tree["b"]).astype("f4")

    got = jax.jit(timing.chained(function, 5))(tree["a"], ids, tree)[1]
    want = jax.jit(function)(ids, tree)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_every_turn_depends_on_the_one_before():
    """The call stays inside the loop: a compiler that saw no dependence would hoist it."""
    text = jax.jit(timing.chained(jnp.sin, 4)).lower(*[jnp.ones(1000)] * 2).compile().as_text()
    loop = text[: text.index("ENTRY")]
    assert "sine" in loop


def test_measure_repeats_and_counts_compilation_once():
    function, calls = counted(lambda x: x + 1)
    compiled = timing.compile_ahead(function, jnp.ones(3))
    result = timing.measure(compiled, jnp.ones(3), repeats=4)
    jax.effects_barrier()
    assert len(calls) == 1 + 4
    assert result.first == compiled.milliseconds
    assert 0 < result.device == result.wall <= result.median


def test_compile_all_keeps_what_failed_apart():
    def refuse(x):
        raise NotImplementedError("not here")

    calls = {name: (f, (jnp.ones(2),)) for name, f in (("good", jnp.cos), ("bad", refuse))}
    compiled = timing.compile_all(calls)
    assert isinstance(compiled["bad"], NotImplementedError)
    assert timing.measure(compiled["good"], jnp.ones(2), repeats=1).wall > 0


def test_a_loop_and_calls_in_a_row_are_timed_on_a_device(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    function, calls = counted(functools.partial(jnp.multiply, 2.0))
    result = timing.measure(
        timing.compile_ahead(function, jnp.ones(3), turns=5), jnp.ones(3), repeats=2
    )
    jax.effects_barrier()
    assert len(calls) == (2 + 5) + 2 * (1 + 5 + 5)
    assert result.device > 0 and result.wall > 0


def test_one_clock_at_a_time(tmp_path):
    path = str(tmp_path / "lock")
    with timing.alone(""), timing.alone(path), open(path) as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
