"""The generator's recurrence over time, with attention over all its earlier states.

Attention weights depend on questions alone, so they are formed for all steps at once; only the
values have to wait for the recurrence. The buffer of all states is read and written once per
chunk of steps, and a small one inside the chunk: reverse-mode differentiation keeps a copy of
whatever a scan carries at each of its steps.

Letters: B students, T steps, N chunks of K steps, S slots of the past, D width, Q width of a
question vector.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.tracing.advkt.draws import uniforms
from recsys_jax.tracing.advkt.layers import Params, gru, mlp

FEEDBACK = ("sample", "threshold", "expected")


class Cell(NamedTuple):
    """Parameters of one step and the step itself (spec 1.3, items 3 and 5)."""

    predict: list
    gru: Params

    def logit(self, vector, hidden, attended, rate: float = 0.0, key=None) -> jax.Array:
        """(B,): from the question vector (B, Q), the state and the attended past (B, D)."""
        x = jnp.concatenate([vector, hidden, attended], -1)
        return mlp(self.predict, x, rate, key)[..., 0]

    def update(self, vector, hidden, attended, response) -> jax.Array:
        """(B, D): the state after response (B,), which may lie between 0 and 1."""
        x = jnp.concatenate([attended, vector], -1)
        r = response[:, None].astype(x.dtype)
        return gru(self.gru, jnp.concatenate([x * r, x * (1 - r)], -1), hidden)


class Unrolled(NamedTuple):
    """logits: (B, T). responses: (B, T), what was fed back, 0 to 1. states: (B, T, D), before each
    step."""

    logits: jax.Array
    responses: jax.Array
    states: jax.Array


def history_weights(vectors: jax.Array, scale: float) -> jax.Array:
    """(B, T, T): softmax over slot 0 (a zero key) and 1 ... t, the questions before step t."""
    length = vectors.shape[1]
    keys = jnp.pad(vectors, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    scores = jnp.einsum("btq,bsq->bts", vectors, keys) * scale
    seen = jnp.tril(jnp.ones((length, length), bool))
    return nn.softmax(jnp.where(seen, scores, -jnp.inf), -1)


def unroll(
    cell: Cell,
    vectors: jax.Array,
    responses: jax.Array,
    observed: jax.Array,
    *,
    scale: float,
    chunk: int,
    key: jax.Array | None,
    feedback: str,
    reset_every: int,
    dropout: tuple[float, jax.Array] | None,
) -> Unrolled:
    """Runs the recurrence; see `Generator.unroll` for the meaning of the arguments.

    vectors: (B, T, Q). responses: (B, T). observed: bool (B, T).
    """
    rows, length, _ = vectors.shape
    dim = cell.gru["hn"]["bias"].shape[0]
    chunk = min(chunk, length)
    pieces = -(-length // chunk)
    padded = pieces * chunk
    dtype = vectors.dtype
    draws = jnp.zeros((rows, length)) if key is None else uniforms(key, rows, length)

    def cut(x):  # (B, T, ...) -> (N, K, B, ...)
        x = jnp.pad(x, [(0, 0), (0, padded - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, pieces, chunk, *x.shape[2:]), 0, 2)

    def step(carry, x):
        hidden, buffer = carry
        time = x["time"]
        attended = x["past"] + jnp.einsum("bj,bjd->bd", x["near"], buffer)
        rate, own = (0.0, None)
        if dropout is not None:
            rate, own = dropout[0], jax.random.fold_in(dropout[1], time)
        logit = cell.logit(x["vector"], hidden, attended, rate, own)
        fed = jnp.where(x["observed"], x["response"], _feed(feedback, logit, x["draw"]))
        new = cell.update(x["vector"], hidden, attended, fed)
        buffer = jax.lax.dynamic_update_slice(buffer, new[:, None], (0, x["slot"], 0))
        following = new
        if reset_every:
            cleared = (time % reset_every == 0) & (time > 0)
            following = jnp.where(cleared, 0, new)
        return (following, buffer), (logit, fed, hidden)

    def piece(carry, x):
        hidden, past = carry
        # Slots of this chunk are still zero in `past`, so that their weights do not count twice.
        x["past"] = jnp.einsum("kbs,bsd->kbd", x.pop("far"), past)
        first = x.pop("first")
        buffer = jnp.zeros((rows, chunk, dim), dtype)
        x["slot"] = jnp.arange(chunk)
        (hidden, buffer), outputs = jax.lax.scan(step, (hidden, buffer), x)
        past = jax.lax.dynamic_update_slice(past, buffer, (0, first + 1, 0))
        return (hidden, past), outputs

    weights = history_weights(vectors, scale)
    far = jnp.pad(weights, ((0, 0), (0, 0), (0, padded + 1 - length)))  # slots 0 ... padded
    far = cut(far)
    starts = jnp.arange(pieces) * chunk
    near = jax.vmap(lambda w, start: jax.lax.dynamic_slice_in_dim(w, start + 1, chunk, axis=-1))(
        far, starts
    )
    inputs = {
        "far": far,
        "near": near,
        "vector": cut(vectors),
        "response": cut(responses.astype(dtype)),
        "observed": cut(observed),
        "draw": cut(draws.astype(dtype)),
        "time": jnp.arange(padded).reshape(pieces, chunk),
        "first": starts,
    }
    start = jnp.zeros((rows, dim), dtype), jnp.zeros((rows, padded + 1, dim), dtype)
    _, outputs = jax.lax.scan(piece, start, inputs)

    def join(x):  # (N, K, B, ...) -> (B, T, ...)
        return jnp.moveaxis(x, 2, 0).reshape(rows, padded, *x.shape[3:])[:, :length]

    return Unrolled(*map(join, outputs))


def _feed(feedback: str, logit: jax.Array, draw: jax.Array) -> jax.Array:
    """What goes back in place of a response that is not known; constant to differentiation."""
    logit = jax.lax.stop_gradient(logit)
    if feedback == "expected":
        return nn.sigmoid(logit)
    if feedback == "threshold":
        return (logit > 0).astype(logit.dtype)
    return (draw < nn.sigmoid(logit)).astype(logit.dtype)
