"""Random answers with a fixed map of concepts, as the readers would give them."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_jax.tracing.data import CleaningConfig, Ragged, RawAnswers, clean


def make_raw(seed: int, students: int = 12, longest: int = 30, questions: int = 15, **columns):
    """Students 101.., questions 1000.., concepts 7..12; questions have one to three concepts."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, students)
    lengths[0] = max(lengths[0], 3)
    total = int(lengths.sum())
    sets = [np.sort(rng.choice(6, rng.integers(1, 4), replace=False)) + 7 for _ in range(questions)]
    question = rng.integers(0, questions, total)
    return RawAnswers(
        student=np.repeat(np.arange(students) + 101, lengths),
        question=question + 1000,
        concepts=Ragged.from_lists([sets[q] for q in question]),
        response=rng.integers(0, 2, total).astype(float),
        **columns,
    )


@pytest.fixture(scope="session")
def random_raw():
    return make_raw


@pytest.fixture(scope="session")
def random_log():
    def make(seed: int, **sizes):
        return clean(make_raw(seed, **sizes), CleaningConfig(min_answers=1))[0]

    return make
