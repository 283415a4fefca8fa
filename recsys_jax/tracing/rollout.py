"""One way to run every model over a sequence: true responses where observed, its own elsewhere.

Letters: B students, T steps, K sampled roll-outs.

Models with a step (`SteppedModel`) are scanned over time. The others are rolled out by repeated
whole passes: all unobserved responses are guessed at once, a pass yields the logits, the logits
yield the next guesses, until nothing changes. Causality makes this exact and finite: after n
passes the first n fed-back responses of every student are final, and a guess that reproduces
itself is the step-by-step roll-out, since that is the only fixed point (probabilities count as
reproduced within 1e-6). A response moves few later ones, so this takes far fewer passes than T.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from recsys_jax.tracing.batch import Batch

FEEDBACK = ("sample", "threshold", "expected")


def rollout(
    model: Any,
    variables: Any,
    batch: Batch,
    observed: jax.Array,
    *,
    feedback: str = "threshold",
    key: jax.Array | None = None,
    samples: int | None = None,
    train: bool = False,
    rngs: dict[str, jax.Array] | None = None,
    samples_at_once: int | None = None,
    with_responses: bool = False,
):
    """Logits (B, T), or (K, B, T) with `samples=K`, of a model that is fed its own responses.

    observed: bool (B, T); where it is true the true response is fed on, elsewhere the model's
    own. All true is teacher forcing, all false is free running, `steps < P` is an observed prefix.
    True responses at unobserved steps are not read. feedback: 'sample' draws from the predicted
    probability with `key`; 'threshold' feeds 1 where the logit is >= 0 (pyKT's p >= .5, spec 3.4);
    'expected' feeds the probability itself. Draws at step t depend on `key`, t and the student's
    row, not on T. samples: number of independent sampled roll-outs, `samples_at_once` of them
    side by side (by default all of a stepped model, one of any other: memory). train, rngs: passed
    to whole passes; a stepped model has no dropout here. with_responses: also what was fed on, of
    the shape of the logits; int32, or float32 when 'expected'.

    The gradient is that of the logits given the responses fed on (`stop_gradient`, spec 5). It is
    thus the same as that of one call of the model on `batch` with the responses returned here,
    which a trainer can use to get the losses that the model sows.

    Raises ValueError for an unknown feedback, a missing or superfluous key or number of samples,
    a shape of `observed` that is not (B, T), and 'expected' for a model that takes no
    probabilities (one without steps whose `soft_responses` is not true).
    """
    _check(model, batch, observed, feedback, key, samples)
    observed = jnp.asarray(observed, bool)
    # Padding feeds 0, as in every batch, so that it can not delay the fixed point.
    fixed = observed | ~batch.mask
    true = jnp.where(observed & batch.mask, batch.responses, 0)
    true = true.astype(jnp.float32 if feedback == "expected" else jnp.int32)
    run = _stepped if is_stepped(model) else _whole_passes

    def once(key):
        logits, fed = run(
            model, variables, batch, fixed, true, _feeder(feedback, key, batch), train, rngs
        )
        return (logits, fed) if with_responses else logits

    if samples is None:
        return once(key)
    at_once = samples_at_once or (samples if is_stepped(model) else 1)
    return jax.lax.map(once, jax.random.split(key, samples), batch_size=min(at_once, samples))


def is_stepped(model: Any) -> bool:
    """Whether a model moves on by one answer (`SteppedModel`)."""
    return all(hasattr(model, name) for name in ("begin", "predict_step", "update_step"))


def _feeder(feedback: str, key: jax.Array | None, batch: Batch):
    """(logits (B, T) or (B,), steps) -> responses to feed on; `steps` slices the draws."""
    if feedback == "threshold":
        return lambda logits, steps: (logits >= 0).astype(jnp.int32)
    if feedback == "expected":
        return lambda logits, steps: jax.nn.sigmoid(logits).astype(jnp.float32)
    rows, steps = batch.questions.shape
    # One key per step: padding a batch further leaves the draws as they were.
    keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(jnp.arange(steps))
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (rows,)), out_axes=1)(keys)
    return lambda logits, steps: (uniform[:, steps] < jax.nn.sigmoid(logits)).astype(jnp.int32)


def _stepped(model, variables, batch, fixed, true, feed, train, rngs):
    """Scan over time: predict, feed on, update."""
    steps = batch.questions.shape[1]
    state = model.apply(variables, batch._replace(responses=true), method="begin")

    def step(state, inputs):
        t, question, concepts, fixed_t, true_t = inputs
        logit = model.apply(variables, state, question, concepts, method="predict_step")
        own = jax.lax.stop_gradient(feed(logit, t))
        response = jnp.where(fixed_t, true_t, own.astype(true_t.dtype))
        state = model.apply(variables, state, question, concepts, response, method="update_step")
        return state, (logit, response)

    by_time = (
        jnp.arange(steps),
        batch.questions.T,
        jnp.moveaxis(batch.concepts, 1, 0),
        fixed.T,
        true.T,
    )
    _, (logits, responses) = jax.lax.scan(step, state, by_time)
    return logits.T, responses.T


def _whole_passes(model, variables, batch, fixed, true, feed, train, rngs):
    """Passes until the responses fed on reproduce themselves, then one that is differentiated."""
    everything = slice(None)
    # Probabilities settle geometrically: waiting for their last bits would take most of T passes.
    settled = 1e-6 if jnp.issubdtype(true.dtype, jnp.floating) else 0

    def call(variables, responses):
        return model.apply(variables, batch._replace(responses=responses), train=train, rngs=rngs)

    frozen = jax.lax.stop_gradient(variables)

    def again(carry):
        passes, old, new = carry
        # After T passes every response is final, whether or not the last pass changed one.
        return jnp.any(abs(old - new) > settled) & (passes < batch.questions.shape[1])

    def guess(carry):
        passes, _, responses = carry
        own = feed(call(frozen, responses), everything).astype(true.dtype)
        return passes + 1, responses, jnp.where(fixed, true, own)

    # Different from any response, so that the first pass happens unless nothing is to be guessed.
    nothing = jnp.where(fixed, true, jnp.full_like(true, -1))
    _, _, responses = jax.lax.while_loop(again, guess, (jnp.zeros((), jnp.int32), nothing, true))
    responses = jax.lax.stop_gradient(responses)
    return call(variables, responses), responses


def _check(model, batch, observed, feedback, key, samples) -> None:
    if feedback not in FEEDBACK:
        raise ValueError(f"feedback={feedback!r} is not one of {', '.join(FEEDBACK)}")
    if tuple(observed.shape) != tuple(batch.questions.shape):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)}, the batch has (students, steps) = "
            f"{tuple(batch.questions.shape)}; give one entry per step"
        )
    if feedback == "sample" and key is None:
        raise ValueError("feedback='sample' needs key, e.g. jax.random.key(0)")
    if samples is not None and feedback != "sample":
        raise ValueError(
            f"samples={samples} goes with feedback='sample' only: feedback={feedback!r} gives the "
            "same roll-out every time"
        )
    if samples is not None and samples < 1:
        raise ValueError(f"samples={samples} must be at least 1, or None for one roll-out (B, T)")
    if feedback == "expected" and not is_stepped(model):
        if not getattr(model, "soft_responses", False):
            raise ValueError(
                f"feedback='expected' feeds probabilities, which {type(model).__name__} does not "
                "take (its soft_responses is not true); choose 'sample' or 'threshold'"
            )
