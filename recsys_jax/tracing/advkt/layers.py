"""Parts that generator and discriminator share, as functions of explicit parameters.

Parameters are declared by the modules and used by plain functions, so that `lax.scan` can call
them. Letters: B students, T steps, C concepts of a question, D width.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned
from recsys_jax.sequential.randomness import dropout

Params = dict[str, Any]


def torch_linear(fan_in: int):
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch.nn.Linear's for weight and bias."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def declare_linear(module: nn.Module, name: str, inputs: int, outputs: int) -> Params:
    """Parameters {'kernel': (inputs, outputs), 'bias': (outputs,)} of `module`."""
    init = torch_linear(inputs)
    return {
        "kernel": module.param(f"{name}_kernel", partitioned(init, None, None), (inputs, outputs)),
        "bias": module.param(f"{name}_bias", partitioned(init, None), (outputs,)),
    }


def declare_mlp(module: nn.Module, name: str, inputs: int, outputs: int, hidden: int) -> list:
    """Parameters of `hidden` layers of width `inputs` and an output layer (spec 1.3, 'funcs')."""
    widths = [inputs] * hidden + [outputs]
    return [declare_linear(module, f"{name}_{i}", inputs, w) for i, w in enumerate(widths)]


def linear(params: Params, x: jax.Array) -> jax.Array:
    """x @ kernel + bias over the last axis."""
    return x @ params["kernel"] + params["bias"]


def mlp(params: list, x: jax.Array, rate: float = 0.0, key: jax.Array | None = None) -> jax.Array:
    """ReLU layers, dropout where a key is given, then the output layer."""
    for layer in params[:-1]:
        x = nn.relu(linear(layer, x))
    if key is not None and rate > 0:
        x = dropout(key, x, rate)
    return linear(params[-1], x)


def declare_gru(module: nn.Module, name: str, inputs: int, dim: int) -> Params:
    """Six biased linear maps of a GRU cell: gates r, z, n of input and of state."""
    return {
        f"{side}{gate}": declare_linear(module, f"{name}_{side}{gate}", width, dim)
        for side, width in (("i", inputs), ("h", dim))
        for gate in "rzn"
    }


def gru(params: Params, x: jax.Array, h: jax.Array) -> jax.Array:
    """The next state, as torch.nn.GRUCell: n = tanh(W x + b + r (U h + c)), h' = (1-z) n + z h."""
    r = nn.sigmoid(linear(params["ir"], x) + linear(params["hr"], h))
    z = nn.sigmoid(linear(params["iz"], x) + linear(params["hz"], h))
    n = jnp.tanh(linear(params["in"], x) + r * linear(params["hn"], h))
    return (1 - z) * n + z * h


def declare_table(
    module: nn.Module, name: str, rows: int, dim: int, deviation: float = 1.0
) -> jax.Array:
    """An embedding table (rows, dim), N(0, deviation^2); 1 as released."""
    init = nn.initializers.normal(deviation)
    return module.param(name, partitioned(init, None, "embed"), (rows, dim))


def embed(table: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of ids from 1; id 0 gives zeros, which the table does not store."""
    rows = jnp.take(table, jnp.maximum(ids - 1, 0), axis=0, mode="clip")
    return jnp.where((ids > 0)[..., None], rows, 0)


def question_features(
    question_table: jax.Array,
    concept_table: jax.Array,
    questions: jax.Array,
    concepts: jax.Array,
    divisor: str,
    variation_table: jax.Array | None = None,
) -> jax.Array:
    """[mean of concept embeddings ; question embedding], (..., 2 D) (spec 1.3 item 1).

    questions: int32 (...). concepts: int32 (..., C). divisor: 'fixed' | 'released'.
    variation_table: where given, question_table is (Q, 1), difficulties mu_q, and the question
      embedding is mu_q times the mean of its concepts' rows d_c (the Rasch form of AKT; ours here).
    """
    filled = jnp.sum(concepts > 0, -1)
    count = filled if divisor == "fixed" else concepts.shape[-1] - filled

    def mean(table):
        total = jnp.sum(embed(table, concepts), -2)
        return total / jnp.maximum(count, 1)[..., None].astype(total.dtype)

    question = embed(question_table, questions)
    if variation_table is not None:
        question = question * mean(variation_table)
    return jnp.concatenate([mean(concept_table), question], -1)


def class_nll(
    params: list,
    x: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    squash: bool,
    rate: float = 0.0,
    key: jax.Array | None = None,
    chunk: int = 256,
) -> jax.Array:
    """Cross entropy of an MLP's class logits, float (B, T), 0 where not mask.

    Logits exist for one chunk of steps at a time, forward and backward, and for chunks with real
    steps only: real ones are brought to the front, since students' lengths differ by far.

    x: (B, T, F). labels: int32 (B, T), from 0. mask: bool (B, T). squash: the released sigmoid
    before the softmax. chunk: steps whose logits exist at one time.
    """
    real = mask.reshape(-1)
    order = jnp.argsort(~real, stable=True)
    count = jnp.sum(real)
    chunk = min(chunk, real.size)
    pieces = -(-real.size // chunk)

    def cut(array):
        array = array.reshape(real.size, *array.shape[2:])[order]
        padding = [(0, pieces * chunk - real.size)] + [(0, 0)] * (array.ndim - 1)
        return jnp.pad(array, padding).reshape(pieces, chunk, *array.shape[1:])

    @jax.checkpoint
    def piece(inputs):
        features, targets, index = inputs
        own = None if key is None else jax.random.fold_in(key, index)
        logits = mlp(params, features, rate, own)
        logits = nn.sigmoid(logits) if squash else logits
        chosen = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
        return nn.logsumexp(logits, -1) - chosen

    def piece_or_nothing(inputs):
        wanted = inputs[2] * chunk < count
        return jax.lax.cond(wanted, piece, lambda i: jnp.zeros(chunk, x.dtype), inputs)

    nll = jax.lax.map(piece_or_nothing, (cut(x), cut(labels), jnp.arange(pieces)))
    nll = jnp.zeros(real.size, nll.dtype).at[order].set(nll.reshape(-1)[: real.size])
    return jnp.where(mask, nll.reshape(mask.shape), 0)
