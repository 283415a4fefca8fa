"""SAINT against its equations in NumPy."""

from __future__ import annotations

import pathlib
import sys

import numpy as np

from recsys_jax.tracing.models.saint import SAINT, SAINTConfig

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import attention_reference as ref  # noqa: E402

HEADS = 2


def saint(params, questions, concepts, responses):
    """Norm, then the sublayer with a skip from the normed input; the decoder starts one late."""
    positions = params["positions"][: len(questions)]

    def self_attention(p, x):
        n = ref.norm(p["norm"], x)
        return n + ref.attention(p["attention"], n, n, n, ref.up_to, HEADS)

    def cross_attention(p, x, memory):
        n = ref.norm(p["norm"], memory)
        return x + ref.attention(p["attention"], x, n, n, ref.up_to, HEADS)

    def feed_forward(p, x):
        n = ref.norm(p["norm"], x)
        return n + ref.feed_forward(p["ffn"], n)

    x = params["question"]["table"][questions] + positions
    x = x + ref.concept_mean(params["concept"]["table"], concepts)
    y = np.stack([params["start"], *params["response"]["table"][responses[:-1]]]) + positions
    for i in range(2):
        x = self_attention(params[f"encoder_{i}_self"], x)
        x = feed_forward(params[f"encoder_{i}_ffn"], x)
    for i in range(2):
        y = self_attention(params[f"decoder_{i}_self"], y)
        y = cross_attention(params[f"decoder_{i}_cross"], y, x)
        y = feed_forward(params[f"decoder_{i}_ffn"], y)
    return ref.head(params["head"], y)


def test_logits_are_those_of_the_equations():
    config = SAINTConfig(embedding_dim=8, num_heads=HEADS, num_blocks=2, max_len=ref.STEPS)
    model = SAINT(config, ref.QUESTIONS, ref.CONCEPTS)
    ref.check_logits(model, ref.initial(model), ref.batch_of(), saint)
