"""CL4KT's contrastive pre-training (Lee et al., WWW 2022) for any encoder of answers.

Two views of each student's answers should be close and a student with every response turned round
should be far (hard negative), against the other students of the batch. Checked against pyKT's copy
of the authors' code (cl4kt.py) and the authors' `augment_seq.py`; what differs is said below.

Letters: B students, T steps, C concepts of a question at most, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.tracing.batch import Batch

RATES = ("mask_prob", "replace_prob", "permute_prob", "crop_prob", "negative_prob")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Rates of the views and of the loss; defaults of spec 3.1, the last two from memory.

    mask_prob, replace_prob: per step. permute_prob, crop_prob: share of a student's steps that is
    shuffled, or kept; 0 turns the operator off, and so does 1 for crop. temperature: of cosines.
    negative_prob: chance that a response is turned round in the hard negative.
    hard_negative_weight: added to the logit of a student's own hard negative.
    """

    mask_prob: float = 0.2
    replace_prob: float = 0.3
    permute_prob: float = 0.3
    crop_prob: float = 0.3
    temperature: float = 0.05
    negative_prob: float = 1.0
    hard_negative_weight: float = 1.0

    def __post_init__(self):
        for name in RATES:
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]")
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive")


class Neighbours(NamedTuple):
    """int32 (num_concepts + 2,) each: the next easier and the next harder concept of each.

    A concept at the end of the order, or never answered, and 0 and the mask token are their own.
    """

    easier: jax.Array
    harder: jax.Array


def difficulty_neighbours(batch: Batch, num_concepts: int) -> Neighbours:
    """Concepts in the order of their share of right answers; give it training students only."""
    mask = np.asarray(batch.mask)
    concepts = np.asarray(batch.concepts) * mask[..., None]
    responses = np.broadcast_to(np.asarray(batch.responses)[..., None], concepts.shape)
    seen = np.bincount(concepts.ravel(), minlength=num_concepts + 1)
    right = np.bincount(concepts.ravel(), responses.ravel(), minlength=num_concepts + 1)
    known = np.flatnonzero(seen[1:]) + 1
    order = known[np.argsort(right[known] / seen[known], kind="stable")]  # hard to easy
    easier = np.arange(num_concepts + 2, dtype=np.int32)
    harder = easier.copy()
    easier[order[:-1]], harder[order[1:]] = order[1:], order[:-1]
    return Neighbours(jnp.asarray(easier), jnp.asarray(harder))


def view(
    key: jax.Array,
    batch: Batch,
    config: ContrastiveConfig,
    neighbours: Neighbours | None = None,
    *,
    num_questions: int,
    num_concepts: int,
    mask_tokens: tuple[int, int] = (0, 0),
) -> Batch:
    """A random view of each student: mask, replace, permute, crop, in this order; same shapes.

    mask: of the steps chosen 80 % lose their question and concepts (they become `mask_tokens`, by
    default 0, the unknown question of every encoder here), 10 % get random ones (one concept), 10 %
    stay. replace: the concepts of a step become their easier neighbours after a right and harder
    ones after a wrong answer, and the question becomes the mask token, since the pair would not
    exist (the original has concepts only); nothing without `neighbours`. permute: shuffles a random
    run of steps. crop: keeps a random run, moved to the front. Responses travel with their steps.
    """
    keys = jax.random.split(key, 4)
    questions, concepts = _mask(
        keys[0], batch, config.mask_prob, num_questions, num_concepts, mask_tokens
    )
    if neighbours is not None and config.replace_prob > 0:
        # Masked steps have nothing to replace.
        chosen = jax.random.bernoulli(keys[1], config.replace_prob, questions.shape)
        chosen &= questions != mask_tokens[0]
        right = batch.responses[..., None] == 1
        moved = jnp.where(right, neighbours.easier[concepts], neighbours.harder[concepts])
        questions = jnp.where(chosen, mask_tokens[0], questions)
        concepts = jnp.where(chosen[..., None], moved, concepts)
    out = _blank(batch._replace(questions=questions, concepts=concepts))
    if config.permute_prob > 0:
        out = _permute(keys[2], out, config.permute_prob)
    if 0 < config.crop_prob < 1:
        out = _crop(keys[3], out, config.crop_prob)
    return out


def flipped(key: jax.Array, batch: Batch, probability: float) -> Batch:
    """Each real response turned round with this probability: the hard negative."""
    turn = jax.random.bernoulli(key, probability, batch.mask.shape) & batch.mask
    return batch._replace(responses=jnp.where(turn, 1 - batch.responses, batch.responses))


def pool(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean (B, D) of states (B, T, D) over real steps; 0 for a student without any."""
    count = jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)
    return jnp.sum(jnp.where(mask[..., None], states, 0), 1) / count


def info_nce(
    anchors: jax.Array,
    positives: jax.Array,
    valid: jax.Array,
    *,
    temperature: float,
    negatives: jax.Array | None = None,
    negative_weight: float = 0.0,
) -> jax.Array:
    """InfoNCE of cosines / temperature, a scalar; anchors, positives, negatives (B, D).

    Student i's logits are all positives, of which the i-th is right, and all `negatives`, of which
    the i-th gets `negative_weight` more. Students that are not `valid` (B,) are left out.
    """
    anchors, positives = _unit(anchors), _unit(positives)
    logits = anchors @ positives.T
    columns = valid
    if negatives is not None:
        own = negative_weight * temperature * jnp.eye(len(anchors), dtype=logits.dtype)
        logits = jnp.concatenate([logits, anchors @ _unit(negatives).T + own], -1)
        columns = jnp.concatenate([valid, valid])
    logits = jnp.where(columns, logits / temperature, -1e30)
    losses = -jnp.diagonal(jax.nn.log_softmax(logits, axis=-1))
    return jnp.sum(jnp.where(valid, losses, 0)) / jnp.maximum(jnp.sum(valid), 1)


def contrastive_loss(
    encode: Callable[[Batch], jax.Array],
    key: jax.Array,
    batch: Batch,
    config: ContrastiveConfig,
    neighbours: Neighbours | None = None,
    *,
    hard_negatives: bool = True,
    **sizes,
) -> jax.Array:
    """The pre-training loss of any encoder: a scalar, not yet weighted.

    encode: Batch -> (B, T, D), for instance `lambda b: model.apply(variables, b, method='states')`.
    Its steps are averaged (`pool`). hard_negatives: the student with turned responses as a negative
    of the first view; off for an encoder that reads no responses. sizes: num_questions,
    num_concepts, mask_tokens, as in `view`. Each view is averaged over its own real steps (pyKT's
    copy uses the original's mask for all).
    """
    keys = jax.random.split(key, 3)
    first = view(keys[0], batch, config, neighbours, **sizes)
    second = view(keys[1], batch, config, neighbours, **sizes)
    turned = None
    if hard_negatives and config.negative_prob > 0:
        negative = flipped(keys[2], batch, config.negative_prob)
        turned = pool(encode(negative), negative.mask)
    return info_nce(
        pool(encode(first), first.mask),
        pool(encode(second), second.mask),
        jnp.any(batch.mask, -1),
        temperature=config.temperature,
        negatives=turned,
        negative_weight=config.hard_negative_weight,
    )


def _unit(x: jax.Array) -> jax.Array:
    """x / max(||x||, 1e-8), with a gradient of 0 at 0 (`torch.cosine_similarity`)."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-16))


def _blank(batch: Batch) -> Batch:
    """Zeros in padding."""
    mask = batch.mask
    return Batch(
        jnp.where(mask, batch.questions, 0),
        jnp.where(mask[..., None], batch.concepts, 0),
        jnp.where(mask, batch.responses, 0),
        mask,
    )


def _mask(key, batch, rate, num_questions, num_concepts, tokens):
    """Questions and concepts after BERT's 80 / 10 / 10 masking of a share of the steps."""
    draw, question, concept = jax.random.split(key, 3)
    shape = batch.questions.shape
    u = jax.random.uniform(draw, shape)
    hide, swap = u < 0.8 * rate, (u >= 0.8 * rate) & (u < 0.9 * rate)
    questions = jnp.where(hide, tokens[0], batch.questions)
    questions = jnp.where(
        swap, jax.random.randint(question, shape, 1, num_questions + 1), questions
    )
    first = jnp.arange(batch.concepts.shape[-1]) == 0
    other = jax.random.randint(concept, shape, 1, num_concepts + 1)
    concepts = jnp.where(hide[..., None], jnp.where(first, tokens[1], 0), batch.concepts)
    concepts = jnp.where(swap[..., None], jnp.where(first, other[..., None], 0), concepts)
    return questions, concepts


def _run_of_steps(key, mask, share, at_least):
    """Start and length (B, 1) of a random run of floor(share * length) steps of each student."""
    length = jnp.sum(mask, -1, keepdims=True)
    size = jnp.maximum(jnp.floor(share * length).astype(jnp.int32), at_least)
    size = jnp.minimum(size, length)
    u = jax.random.uniform(key, length.shape)
    start = jnp.floor(u * (length - size + 1)).astype(jnp.int32)
    return jnp.minimum(start, length - size), size


def _reorder(batch: Batch, order: jax.Array) -> Batch:
    """Steps in another order (B, T)."""
    take = jnp.take_along_axis
    return Batch(
        take(batch.questions, order, 1),
        take(batch.concepts, order[..., None], 1),
        take(batch.responses, order, 1),
        take(batch.mask, order, 1),
    )


def _permute(key, batch, share):
    where, shuffle = jax.random.split(key)
    start, size = _run_of_steps(where, batch.mask, share, 0)
    steps = jnp.arange(batch.mask.shape[-1])
    inside = (steps >= start) & (steps < start + size)
    # Ranks strictly between those of the neighbours outside the run.
    rank = start + size * jax.random.uniform(shuffle, batch.mask.shape) - 0.5
    return _reorder(batch, jnp.argsort(jnp.where(inside, rank, steps.astype(rank.dtype)), -1))


def _crop(key, batch, share):
    start, size = _run_of_steps(key, batch.mask, share, 1)
    steps = jnp.arange(batch.mask.shape[-1])
    moved = _reorder(batch, jnp.minimum(start + steps, steps[-1]))
    return _blank(moved._replace(mask=moved.mask & (steps < size)))
