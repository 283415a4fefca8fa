"""The four augmentations of real sequences, and random walks over questions.

All can be jitted. Responses travel with their steps; padding stays behind the last real step.
Source: the released code, spec section 1.5; candidate and successor lists are ours (the released
tables are not public). Letters: B students, T steps, C concepts of a question.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from recsys_jax.tracing.advkt.draws import choose, uniforms
from recsys_jax.tracing.advkt.tables import QuestionTables, Ragged
from recsys_jax.tracing.batch import Batch


def mask_steps(
    key: jax.Array, batch: Batch, prob: float, mask_question: int, mask_concept: int
) -> Batch:
    """Each step with probability `prob`: question and all concept slots become the mask ids."""
    chosen = _chosen(key, batch, prob)
    return batch._replace(
        questions=jnp.where(chosen, mask_question, batch.questions),
        concepts=jnp.where(chosen[..., None], mask_concept, batch.concepts),
    )


def replace_questions(key: jax.Array, batch: Batch, prob: float, tables: QuestionTables) -> Batch:
    """Each step with probability `prob`: an easier question if right, a harder one if wrong.

    The concepts are the new question's. A question without candidates stays.
    """
    which, what = jax.random.split(key)
    draw = uniforms(what, *batch.questions.shape)
    easier = pick(tables.easier, batch.questions, draw, batch.questions)
    harder = pick(tables.harder, batch.questions, draw, batch.questions)
    questions = jnp.where(batch.responses > 0, easier, harder)
    changed = _chosen(which, batch, prob) & (questions != batch.questions)
    return batch._replace(
        questions=jnp.where(changed, questions, batch.questions),
        concepts=jnp.where(
            changed[..., None], jnp.take(tables.concepts, questions, axis=0), batch.concepts
        ),
    )


def crop(key: jax.Array, batch: Batch, ratio: float) -> Batch:
    """A stretch of `ratio` of each sequence, cut at its end, moved to the front; 1 step or more."""
    lengths = jnp.sum(batch.mask, -1)
    start = _start(key, lengths)
    kept = jnp.maximum(jnp.floor(lengths * ratio).astype(jnp.int32), 1)
    new = jnp.minimum(start + kept, lengths) - start
    steps = jnp.arange(batch.mask.shape[1])
    source = jnp.minimum(start[:, None] + steps, batch.mask.shape[1] - 1)
    return _cut(_gather(batch, source), steps < new[:, None])


def permute(key: jax.Array, batch: Batch, ratio: float) -> Batch:
    """The steps of a stretch of `ratio` of each sequence, its last step excepted, shuffled."""
    where, how = jax.random.split(key)
    lengths = jnp.sum(batch.mask, -1)
    start = _start(where, lengths)[:, None]
    end = start + jnp.floor(lengths * ratio).astype(jnp.int32)[:, None]
    end = jnp.where(end < lengths[:, None], end, lengths[:, None] - 1)
    steps = jnp.arange(batch.mask.shape[1])
    inside = (steps >= start) & (steps < end)
    # Sorting by (stretch or not, random number) with whole numbers first keeps the rest in place.
    draw = uniforms(how, *batch.mask.shape)
    major = jnp.where(inside, start, steps)
    order = jnp.lexsort((jnp.where(inside, draw, 0.0), major), axis=-1)
    return _gather(batch, order)


def pick(lists: Ragged, rows: jax.Array, draw: jax.Array, fallback: jax.Array) -> jax.Array:
    """int32, shape of `rows`: a uniform entry of each row's list; `fallback` where it is empty.

    draw: uniform numbers of the same shape.
    """
    first = jnp.take(lists.offsets, rows)
    count = jnp.take(lists.offsets, rows + 1) - first
    # One more entry than there are lists' items, so that an empty table can be read as well.
    items = jnp.append(lists.items, 0)
    return jnp.where(count > 0, jnp.take(items, first + choose(draw, count)), fallback)


def random_walks(
    key: jax.Array,
    tables: QuestionTables,
    rows: int,
    width: int,
    min_length: int,
    active: jax.Array | None = None,
) -> Batch:
    """Question sequences that step from question to successor; responses are 0.

    Args:
      key: typed key.
      tables: of the training data. Walks begin at a uniform question of it; one without
        successors is followed by another such start.
      rows: walks.
      width: steps of the arrays. One length for all walks, uniform on min_length ... width - 1
        (width, if that is min_length or less).
      min_length: see `width`.
      active: int32, how many walks are real; the others are padding. None for all.

    Returns:
      Batch (rows, width).
    """
    length_key, first_key, next_key, restart_key = jax.random.split(key, 4)
    high = max(width - 1, min_length)
    length = jax.random.randint(length_key, (), min_length, high + 1)
    starts = tables.starts

    def begin(draw):
        return jnp.take(starts, choose(draw, jnp.full(draw.shape, starts.shape[0])))

    first = begin(uniforms(first_key, rows, 1)[:, 0])

    def step(question, draws):
        return pick(tables.successors, question, draws[0], begin(draws[1])), question

    draws = uniforms(next_key, rows, width).T, uniforms(restart_key, rows, width).T
    _, questions = jax.lax.scan(step, first, draws)
    mask = jnp.broadcast_to(jnp.arange(width) < length, (rows, width))
    if active is not None:
        mask &= (jnp.arange(rows) < active)[:, None]
    questions = jnp.where(mask, questions.T, 0)
    concepts = jnp.take(tables.concepts, questions, axis=0)
    return Batch(questions, concepts, jnp.zeros_like(questions), mask)


def _chosen(key, batch: Batch, prob: float) -> jax.Array:
    return (uniforms(key, *batch.questions.shape) < prob) & batch.mask


def _start(key, lengths: jax.Array) -> jax.Array:
    """Uniform on 0 ... length - 2 (0 for a sequence of one step)."""
    draw = uniforms(key, lengths.shape[0], 1)[:, 0]
    return choose(draw, lengths - 1)


def _gather(batch: Batch, source: jax.Array) -> Batch:
    concepts = jnp.take_along_axis(batch.concepts, source[..., None], 1)
    rest = (
        jnp.take_along_axis(x, source, 1) for x in (batch.questions, batch.responses, batch.mask)
    )
    questions, responses, mask = rest
    return Batch(questions, concepts, responses, mask)


def _cut(batch: Batch, keep: jax.Array) -> Batch:
    return Batch(
        jnp.where(keep, batch.questions, 0),
        jnp.where(keep[..., None], batch.concepts, 0),
        jnp.where(keep, batch.responses, 0),
        batch.mask & keep,
    )
