"""Next-token cross entropy that never holds the logits of a whole batch.

Rows are cut into chunks of positions; each chunk's logits live only while the chunk is worked on.
When a gradient is wanted it is formed in the same visit, because it is linear in the one number
that arrives from outside (the cotangent of the sum): three products with the head per chunk, where
recomputing the logits in the backward pass would need four.

Letters: B rows, T positions, C positions of a chunk, D hidden width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.models.decoder import logits_of
from pangu_jax.models.projection import constrain
from pangu_jax.training.state import LossSums


@dataclasses.dataclass(frozen=True)
class VocabularyPart:
    """Which columns of the logits are here; all of them, unless a subclass says otherwise.

    A subclass for a part overrides all three methods; the gradient with respect to `hidden` is
    then that part's share, to be summed over the parts by the caller.
    """

    def columns(self, here: int) -> tuple[jax.Array, jax.Array | None]:
        """(token ids of the `here` columns, bool of those that count or None for all)."""
        return jnp.arange(here), None

    def max(self, x: jax.Array) -> jax.Array:
        """Largest over all parts."""
        return x

    def sum(self, x: jax.Array) -> jax.Array:
        """Sum over all parts."""
        return x


WHOLE_VOCABULARY = VocabularyPart()


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    chunk: int = 256,
    z_loss: float = 0.0,
    vocabulary: VocabularyPart = WHOLE_VOCABULARY,
) -> LossSums:
    """Sum over tokens of weight * (-log softmax(hidden @ head)[label] + z_loss * logsumexp^2).

    Args:
      hidden: (B, T, D), after the final norm.
      head: (D, V).
      labels: int32 (B, T), already shifted: the token that follows. Below 0: not counted.
      weights: (B, T), or None for ones. 0: not counted. Constant to differentiation.
      chunk: positions of a row whose logits exist at one time; 0 for all.
      z_loss: factor of the squared log-normaliser, which keeps logits from drifting.
      vocabulary: for a head that holds a part of the columns.

    Returns:
      LossSums with metrics 'nll' (without the z term), 'accuracy' and, with z_loss, 'z_loss';
      only `total` can be differentiated. Logits and sums are float32 (float64 for float64).

    Raises:
      ValueError: shapes that do not fit.
    """
    rows, length, width = hidden.shape
    if head.shape[0] != width:
        raise ValueError(f"head has shape {head.shape}; ({width}, vocabulary) is needed.")
    for name, x in (("labels", labels), ("weights", weights)):
        if x is not None and x.shape != (rows, length):
            raise ValueError(f"{name} has shape {x.shape}; ({rows}, {length}) is needed.")
    acc = jnp.promote_types(hidden.dtype, jnp.float32)
    weights = jnp.ones_like(labels, acc) if weights is None else weights.astype(acc)
    weights = jnp.where(labels >= 0, weights, 0)
    chunk = min(chunk, length) or length
    pieces = -(-length // chunk)

    def cut(x):  # (B, T, ...) -> (pieces, B, C, ...); what is added has weight 0
        x = jnp.pad(x, [(0, 0), (0, pieces * chunk - length)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(rows, pieces, chunk, *x.shape[2:]), 1, 0)

    with jax.named_scope("loss"):
        sums = _sums(z_loss, vocabulary, cut(hidden), head, cut(labels), cut(weights))
    metrics = {"nll": sums.nll, "accuracy": sums.correct}
    if z_loss:
        metrics["z_loss"] = sums.z
    return LossSums(total=sums.total, weight=jnp.sum(weights), metrics=metrics)


class _Sums(NamedTuple):
    total: jax.Array
    nll: jax.Array
    z: jax.Array  # summed by itself: as total - nll it would lose its digits
    correct: jax.Array


def _visit(z_loss, vocabulary, head, x):
    """Sums of one chunk, and what its gradient needs: the softmax as (exponentials, their sums),
    log-normalisers, one-hot labels."""
    hidden, labels, weights = x
    logits = constrain(logits_of(hidden, head), "batch", None, "vocab")
    columns, counts = vocabulary.columns(logits.shape[-1])
    if counts is not None:
        logits = jnp.where(counts, logits, jnp.finfo(logits.dtype).min)
    top = vocabulary.max(jnp.max(logits, axis=-1))
    powers = jnp.exp(logits - top[..., None])
    # A comparison instead of a gather: it splits over the vocabulary without moving logits.
    hot = labels[..., None] == columns
    own = jnp.sum(jnp.where(hot, logits, 0), axis=-1)
    # Both sums in one exchange between the parts.
    total, own = vocabulary.sum(jnp.stack([jnp.sum(powers, axis=-1), own]))
    norm = top + jnp.log(total)
    counted = weights != 0
    nll = jnp.where(counted, weights * (norm - own), 0)
    z = jnp.where(counted, weights * z_loss * jnp.square(norm), 0)
    correct = jnp.where(counted, weights * (own >= top), 0)
    sums = _Sums(*map(jnp.sum, (nll + z, nll, z, correct)))
    return sums, (powers, total, norm, hot)


def _zero_sums(weights):
    return _Sums(*(jnp.zeros((), weights.dtype) for _ in _Sums._fields))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sums(z_loss, vocabulary, hidden, head, labels, weights):
    def step(carry, x):
        sums, _ = _visit(z_loss, vocabulary, head, x)
        return jax.tree.map(jnp.add, carry, sums), None

    return jax.lax.scan(step, _zero_sums(weights), (hidden, labels, weights))[0]


def _sums_forward(z_loss, vocabulary, hidden, head, labels, weights):
    dtype = hidden.dtype

    def step(carry, x):
        old, d_head = carry
        h, _, w = x
        sums, (powers, total, norm, hot) = _visit(z_loss, vocabulary, head, x)
        # The exponentials of the sum once more: they cost more than what else is done to a logit.
        p = powers * ((1 + 2 * z_loss * norm) / total)[..., None]
        d_logits = jnp.where((w != 0)[..., None], w[..., None] * (p - hot), 0).astype(dtype)
        d_hidden = jnp.einsum("bcv,dv->bcd", d_logits, head.astype(dtype))
        d_head += jnp.einsum("bcd,bcv->dv", h, d_logits, preferred_element_type=d_head.dtype)
        return (jax.tree.map(jnp.add, old, sums), d_head), d_hidden

    first = (_zero_sums(weights), jnp.zeros(head.shape, weights.dtype))
    (sums, d_head), d_hidden = jax.lax.scan(step, first, (hidden, labels, weights))
    return sums, (d_hidden, d_head.astype(head.dtype))


def _sums_backward(z_loss, vocabulary, residuals, cotangents):
    d_hidden, d_head = residuals
    g = cotangents.total
    return (g * d_hidden).astype(d_hidden.dtype), (g * d_head).astype(d_head.dtype), None, None


_sums.defvjp(_sums_forward, _sums_backward)
