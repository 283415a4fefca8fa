"""The two compiled programs of an engine: reading chunks of prompts, and several decoding steps.

Shapes are static; an engine calls them with sizes rounded up to a few, so that each is compiled
once. Both take over the pages that they are given (donation) and return them.

Letters: B rows, C new positions per row, D hidden width, V vocabulary, M adapters.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pangu_jax.inference.forward import Chunk, Pages, forward, logits_of
from pangu_jax.inference.sampling import (
    Chosen,
    Features,
    RowSampling,
    Seen,
    choose,
    log_probabilities,
)
from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.lora import with_weights

_LOGITS_AT_ONCE = 64  # positions of prompts whose logits exist at one time


class Choice(NamedTuple):
    """What decides about the next tokens beside the logits.

    sampling: of the rows. index: int32 (B,), tokens generated so far. seen, mask: as in `choose`.
    """

    sampling: RowSampling
    index: jax.Array
    seen: Seen | None = None
    mask: jax.Array | None = None


class Adapters(NamedTuple):
    """layers: per layer, adapters side by side (`pangu_jax.models.lora.stack`). mix: (B, M)."""

    layers: tuple[Any, ...]
    mix: jax.Array

    def bound(self) -> tuple[Any, ...]:
        """Per layer, the variables of the collection 'lora' for these rows."""
        return tuple(with_weights(layer, self.mix) for layer in self.layers)


class Prefilled(NamedTuple):
    """chosen: the token after each row's chunk. targets: log-probabilities (B, C, ...) or None.

    streams: float32 (layers + 2, B, D) at the last token of each row's chunk (`forward`), or None.
    """

    chosen: Chosen
    targets: Chosen | None
    streams: jax.Array | None
    pages: Pages


@functools.partial(
    jax.jit,
    static_argnames=("config", "features", "target_top", "streams"),
    donate_argnames=("pages",),
)
def prefill(
    config: DecoderConfig, features: Features, target_top: int, weights: Any, pages: Pages,
    chunk: Chunk, choice: Choice, targets: jax.Array | None, adapters: Adapters | None,
    *, streams: bool = False,
) -> Prefilled:  # fmt: skip
    """Writes a chunk of each row's prompt and chooses the token that would follow it.

    Args:
      features: of the choice.
      target_top: alternatives reported at each position; needs `targets`.
      targets: int32 (B, C), tokens whose log-probability at each position is wanted; None for none.
      streams: whether the residual stream at the end of each row's chunk is wanted.
    """
    lora = None if adapters is None else adapters.bound()
    hidden, pages, found_streams = forward(config, weights, pages, chunk, lora, streams=streams)
    last = jnp.maximum(chunk.count - 1, 0)
    end = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    chosen = choose(
        logits_of(weights, end), choice.sampling, choice.index, features, choice.seen, choice.mask
    )
    found = None
    if targets is not None:
        found = _of_targets(weights, hidden, targets, target_top)
    return Prefilled(chosen, found, found_streams, pages)


def _of_targets(weights, hidden, targets, top) -> Chosen:
    shape = targets.shape
    size = min(_LOGITS_AT_ONCE, targets.size)
    missing = -targets.size % size
    rows = jnp.pad(hidden.reshape(-1, hidden.shape[-1]), ((0, missing), (0, 0)))
    tokens = jnp.pad(targets.reshape(-1), (0, missing))

    def some(part):
        return log_probabilities(logits_of(weights, part[0]), part[1], top)

    found = jax.lax.map(some, (rows.reshape(-1, size, rows.shape[-1]), tokens.reshape(-1, size)))

    def back(x):
        x = x.reshape(-1, *x.shape[2:])[: targets.size]
        return x.reshape(*shape, *x.shape[1:])

    logprob, ids, values = jax.tree.map(back, found)
    return Chosen(targets, logprob, ids, values)


class Rows(NamedTuple):
    """Decoding rows. token: int32 (B,), the newest one, not in the cache yet. start: int32 (B,),
    positions in the cache. remaining: int32 (B,), tokens still wanted; 0 for an idle row.
    stop_ids: int32 (B, E), tokens that end a row, filled with -1. block_tables: as in `Chunk`.
    """

    token: jax.Array
    start: jax.Array
    remaining: jax.Array
    stop_ids: jax.Array
    block_tables: jax.Array


class Decoded(NamedTuple):
    """chosen: fields (steps, B, ...). valid: bool (steps, B), false for rows that had ended."""

    chosen: Chosen
    valid: jax.Array
    pages: Pages


@functools.partial(
    jax.jit, static_argnames=("config", "features", "steps"), donate_argnames=("pages",)
)
def decode(
    config: DecoderConfig, features: Features, steps: int, weights: Any, pages: Pages, rows: Rows,
    choice: Choice, adapters: Adapters | None,
) -> Decoded:  # fmt: skip
    """Up to `steps` tokens for each row; ends early when every row has ended."""
    lora = None if adapters is None else adapters.bound()

    def step(carry):
        number, rows, choice, pages, out, valid = carry
        active = rows.remaining > 0
        chunk = Chunk(rows.token[:, None], rows.start, active.astype(jnp.int32), rows.block_tables)
        hidden, pages, _ = forward(config, weights, pages, chunk, lora)
        chosen = choose(
            logits_of(weights, hidden[:, 0]), choice.sampling, choice.index, features,
            choice.seen, choice.mask,
        )  # fmt: skip
        out = jax.tree.map(lambda all_, new: all_.at[number].set(new), out, chosen)
        ended = jnp.any(chosen.token[:, None] == rows.stop_ids, -1)
        rows = rows._replace(
            token=jnp.where(active, chosen.token, rows.token),
            start=rows.start + active,
            remaining=jnp.where(ended | ~active, 0, rows.remaining - 1),
        )
        seen = choice.seen
        if seen is not None:
            row = jnp.arange(len(chosen.token))
            seen = seen._replace(generated=seen.generated.at[row, chosen.token].add(active))
        choice = choice._replace(index=choice.index + active, seen=seen)
        return number + 1, rows, choice, pages, out, valid.at[number].set(active)

    size = rows.token.shape[0]
    shapes = jax.eval_shape(
        lambda logits: choose(
            logits, choice.sampling, choice.index, features, choice.seen, choice.mask
        ),
        jax.ShapeDtypeStruct((size, config.vocab_size), jnp.float32),
    )
    out = jax.tree.map(lambda s: jnp.zeros((steps, *s.shape), s.dtype), shapes)
    choice = jax.tree.map(jnp.asarray, choice)
    carry = (jnp.int32(0), rows, choice, pages, out, jnp.zeros((steps, size), bool))
    if steps == 1:
        *_, pages, out, valid = step(carry)
    else:
        *_, pages, out, valid = jax.lax.while_loop(
            lambda c: (c[0] < steps) & jnp.any(c[1].remaining > 0), step, carry
        )
    return Decoded(out, valid, pages)
