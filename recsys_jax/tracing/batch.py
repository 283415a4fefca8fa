"""The one form in which students' answers reach models and evaluation.

Letters: B students, T steps, C concepts of a question at most.
"""

from __future__ import annotations

from typing import NamedTuple

import jax


class Batch(NamedTuple):
    """Answers of B students in time order, padded on the right.

    questions: int32 (B, T), from 1; 0 is padding. concepts: int32 (B, T, C), the set of each
    question's concepts, from 1; 0 fills up. responses: int32 (B, T), 1 right, 0 wrong, 0 in
    padding. mask: bool (B, T), real steps.
    """

    questions: jax.Array
    concepts: jax.Array
    responses: jax.Array
    mask: jax.Array
