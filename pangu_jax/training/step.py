"""The jitted training step: exact accumulation, several steps per dispatch, non-finite guard.

Letters: K steps in a dispatch, A micro-batches in a step, R rows of a batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from pangu_jax.training.state import LossSums, TrainState

LossFn = Callable[[Any, Any, jax.Array], LossSums]
Gradients = Callable[[Any, Any, jax.Array], tuple[LossSums, Any]]
Advance = Callable[[TrainState, Any, jax.Array], tuple[Any, Any, LossSums, jax.Array]]


class StepOutputs(NamedTuple):
    """Per-step scalars of one dispatch, each float32 [K].

    total, weight, metrics: the task's sums. grad_norm: global norm before clipping.
    applied: 1 where the update was applied, 0 where the guard held it back.
    """

    total: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]
    grad_norm: jax.Array
    applied: jax.Array


class StepProgram(Protocol):
    """A step with updates of its own, such as two networks that learn in turn.

    It stands in place of a loss and an optimizer.
    """

    def init(self, params: Any) -> Any:
        """The optimizer state of parameters (arrays or boxes with logical axis names)."""

    def advance(
        self, state: TrainState, batch: Any, rng: jax.Array, *frozen: Any
    ) -> tuple[Any, Any, LossSums, jax.Array]:
        """New parameters, new optimizer state, sums to log, gradient norm."""


def loss_and_grad(
    loss_fn: LossFn, params: Any, batch: Any, rng: jax.Array, accumulation: int = 1
) -> tuple[LossSums, Any]:
    """Sums over the batch and the gradient of total / weight.

    With A > 1 micro-batches, totals, weights and gradients are summed before the one division,
    so the result is that of the whole batch however unevenly the weights fall. Micro-batch a
    takes rows a, a + A, ...: a device that holds a contiguous block of rows then finds its share
    of every micro-batch at home.
    """

    def total_fn(params, batch, rng):
        sums = loss_fn(params, batch, rng)
        return sums.total, sums

    grad_fn = jax.grad(total_fn, has_aux=True)
    if accumulation == 1:
        grads, sums = grad_fn(params, batch, rng)
    else:
        micro = jax.tree.map(
            lambda x: jnp.swapaxes(
                x.reshape(x.shape[0] // accumulation, accumulation, *x.shape[1:]), 0, 1
            ),
            batch,
        )

        def body(carry, xs):
            index, part = xs
            grads, sums = grad_fn(params, part, jax.random.fold_in(rng, index))
            return jax.tree.map(jnp.add, carry, (grads, sums)), None

        first = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], micro), rng)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)
        (grads, sums), _ = jax.lax.scan(body, zeros, (jnp.arange(accumulation), micro))
    # A batch without any weight gives a zero gradient instead of 0 / 0.
    scale = jnp.where(sums.weight > 0, 1.0 / jnp.where(sums.weight > 0, sums.weight, 1.0), 0.0)
    return sums, jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)


def gradients_of(loss_fn: LossFn, accumulation: int = 1) -> Gradients:
    """`loss_and_grad` of a loss, for `make_dispatch`."""
    return functools.partial(loss_and_grad, loss_fn, accumulation=accumulation)


def advance_by(gradients: Gradients, optimizer: optax.GradientTransformation) -> Advance:
    """`advance` of a `StepProgram` for one gradient and one optimizer."""

    def advance(state, batch, rng):
        sums, grads = gradients(state.params, batch, rng)
        grad_norm = optax.global_norm(grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state, sums, grad_norm

    return advance


def make_dispatch(
    gradients: Gradients | None,
    optimizer: optax.GradientTransformation | None,
    *,
    advance: Advance | None = None,
    guard: str = "stop",
    place: Callable[[TrainState], TrainState] = lambda state: state,
) -> Callable[..., Any]:
    """Function (state, bad_step, batches stacked [K, R, ...]) -> (state, bad_step, StepOutputs).

    gradients: (params, batch, key) -> (LossSums, gradient of total / weight), such as
    `gradients_of` a loss. advance: in place of gradients and optimizer, (state, batch, key) -> what
    `StepProgram.advance` returns.

    `bad_step` is int32, -1 until a step's loss or gradient norm is not finite. guard='stop': from
    that step on nothing changes any more, so the returned state is the one before the bad batch
    even if further dispatches were already on their way. guard='skip': only that update is left
    out (the step still counts). guard='off': no checks. To be jitted with the state donated.

    place: constrains where the next state lies. Without it XLA may keep parameters between the
    steps of a dispatch as ZeRO divides the moments, and then gathers them once more at its end.
    """

    advance = advance or advance_by(gradients, optimizer)

    def one_step(carry, batch):
        state, bad_step = carry
        rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
        params, opt_state, sums, grad_norm = advance(state, batch, rng)
        applied = jnp.bool_(True)
        if guard != "off":
            finite = jnp.isfinite(sums.total) & jnp.isfinite(grad_norm)
            applied = finite & (bad_step < 0) if guard == "stop" else finite
            params, opt_state = jax.tree.map(
                lambda new, old: jnp.where(applied, new, old),
                (params, opt_state),
                (state.params, state.opt_state),
            )
            if guard == "stop":
                bad_step = jnp.where(~finite & (bad_step < 0), state.step, bad_step)
        counts = applied if guard == "stop" else True
        state = TrainState(
            step=state.step + jnp.int32(counts), params=params, opt_state=opt_state, rng=state.rng
        )
        state = place(state)
        outputs = StepOutputs(sums.total, sums.weight, sums.metrics, grad_norm, applied)
        return (state, bad_step), jax.tree.map(lambda x: x.astype(jnp.float32), outputs)

    def dispatch(state, bad_step, batches):
        (state, bad_step), outputs = jax.lax.scan(one_step, (state, bad_step), batches)
        return state, bad_step, outputs

    return dispatch
