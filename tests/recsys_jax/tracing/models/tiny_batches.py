"""Small random batches of students for the tests of tracing models."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.tracing.batch import Batch

QUESTIONS, CONCEPTS, STUDENTS, STEPS, SLOTS = 7, 5, 3, 12, 3


def students(seed: int = 0, count: int = STUDENTS, steps: int = STEPS) -> Batch:
    """Random answers; the first student has every step, the others fewer."""
    rng = np.random.default_rng(seed)
    questions = rng.integers(1, QUESTIONS + 1, (count, steps))
    sets = np.zeros((QUESTIONS + 1, SLOTS), int)
    for question in range(1, QUESTIONS + 1):
        size = question % SLOTS + 1
        sets[question, :size] = rng.permutation(CONCEPTS)[:size] + 1
    lengths = np.concatenate([[steps], rng.integers(2, steps + 1, count - 1)])
    mask = np.arange(steps) < lengths[:, None]
    questions = np.where(mask, questions, 0)
    responses = np.where(mask, rng.integers(0, 2, (count, steps)), 0)
    arrays = (questions, sets[questions], responses)
    return Batch(*(jnp.asarray(x, jnp.int32) for x in arrays), jnp.asarray(mask))


def moved_variables(module, scale: float = 0.3) -> dict:
    """Unboxed variables away from their start values, some of which are 0."""
    variables = nn.unbox(jax.jit(module.init)(jax.random.key(0), students()))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + scale * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, moved)
