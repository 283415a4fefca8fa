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
        """h before each step, (B, T, H), zero at first; gates (B, T, 4H), the last ones unused."""
        after = lstm_states(self.recurrent, gates.swapaxes(0, 1)[:-1])
        start, _ = self.begin(gates.shape[0])
        return jnp.concatenate([start[:, None], after.swapaxes(0, 1)], 1)


def lstm_step(recurrent: jax.Array, state, gates: jax.Array):
    """(h, c) after one step; recurrent (H, 4H), gates (B, 4H) without the recurrent product."""
    h, c = state
    i, f, g, o = jnp.split(gates + h @ recurrent, 4, axis=-1)
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(c), c


@jax.custom_vjp
def lstm_states(recurrent: jax.Array, gates: jax.Array) -> jax.Array:
    """h after each step from the zero state, (T, B, H); `lstm_step` over gates (T, B, 4H).

    The backward pass is written out because it then takes the gradient of `recurrent` as one
    product over all steps, where a differentiated scan adds up a product per step.
    """
    return _lstm_forward(recurrent, gates)[0]


def _lstm_forward(recurrent, gates):
    def step(state, gate):
        h, c = lstm_step(recurrent, state, gate)
        # The activations again: XLA computes them once for both.
        i, f, g, o = jnp.split(gate + state[0] @ recurrent, 4, axis=-1)
        activated = (nn.sigmoid(i), nn.sigmoid(f), jnp.tanh(g), nn.sigmoid(o))
        return (h, c), (h, c, activated)

    zeros = jnp.zeros((gates.shape[1], gates.shape[2] // 4), gates.dtype)
    _, (h, c, activated) = jax.lax.scan(step, (zeros, zeros), gates)
    return h, (recurrent, h, c, activated)


def _lstm_backward(saved, h_bar):
    recurrent, h, c, activated = saved
    # A product per gate: joining the four gates first costs more than their products on a CPU.
    to_h = jnp.split(recurrent.T, 4)

    def step(carry, inputs):
        h_next, c_next = carry
        h_here, before, after, (i, f, g, o) = inputs
        d_h, tanh_c = h_here + h_next, jnp.tanh(after)
        d_c = c_next + d_h * o * (1 - tanh_c**2)
        d_gates = (
            d_c * g * i * (1 - i),
            d_c * before * f * (1 - f),
            d_c * i * (1 - g**2),
            d_h * tanh_c * o * (1 - o),
        )
        return (sum(d @ w for d, w in zip(d_gates, to_h, strict=True)), d_c * f), d_gates

    zeros = jnp.zeros(h.shape[1:], h.dtype)
    inputs = (h_bar, jnp.concatenate([zeros[None], c[:-1]]), c, activated)
    _, d_gates = jax.lax.scan(step, (zeros, zeros), inputs, reverse=True)
    d_gates = jnp.concatenate(d_gates, -1)
    # The first step's state before it is zero and adds nothing. Steps and students as one axis: a
    # product of two matrices, which is twice as fast on a CPU as one over two axes.
    before, after = h[:-1].reshape(-1, h.shape[-1]), d_gates[1:].reshape(-1, d_gates.shape[-1])
    return before.T @ after, d_gates


lstm_states.defvjp(_lstm_forward, _lstm_backward)


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
