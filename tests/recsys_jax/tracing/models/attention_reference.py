"""NumPy float64 pieces of the attention models, one query at a time over the keys it may see.

Written from the equations of spec 3.1, without masks: a query gets the list of its keys. Parameter
trees are those of the Flax modules. Also random batches and a comparison in float64.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.tracing.batch import Batch

QUESTIONS, CONCEPTS, STEPS = 6, 5, 9
LENGTHS = (STEPS, 5, 1)


def batch_of(seed: int = 0, lengths=LENGTHS, steps: int = STEPS) -> Batch:
    """Random answers; concept sets of 0 to 3 concepts, the empty one included."""
    rng = np.random.default_rng(seed)
    mask = np.arange(steps) < np.array(lengths)[:, None]
    questions = rng.integers(1, QUESTIONS + 1, mask.shape)
    sets = np.zeros((QUESTIONS + 1, 3), int)
    for question in range(1, QUESTIONS + 1):
        size = (question + 1) % 4
        sets[question, :size] = rng.permutation(CONCEPTS)[:size] + 1
    questions = np.where(mask, questions, 0)
    responses = np.where(mask, rng.integers(0, 2, mask.shape), 0)
    arrays = (questions, sets[questions], responses)
    return Batch(*(jnp.asarray(x, jnp.int32) for x in arrays), jnp.asarray(mask))


def initial(model, seed: int = 0):
    """Plain float32 parameters, moved away from zeros and ones."""
    params = nn.unbox(jax.jit(model.init)(jax.random.key(seed), batch_of()))["params"]
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    leaves = [np.asarray(x) + 0.2 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, leaves)


def check_logits(model, params, batch, reference) -> None:
    """In float64 the module equals `reference(params, questions, concepts, responses)`."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    with jax.enable_x64(True):
        logits = np.asarray(jax.jit(model.apply)({"params": wide}, batch))
    for i, length in enumerate(np.asarray(batch.mask).sum(1)):
        arrays = (np.asarray(x[i, :length]) for x in batch[:3])
        expected = reference(wide, *arrays)
        np.testing.assert_allclose(logits[i, :length], expected, rtol=1e-6, atol=1e-6)


def concept_mean(table, concepts):
    """Mean of the rows of the non-zero ids of each step (T, C); zeros for none."""
    out = np.zeros((len(concepts), table.shape[-1]))
    for t, ids in enumerate(concepts):
        rows = [table[i] for i in ids if i > 0]
        if rows:
            out[t] = sum(rows) / len(rows)
    return out


def linear(p, x):
    return x @ p["dense"]["kernel"] + p["dense"]["bias"]


def norm(p, x):
    variance = ((x - x.mean(-1, keepdims=True)) ** 2).mean(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def attention(p, query, key, value, keys_of, heads, *, shared=False, monotonic=False):
    """keys_of(t): the steps that query t may see."""
    q = linear(p["key"] if shared else p["query"], query)
    k, v = linear(p["key"], key), linear(p["value"], value)
    width = q.shape[-1] // heads
    out = np.zeros_like(q)
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        for t in range(len(q)):
            steps = list(keys_of(t))
            if not steps:
                continue
            scores = np.array([q[t, part] @ k[s, part] for s in steps]) / np.sqrt(width)
            if monotonic:
                plain = softmax(scores)
                rate = np.log1p(np.exp(p["gamma"][h]))
                for i, s in enumerate(steps):
                    remaining = 1 - plain[: i + 1].sum()
                    distance = np.sqrt(max(0.0, remaining * abs(t - s)))
                    scores[i] *= np.clip(np.exp(-rate * distance), 1e-5, 1e5)
            out[t, part] = softmax(scores) @ v[steps][:, part]
    return linear(p["out"], out)


def feed_forward(p, x):
    return linear(p["out"], np.maximum(linear(p["in"], x), 0))


def block(p, query, key, value, keys_of, heads, *, ffn=True, **options):
    x = norm(
        p["attention_norm"],
        query + attention(p["attention"], query, key, value, keys_of, heads, **options),
    )
    return norm(p["ffn_norm"], x + feed_forward(p["ffn"], x)) if ffn else x


def head(p, x):
    for i in range(len(p) - 1):
        x = np.maximum(linear(p[f"hidden_{i}"], x), 0)
    return linear(p["logit"], x)[:, 0]


def up_to(t):
    return range(t + 1)


def before(t):
    return range(t)
