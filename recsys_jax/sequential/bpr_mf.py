"""BPR-MF (Rendle et al. 2009): matrix factorisation with a pairwise loss; not sequential."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned


@dataclasses.dataclass(frozen=True, kw_only=True)
class BPRMFConfig:
    """score(u, i) = p_u . q_i + b_i; loss -ln sigmoid(s_ui - s_uj) + l2 (|p|^2 + |q|^2 + b^2)."""

    embedding_dim: int = 50
    l2: float = 1e-5


class BPRMF(nn.Module):
    """Dense user ids (B,) to vectors (B, D + 1); the extra 1 meets the items' bias.

    `rows` of the item table (num_items + 1 or more), `num_users` users.
    """

    config: BPRMFConfig
    rows: int
    num_users: int

    @nn.compact
    def __call__(self, users: jax.Array) -> jax.Array:
        init, dim = nn.initializers.normal(0.01), self.config.embedding_dim
        table = self.param("users", partitioned(init, None, "embed"), (self.num_users, dim))
        self.param("items", partitioned(init, "items", "embed"), (self.rows, dim))
        self.param("bias", partitioned(nn.initializers.zeros, "items"), (self.rows,))
        vectors = table[users]
        return jnp.concatenate([vectors, jnp.ones_like(vectors[:, :1])], axis=-1)


def biased_item_table(params: dict[str, Any]) -> jax.Array:
    """Items with their bias as an extra column, (rows, D + 1)."""
    return jnp.concatenate([params["items"], params["bias"][:, None]], axis=-1)


def pairwise_loss(
    params: dict[str, Any], batch: dict[str, jax.Array], config: BPRMFConfig
) -> tuple[jax.Array, jax.Array]:
    """Sum of the BPR loss over pairs and their number.

    batch: 'users', 'positives', 'negatives', each int32 (B,); positives of 0 are filler.
    """
    user = params["users"][batch["users"]]
    positive, negative = params["items"][batch["positives"]], params["items"][batch["negatives"]]
    bias_p, bias_n = params["bias"][batch["positives"]], params["bias"][batch["negatives"]]
    margin = jnp.sum(user * (positive - negative), -1) + bias_p - bias_n
    square = jnp.sum(user**2 + positive**2 + negative**2, -1) + bias_p**2 + bias_n**2
    loss = jax.nn.softplus(-margin) + config.l2 * square
    valid = batch["positives"] > 0
    return jnp.sum(jnp.where(valid, loss, 0.0)), jnp.sum(valid).astype(jnp.float32)
