"""Recurrent cells as functions of their parameters, so that stepping and whole passes share them.

The input product of all steps is one matrix product outside the scan; only the recurrent product is
in it. Cells are set up once per module because begin / predict_step / update_step and __call__ all
use them.

Letters: B students, T steps, D input width, H hidden width.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.sequential.layers import partitioned
from recsys_jax.tracing.models.embeddings import torch_uniform


class LSTM(nn.Module):
    """LSTM layer, gates in PyTorch's order i, f, g, o, one bias in place of PyTorch's two.

    Weights and bias start uniform in +-1/sqrt(H), PyTorch's default (pyKT's models rest on it).
    """

    input_dim: int
    hidden_dim: int

    def setup(self):
        init, width = torch_uniform(self.hidden_dim), 4 * self.hidden_dim
        kernel = partitioned(init, "embed", None)
        self.kernel = self.param("kernel", kernel, (self.input_dim, width))
        self.recurrent = self.param(
            "recurrent", partitioned(init, None, None), (self.hidden_dim, width)
        )
        self.bias = self.param("bias", partitioned(init, None), (width,))

    def begin(self, batch_size: int) -> tuple[jax.Array, jax.Array]:
        """The zero state (h, c), each (B, H)."""
        zeros = jnp.zeros((batch_size, self.hidden_dim), self.recurrent.dtype)
        return zeros, zeros

    def project(self, x: jax.Array) -> jax.Array:
        """The input's part of the gates, (..., D) -> (..., 4H)."""
        return x @ self.kernel + self.bias

    def step(self, state, gates: jax.Array):
        """The state after an input whose gates are (B, 4H)."""
        return lstm_step(self.recurrent, state, gates)

    def states_before(self, gates: jax.Array) -> jax.Array:
        """h before each step, (B, T, H), zero at first; gates (T, B, 4H), the last ones unused."""
        return lstm_states_before(self.recurrent, gates).swapaxes(0, 1)


def lstm_step(recurrent: jax.Array, state, gates: jax.Array):
    """(h, c) after one step; recurrent (H, 4H), gates (B, 4H) without the recurrent product."""
    h, c = state
    i, f, g, o = _split_gates(_squash(gates + h @ recurrent))
    c = f * c + i * g
    return o * jnp.tanh(c), c


@jax.custom_vjp
def lstm_states_before(recurrent: jax.Array, gates: jax.Array) -> jax.Array:
    """h before each step, (T, B, H), zero at first; `lstm_step` over gates (T, B, 4H).

    The backward pass is written out because it then takes the gradient of `recurrent` as one
    product over all steps, where a differentiated scan adds up a product per step.
    """
    return _lstm_forward(recurrent, gates)[0]


def _lstm_forward(recurrent, gates):
    def step(state, gate):
        h, c = state
        squashed = _squash(gate + h @ recurrent)
        i, f, g, o = _split_gates(squashed)
        after = f * c + i * g
        tanh_c = jnp.tanh(after)
        return (o * tanh_c, after), (h, c, squashed, tanh_c)

    zeros = jnp.zeros((gates.shape[1], gates.shape[2] // 4), gates.dtype)
    _, (h, c, squashed, tanh_c) = jax.lax.scan(step, (zeros, zeros), gates)
    return h, (recurrent, h, c, squashed, tanh_c)


def _lstm_backward(saved, h_bar):
    recurrent, h, c, squashed, tanh_c = saved
    slope = _gate_scale(h.shape[-1], h.dtype) ** 2
    to_h = recurrent.T

    def step(carry, inputs):
        d_h, d_c = carry  # of the state after this step
        bar, before, t, u = inputs
        i, f, g, o = _split_gates(t)
        d_c = d_c + d_h * o * (1 - u * u)
        upstream = jnp.concatenate([d_c * g, d_c * before, d_c * i, d_h * u], -1)
        d_gates = upstream * ((1 - t * t) * slope)
        return (bar + d_gates @ to_h, d_c * f), d_gates

    zeros = jnp.zeros(h.shape[1:], h.dtype)
    inputs = (h_bar, c, squashed, tanh_c)
    _, d_gates = jax.lax.scan(step, (zeros, zeros), inputs, reverse=True, unroll=2)
    # Steps and students as one axis: a product of two matrices, which is twice as fast on a CPU as
    # one over two axes. Of whole arrays, since slices of them would be copied first.
    before, after = h.reshape(-1, h.shape[-1]), d_gates.reshape(-1, d_gates.shape[-1])
    return before.T @ after, d_gates


lstm_states_before.defvjp(_lstm_forward, _lstm_backward)


def _gate_scale(hidden: int, dtype) -> np.ndarray:
    """(4H,): 1/2 for the gates of a sigmoid (i, f, o), 1 for g."""
    return np.repeat(np.array([0.5, 0.5, 1.0, 0.5], dtype), hidden)


def _squash(gates: jax.Array) -> jax.Array:
    """tanh of the four gates (..., 4H), of those of a sigmoid at half their value.

    sigmoid(x) = (1 + tanh(x / 2)) / 2, so one function serves all four. On a CPU one pass over the
    joined gates takes half the time of one per gate.
    """
    return jnp.tanh(gates * _gate_scale(gates.shape[-1] // 4, gates.dtype))


def _split_gates(squashed: jax.Array) -> list[jax.Array]:
    """i, f, g, o, (..., H) each, from `_squash`."""
    i, f, g, o = jnp.split(squashed, 4, axis=-1)
    return [0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5]


def checkpointed_scan(step, state, inputs, length: int, segment: int = 16):
    """`jax.lax.scan` that keeps only every `segment`-th state for the backward pass.

    inputs: a pytree of arrays that begin with `length`, all-zero inputs must leave outputs finite.
    For wide states (a memory per student): two scans, the inner one recomputed.
    Returns (the state after the last segment, padded with zero inputs; outputs (length, ...)).
    """
    segments = -(-length // segment)

    def divide(x):
        x = jnp.pad(x, [(0, segments * segment - length)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(segments, segment, *x.shape[1:])

    @jax.checkpoint
    def outer(carry, xs):
        return jax.lax.scan(step, carry, xs)

    state, outputs = jax.lax.scan(outer, state, jax.tree.map(divide, inputs))
    joined = jax.tree.map(lambda y: y.reshape(-1, *y.shape[2:])[:length], outputs)
    return state, joined


def torch_dense(features: int, name: str | None = None) -> nn.Dense:
    """A linear layer that starts as PyTorch's does: U(+-1/sqrt(fan_in)), weights and bias."""
    # variance_scaling(1/3, fan_in, uniform) has the bound sqrt(3 * (1/3) / fan_in).
    kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    return nn.Dense(features, kernel_init=partitioned(kernel, "embed", None), name=name)
