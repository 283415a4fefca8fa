"""Tiny students, tables and models for the tests of AdvKT."""

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.parallel.sharding import unbox
from pangu_jax.training.quick_compile import quick_options
from recsys_jax.tracing.advkt.config import (
    AdversarialConfig,
    DiscriminatorConfig,
    GeneratorConfig,
)
from recsys_jax.tracing.advkt.tables import build_tables
from recsys_jax.tracing.advkt.training import build
from recsys_jax.tracing.batch import Batch

QUESTIONS, CONCEPTS, SLOTS, DIM = 12, 5, 3, 8


def jit(function, **kwargs):
    """`jax.jit` for programs that cost more to compile than to run."""
    return jax.jit(function, compiler_options=quick_options(jax.devices()[0]), **kwargs)


def make_batch(lengths, width, seed=0) -> Batch:
    """Random students of the given lengths; each question has its own fixed set of concepts."""
    rng = np.random.default_rng(seed)
    sets = np.zeros((QUESTIONS + 1, SLOTS), np.int32)
    for question in range(1, QUESTIONS + 1):
        count = 1 + question % SLOTS
        order = np.random.default_rng(question).permutation(CONCEPTS)
        sets[question, :count] = order[:count] + 1
    mask = np.arange(width) < np.asarray(lengths)[:, None]
    questions = np.where(mask, rng.integers(1, QUESTIONS + 1, mask.shape), 0).astype(np.int32)
    responses = np.where(mask, rng.integers(0, 2, mask.shape), 0).astype(np.int32)
    return Batch(*map(jnp.asarray, (questions, sets[questions], responses, mask)))


def pad(batch: Batch, more: int) -> Batch:
    """The same students, with more padding."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, more)] + [(0, 0)] * (x.ndim - 2)), batch)


def make_tables(seed=0):
    """Tables of a few students in which not every question occurs."""
    return build_tables([make_batch([9, 12, 4], 12, seed)], QUESTIONS, neighbours=3)


def make_program(*, generator=None, discriminator=None, **config):
    """A program and its parameters, without boxes."""
    sizes = {"num_questions": QUESTIONS, "num_concepts": CONCEPTS, "dim": DIM}
    program = build(
        GeneratorConfig(**sizes, **({"chunk": 4} | (generator or {}))),
        DiscriminatorConfig(**sizes, **(discriminator or {})),
        AdversarialConfig(**({"step_share": 6} | config)),
    )
    return program, unbox(program.init_params(jax.random.key(3)))


def to_numpy64(tree):
    """The tree as float64 NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
