"""Choosing the next token of each row on the device.

Nothing sorts the vocabulary. The k-th largest logit and the edge of a nucleus are looked for among
the largest logits; where they lie further down, they are found by bisection over the bits of a
float, which is as exact and costs 32 passes over the logits. A token is drawn with one random
number, by the sums of blocks of probabilities first and inside one block then.

Letters: B rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.inference.request import SamplingParams

_LARGEST = 256  # logits among which the edges of top_k and top_p are looked for first
_BLOCK = 256  # probabilities of one block when drawing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Features:
    """What any row of a batch asks for; what none asks for is not in the program.

    top_logprobs: alternatives reported; -1 for no log-probabilities at all.
    """

    greedy: bool = True
    random: bool = False
    filters: bool = False
    penalties: bool = False
    mask: bool = False
    top_logprobs: int = -1

    @staticmethod
    def of(rows: Sequence[SamplingParams]) -> Features:
        """The union of what these rows ask for."""
        asked = max((-1 if p.logprobs is None else p.logprobs for p in rows), default=-1)
        return Features(
            greedy=any(p.temperature == 0 for p in rows) or not rows,
            random=any(p.temperature > 0 for p in rows),
            filters=any(p.temperature > 0 and (p.top_k or p.top_p < 1 or p.min_p) for p in rows),
            penalties=any(has_penalties(p) for p in rows),
            mask=any(p.grammar is not None for p in rows),
            top_logprobs=next(n for n in (-1, 0, 5, 20) if n >= asked),
        )


def has_penalties(params: SamplingParams) -> bool:
    """Whether the choice depends on which tokens came before."""
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


class RowSampling(NamedTuple):
    """`SamplingParams` of the rows as arrays (B,); seed: uint32 (B, 2)."""

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    repetition: np.ndarray
    presence: np.ndarray
    frequency: np.ndarray
    seed: np.ndarray

    @staticmethod
    def of(rows: Sequence[SamplingParams], size: int) -> RowSampling:
        """Arrays for these rows, padded to `size` with greedy ones."""
        rows = [*rows, *[SamplingParams()] * (size - len(rows))]

        def column(name, dtype=np.float32):
            return np.asarray([getattr(p, name) for p in rows], dtype)

        seeds = [[(p.seed >> 32) & 0xFFFFFFFF, p.seed & 0xFFFFFFFF] for p in rows]
        return RowSampling(
            column("temperature"), column("top_k", np.int32), column("top_p"), column("min_p"),
            column("repetition_penalty"), column("presence_penalty"), column("frequency_penalty"),
            np.asarray(seeds, np.uint32),
        )  # fmt: skip


class Chosen(NamedTuple):
    """token: int32 (B,). logprob: (B,); top_ids, top_logprobs: (B, n), or None if not asked for."""

    token: jax.Array
    logprob: jax.Array | None = None
    top_ids: jax.Array | None = None
    top_logprobs: jax.Array | None = None


class Seen(NamedTuple):
    """in_prompt: bool (B, V). generated: int32 (B, V), how often the completion holds a token."""

    in_prompt: jax.Array
    generated: jax.Array


def choose(
    logits: jax.Array, rows: RowSampling, index: jax.Array, features: Features,
    seen: Seen | None = None, mask: jax.Array | None = None,
) -> Chosen:  # fmt: skip
    """The next token of each row.

    Args:
      logits: float32 (B, V).
      index: int32 (B,), how many tokens the row has generated: with its seed this is the whole
        state of its randomness.
      seen: with features.penalties.
      mask: with features.mask, uint32 (B, ceil(V / 32)); bit t of word w allows token 32 w + t.
    """
    raw = logits
    if features.penalties:
        logits = penalised(logits, rows, seen)
    if features.mask:
        logits = jnp.where(unpack_mask(mask, logits.shape[-1]), logits, -jnp.inf)
    if features.greedy:
        token = jnp.argmax(logits, -1).astype(jnp.int32)
    if features.random:
        scaled = logits / jnp.maximum(rows.temperature, 1e-6)[:, None]
        if features.filters:
            scaled = jnp.where(kept(scaled, rows), scaled, -jnp.inf)
        drawn = draw(scaled, rows.seed, index)
        token = jnp.where(rows.temperature > 0, drawn, token) if features.greedy else drawn
    if features.top_logprobs < 0:
        return Chosen(token)
    logprob, top_ids, top = log_probabilities(raw, token, features.top_logprobs)
    return Chosen(token, logprob, top_ids, top)


def log_probabilities(
    logits: jax.Array, token: jax.Array, top: int
) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """(that of token (B,), ids of the `top` likeliest (B, top), theirs (B, top))."""
    total = jax.nn.logsumexp(logits, -1)
    logprob = jnp.take_along_axis(logits, token[:, None], -1)[:, 0] - total
    if not top:
        return logprob, None, None
    values, ids = jax.lax.top_k(logits, min(top, logits.shape[-1]))
    return logprob, ids.astype(jnp.int32), values - total[:, None]


def penalised(logits: jax.Array, rows: RowSampling, seen: Seen) -> jax.Array:
    """Logits after the repetition, presence and frequency penalties of `SamplingParams`."""
    factor = jnp.asarray(rows.repetition)[:, None]
    before = seen.in_prompt | (seen.generated > 0)
    repeated = jnp.where(logits > 0, logits / factor, logits * factor)
    logits = jnp.where(before, repeated, logits)
    logits = logits - jnp.asarray(rows.presence)[:, None] * (seen.generated > 0)
    return logits - jnp.asarray(rows.frequency)[:, None] * seen.generated


def kept(logits: jax.Array, rows: RowSampling) -> jax.Array:
    """Bool (B, V): tokens that pass top_k, top_p and min_p; ties at an edge all pass.

    top_p looks at the distribution after top_k, min_p at the ratio to the most probable token.
    """
    vocabulary = logits.shape[-1]
    wanted_k, top_p = jnp.asarray(rows.top_k), jnp.asarray(rows.top_p)
    k = jnp.where(wanted_k > 0, jnp.minimum(wanted_k, vocabulary), vocabulary)
    probabilities = jax.nn.softmax(logits, -1)
    # Without the barrier, XLA sees that single ones of them are used and sorts everything.
    largest = jax.lax.optimization_barrier(jax.lax.top_k(logits, min(_LARGEST, vocabulary))[0])
    near = jnp.exp(largest - jax.nn.logsumexp(logits, -1, keepdims=True))
    inside = jnp.where(jnp.arange(near.shape[-1]) < k[:, None], near, 0.0)
    # k itself may cut between ties; those all count.
    last = jnp.take_along_axis(largest, jnp.minimum(k, near.shape[-1])[:, None] - 1, -1)
    inside = jnp.where(largest >= last, near, inside)
    total = jnp.where(wanted_k > 0, jnp.sum(inside, -1), 1.0)
    below = jnp.cumsum(inside, -1) < (top_p * total)[:, None]
    place = jnp.sum(below, -1)
    # Whether a row's edge lies among the largest, with the whole of its last tie.
    found = jnp.where(wanted_k > 0, last[:, 0] > largest[:, -1], top_p < 1)
    found &= (top_p >= 1) | (place < near.shape[-1])
    if near.shape[-1] == vocabulary:
        found |= True
    free = (wanted_k == 0) & (top_p >= 1)

    def among_largest():
        place_in = jnp.minimum(place, near.shape[-1] - 1)[:, None]
        nucleus = jnp.take_along_axis(largest, place_in, -1)[:, 0]
        edge = jnp.where(top_p < 1, nucleus, -jnp.inf)
        return jnp.maximum(edge, jnp.where(wanted_k > 0, last[:, 0], -jnp.inf))

    def by_bisection():
        above = _edge(logits, jnp.ones_like(logits), k.astype(jnp.float32))
        mass = jnp.where(logits >= above[:, None], probabilities, 0.0)
        # A nucleus of all the mass must not hang on the rounding of a sum.
        nucleus = _edge(logits, mass, top_p * jnp.sum(mass, -1))
        return jnp.maximum(above, jnp.where(top_p < 1, nucleus, -jnp.inf))

    # Row by row, so that rounding in one row's sums does not depend on what runs beside it.
    edge = jax.lax.cond(
        jnp.all(found | free),
        among_largest,
        lambda: jnp.where(found | free, among_largest(), by_bisection()),
    )
    least = jnp.max(probabilities, -1, keepdims=True) * jnp.asarray(rows.min_p)[:, None]
    return (logits >= edge[:, None]) & (probabilities >= least)


def _edge(values: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
    """The largest t for which the weights of values >= t sum to at least `wanted`: (B,).

    Where even all weights do not reach it, the least float.
    """
    keys = _ordered(values)
    low = jnp.zeros(values.shape[0], jnp.uint32)

    def narrow(bit, low):
        trial = low | (jnp.uint32(1) << (31 - bit).astype(jnp.uint32))
        total = jnp.sum(jnp.where(keys >= trial[:, None], weights, 0.0), -1)
        return jnp.where(total >= wanted, trial, low)

    return _unordered(jax.lax.fori_loop(0, 32, narrow, low))


def _ordered(x: jax.Array) -> jax.Array:
    """uint32 with the order of float32 x."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(0x80000000)
    return jnp.where(bits & sign, ~bits, bits | sign)


def _unordered(key: jax.Array) -> jax.Array:
    sign = jnp.uint32(0x80000000)
    bits = jnp.where(key & sign, key & ~sign, ~key)
    # Keys below that of -inf would be NaN.
    return jnp.where(key < jnp.uint32(0x007FFFFF), -jnp.inf, _as_float(bits))


def _as_float(bits: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def draw(logits: jax.Array, seed: jax.Array, index: jax.Array) -> jax.Array:
    """A token of each row, int32 (B,), with the probabilities of its logits (B, V).

    Args:
      seed: uint32 (B, 2). index: int32 (B,).
    """

    def uniform(words, count):
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, count))

    weights = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
    missing = -weights.shape[-1] % _BLOCK
    blocks = jnp.pad(weights, ((0, 0), (0, missing))).reshape(weights.shape[0], -1, _BLOCK)
    sums = jnp.sum(blocks, -1)
    ends = jnp.cumsum(sums, -1)
    wanted = jax.vmap(uniform)(jnp.asarray(seed), index) * ends[:, -1]
    block = _first(ends > wanted[:, None], sums)
    inside = jnp.take_along_axis(blocks, block[:, None, None], 1)[:, 0]
    before = jnp.take_along_axis(ends - sums, block[:, None], -1)
    place = _first(before + jnp.cumsum(inside, -1) > wanted[:, None], inside)
    return (block * _BLOCK + place).astype(jnp.int32)


def _first(reached: jax.Array, weights: jax.Array) -> jax.Array:
    """First place (B,) that is reached and has a weight, else the last one with a weight.

    Running sums need not grow evenly where they are not made in order, and rounding may lead past
    the end: a place without weight must not be drawn.
    """
    there = weights > 0
    reached &= there
    last = weights.shape[-1] - 1 - jnp.argmax(there[:, ::-1], -1)
    return jnp.where(jnp.any(reached, -1), jnp.argmax(reached, -1), last)


def unpack_mask(words: jax.Array, vocabulary: int) -> jax.Array:
    """Bool (B, V) of uint32 (B, ceil(V / 32)), least significant bit first."""
    bits = (words[..., None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    return bits.reshape(*words.shape[:-1], -1)[..., :vocabulary] > 0
