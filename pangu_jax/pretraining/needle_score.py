"""What a decoder says to needle questions: log-probabilities, greedy answers, perplexity by place.

A context is read once; questions and answers are tried on top of its key-value cache. Logits exist
only for the answers' tokens and, for perplexity, for one chunk of the loss at a time.

Letters: R rows, C tokens of a context, A questions of a row, K values, Q tokens of a question,
U tokens of a value, P buckets of positions, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models import Decoder, DecoderConfig, create_cache, cross_entropy, logits_of
from pangu_jax.pretraining.needle import Row


class Scores(NamedTuple):
    """Of R rows, in their order.

    log_probs: (R, A, K), of each value as the answer to each question.
    greedy: bool (R, A, K), whether greedy decoding says exactly this value.
    nll, counted: (R, P), summed negative log-likelihood of the context's tokens and how many, by
      bucket of positions; 0 and 0 for rows with needles.
    """

    log_probs: np.ndarray
    greedy: np.ndarray
    nll: np.ndarray
    counted: np.ndarray


def answer_scores(
    logits: jax.Array, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(log-probability of each answer, whether it is the greedy one).

    logits[..., i, :] predict answer token i when tokens 0..i-1 of the answer have been read. An
    answer is greedy exactly if each of its tokens has the largest logit there: up to the first
    miss greedy decoding has read the same tokens, and a miss ends the match.

    Args:
      logits: (..., U, V). tokens: int32 (..., U). lengths: int32 (...), tokens that count.
    """
    counts = jnp.arange(tokens.shape[-1]) < lengths[..., None]
    own = jnp.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    log_probs = own - jax.scipy.special.logsumexp(logits, axis=-1)
    greedy = jnp.argmax(logits, -1) == tokens
    return (
        jnp.sum(jnp.where(counts, log_probs, 0), -1),
        jnp.all(jnp.where(counts, greedy, True), -1),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(config: DecoderConfig, buckets: int, params: Any, batch: dict[str, jax.Array]):
    """Arrays of `Scores`; batch as `_batch` makes it. Compiled once per config and shapes.

    The rotary base belongs to the config, so each base is compiled anew.
    """
    model = Decoder(config)
    context, questions, values = batch["context"], batch["questions"], batch["values"]
    rows, length = context.shape
    width, answer = questions.shape[-1], values.shape[-1]
    order = jnp.arange(width)[None]

    def run(tokens, valid, first, cache):
        """Reads tokens behind the cache; padding has segment 0, which nothing attends to."""
        positions = first[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        segments = jnp.broadcast_to(valid, tokens.shape).astype(jnp.int32)
        return model.apply({"params": params}, tokens, segments, positions, cache=cache,
                           method="run")  # fmt: skip

    start = jnp.zeros((rows,), jnp.int32)
    cache = create_cache(config, rows, length + width + max(answer - 1, 1))
    read = run(context, True, start, cache)
    nll, counted = jax.lax.cond(
        batch["control"],
        lambda: _by_bucket(config, read.hidden, read.head, context, buckets),
        lambda: (jnp.zeros((rows, buckets)), jnp.zeros((rows, buckets))),
    )

    def ask(question):
        tokens, lengths = question  # (R, Q), (R,)
        asked = run(tokens, order < lengths[:, None], start + length, read.cache)
        last = jnp.take_along_axis(asked.hidden, (lengths - 1)[:, None, None], 1)

        def answer_with(value):
            tokens, sizes = value  # (R, U), (R,)
            hidden = last
            if answer > 1:  # the last token of an answer predicts nothing that is asked for
                valid = jnp.arange(answer - 1)[None] < sizes[:, None]
                said = run(tokens[:, :-1], valid, length + lengths, asked.cache)
                hidden = jnp.concatenate([last, said.hidden], 1)
            return answer_scores(logits_of(hidden, read.head), tokens, sizes)

        return jax.lax.map(answer_with, (values.swapaxes(0, 1), batch["value_lengths"].T))

    log_probs, greedy = jax.lax.map(
        ask, (questions.swapaxes(0, 1), batch["question_lengths"].T)
    )  # (A, K, R)
    return jnp.moveaxis(log_probs, -1, 0), jnp.moveaxis(greedy, -1, 0), nll, counted


def _by_bucket(config, hidden, head, tokens, buckets):
    """(summed NLL, tokens), each (R, P), by bucket of the predicted token's position."""
    rows, length = tokens.shape
    size = -(-length // buckets)
    labels = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)), constant_values=-1)
    missing = size * buckets - length

    def cut(x, fill):
        pad = [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, pad, constant_values=fill)
        return x.reshape(rows * buckets, 1, size, *x.shape[2:])

    def loss(piece):
        sums = cross_entropy(piece[0], head, piece[1], chunk=config.loss_chunk)
        return sums.metrics["nll"].astype(jnp.float32), sums.weight.astype(jnp.float32)

    nll, counted = jax.lax.map(loss, (cut(hidden, 0), cut(labels, -1)))
    return nll.reshape(rows, buckets), counted.reshape(rows, buckets)


def _padded(lists: list[list[list[int]]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids (R, N, width) padded with 0, lengths (R, N)), int32."""
    ids = np.zeros((len(lists), len(lists[0]), width), np.int32)
    for r, row in enumerate(lists):
        for n, one in enumerate(row):
            ids[r, n, : len(one)] = one
    return ids, np.array([[len(one) for one in row] for row in lists], np.int32)


def score_rows(
    config: DecoderConfig, params: Any, rows: Sequence[Row], *, batch_rows: int = 4,
    buckets: int = 8,
) -> Scores:  # fmt: skip
    """Scores of rows of one length, `batch_rows` contexts at a time.

    Args:
      config: with the rotary base to try.
      params: of `Decoder(config)`.
      rows: contexts of equal length, with equally many questions and values.

    Raises:
      ValueError: rows that differ in these, or ids beyond the vocabulary.
    """
    sizes = {(len(row.context), len(row.questions), len(row.values)) for row in rows}
    if len(sizes) != 1:
        raise ValueError(
            f"rows have (context, questions, values) of {sorted(sizes)}; one size is needed."
        )
    most = max(int(row.context.max()) for row in rows)
    most = max([most, *(t for row in rows for ids in (*row.questions, *row.values) for t in ids)])
    if most >= config.vocab_size:
        raise ValueError(
            f"The haystacks have token {most}, but the model's vocabulary ends at "
            f"{config.vocab_size - 1}: tokenizer and model do not belong together."
        )
    question = max(len(ids) for row in rows for ids in row.questions)
    value = max(len(ids) for row in rows for ids in row.values)
    parts: list[Any] = [None] * len(rows)
    for control in (False, True):  # a batch has either needles or perplexity
        chosen = [index for index, row in enumerate(rows) if row.control == control]
        for first in range(0, len(chosen), batch_rows):
            indices = chosen[first : first + batch_rows]
            # The last batch is filled up by repetition, so that it is not compiled anew.
            taken = [rows[i] for i in (indices * batch_rows)[:batch_rows]]
            questions, question_lengths = _padded([row.questions for row in taken], question)
            values, value_lengths = _padded([row.values for row in taken], value)
            batch = {
                "context": np.stack([row.context for row in taken]),
                "questions": questions, "question_lengths": question_lengths,
                "values": values, "value_lengths": value_lengths, "control": np.bool_(control),
            }  # fmt: skip
            out = [np.asarray(x) for x in _score(config, buckets, params, batch)]
            for place, index in enumerate(indices):
                parts[index] = [x[place] for x in out]
    return Scores(*(np.stack(x) for x in zip(*parts, strict=True)))
