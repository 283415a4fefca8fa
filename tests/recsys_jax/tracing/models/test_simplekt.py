"""simpleKT against its equations in NumPy."""

from __future__ import annotations

import pathlib
import sys

import numpy as np

from recsys_jax.tracing.models import attention_blocks as blocks
from recsys_jax.tracing.models.simplekt import SimpleKT, SimpleKTConfig

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import attention_reference as ref  # noqa: E402


def positions(steps, dim):
    """sin and cos of t / 10000^(2i / dim) at columns 2i and 2i + 1."""
    out = np.zeros((steps, dim))
    for t in range(steps):
        for column in range(dim):
            angle = t / 10000 ** ((column - column % 2) / dim)
            out[t, column] = np.cos(angle) if column % 2 else np.sin(angle)
    return out


def simplekt(params, questions, concepts, responses):
    c = ref.concept_mean(params["concept"]["table"], concepts)
    d = ref.concept_mean(params["concept_variation"]["table"], concepts)
    question = c + params["difficulty"]["table"][questions] * d
    place = positions(len(c), c.shape[-1])
    x, y = question + place, c + params["response"]["table"][responses] + place
    for i in range(2):
        x = ref.block(params[f"block_{i}"], x, x, y, ref.before, 2, shared=True)
    return ref.head(params["head"], np.concatenate([x, question], -1))


def test_logits_are_those_of_the_equations():
    config = SimpleKTConfig(embedding_dim=8, ffn_dim=6, num_heads=2, head_dims=(5, 4))
    model = SimpleKT(config, ref.QUESTIONS, ref.CONCEPTS)
    ref.check_logits(model, ref.initial(model), ref.batch_of(), simplekt)


def test_positions_of_even_and_odd_widths():
    for dim in (8, 7):
        np.testing.assert_allclose(blocks.sinusoid(11, dim), positions(11, dim), atol=1e-6)
