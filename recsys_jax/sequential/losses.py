"""Losses over the catalogue: full softmax, sampled softmax and BPR.

T flattened positions, D width, I items (ids 1..I), S negatives. All logits are user . item /
temperature. Every loss returns sums over positions that have a label, so that a caller can add
micro-batches exactly before dividing.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import check_choice, l2_normalize
from recsys_jax.sequential.randomness import hash_bits, uniform_items

COLLISION_LOGIT = -5e4  # a sampled negative equal to the positive is as good as absent (released)
_FULL_LOGITS_LIMIT = 64_000_000  # entries of a (T, I) matrix up to which it beats gathering rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Which loss and how its negatives are drawn; defaults are the released FuXi-alpha's.

    kind: 'sampled_softmax' | 'full_softmax' | 'bpr' (one negative per position).
    negatives: 'per_position' (released: i.i.d. per position) | 'per_row' (one set for each row of
      the batch) | 'shared' (one set for the step); the last two turn gathers into small matrix
      products and cost a tenth on a CPU.
    distribution: 'uniform' | 'popularity' (proportional to training counts).
    logq: True weighs each negative by 1 / (S q(item)), so that the sum over negatives estimates
      the sum over the catalogue (sampled-softmax correction; not in the released code).
    """

    kind: str = "sampled_softmax"
    num_negatives: int = 128
    negatives: str = "per_position"
    distribution: str = "uniform"
    logq: bool = False
    temperature: float = 0.05
    item_l2_norm: bool = True
    chunk_positions: int = 4096  # positions at a time where negatives' rows are gathered

    def __post_init__(self):
        check_choice("loss.kind", self.kind, ("sampled_softmax", "full_softmax", "bpr"))
        check_choice("loss.negatives", self.negatives, ("per_position", "per_row", "shared"))
        check_choice("loss.distribution", self.distribution, ("uniform", "popularity"))
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature={self.temperature} must be positive")
        if self.num_negatives < 1:
            raise ValueError(f"loss.num_negatives={self.num_negatives} must be at least 1")


def sample_items(
    rng: jax.Array, shape: tuple[int, ...], num_items: int, cumulative: jax.Array | None
) -> jax.Array:
    """Item ids 1..num_items, i.i.d. uniform, or by the cumulative distribution (I,) given."""
    if cumulative is None:
        return uniform_items(rng, shape, num_items)
    uniform = (hash_bits(rng, shape) >> 8).astype(jnp.float32) * 2.0**-24
    found = jnp.searchsorted(cumulative, uniform, side="right")
    return jnp.clip(found, 0, num_items - 1).astype(jnp.int32) + 1


def scoring_table(table: jax.Array, item_l2_norm: bool) -> jax.Array:
    """The item table as it enters the dot products: rows L2-normalised where asked."""
    return l2_normalize(table) if item_l2_norm else table


def _softmax_terms(positive, negatives_lse):
    """-log(e^p / (e^p + e^lse)) without overflow."""
    return jnp.logaddexp(positive, negatives_lse) - positive


def _gathered_sampled_loss(users, table, labels, negatives, correction, temperature, chunk):
    """Sampled softmax by gathering rows, `chunk` positions at a time, recomputed backward."""
    pad = -users.shape[0] % chunk
    users = jnp.pad(users, ((0, pad), (0, 0)))
    labels = jnp.pad(labels, (0, pad))
    negatives = jnp.pad(negatives, ((0, pad), (0, 0)))

    @jax.checkpoint
    def one(args):
        u, y, n = args
        positive = jnp.sum(u * table[y], -1) / temperature
        logits = jnp.einsum("td,tsd->ts", u, table[n]) / temperature
        logits = logits + (0 if correction is None else correction[n])
        logits = jnp.where(n == y[:, None], COLLISION_LOGIT, logits)
        loss = _softmax_terms(positive, jax.nn.logsumexp(logits, -1))
        return jnp.sum(jnp.where(y > 0, loss, 0.0))

    blocks = (
        users.reshape(-1, chunk, users.shape[-1]),
        labels.reshape(-1, chunk),
        negatives.reshape(-1, chunk, negatives.shape[-1]),
    )
    return jnp.sum(jax.lax.map(one, blocks))


def catalogue_loss(
    users: jax.Array,
    table: jax.Array,
    labels: jax.Array,
    rng: jax.Array,
    config: LossConfig,
    num_items: int,
    item_probabilities: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sum of the loss over labelled positions, and their number (both float32 scalars).

    Args:
      users: (..., D) user vectors; table: (rows, D) raw item table, row 0 and rows beyond
        num_items are never scored; labels: (...) int32, 0 = no label.
      item_probabilities: (num_items,) training popularity; needed for distribution='popularity'.
    Source: spec 1.4 (sampled softmax as released), BPR: Rendle et al. 2009, eq. 5.
    """
    grouped_users, grouped_labels = users, labels
    users = users.reshape(-1, users.shape[-1])
    labels = labels.reshape(-1)
    table = scoring_table(table.astype(users.dtype), config.item_l2_norm)
    valid = labels > 0
    weight = jnp.sum(valid).astype(jnp.float32)
    rows = jnp.arange(table.shape[0])
    real = (rows > 0) & (rows <= num_items)

    if config.kind == "full_softmax":
        logits = jnp.where(real, users @ table.T / config.temperature, -jnp.inf)
        positive = jnp.take_along_axis(logits, jnp.maximum(labels, 1)[:, None], 1)[:, 0]
        loss = jax.nn.logsumexp(logits, -1) - positive
        return jnp.sum(jnp.where(valid, loss, 0.0)), weight

    cumulative = log_expected = None
    if config.distribution == "popularity":
        if item_probabilities is None:
            raise ValueError("loss.distribution='popularity' needs the items' training counts")
        cumulative = jnp.cumsum(item_probabilities)
        log_q = jnp.log(jnp.maximum(item_probabilities, 1e-12))
    else:
        log_q = jnp.full((num_items,), -jnp.log(float(num_items)))
    num_negatives = 1 if config.kind == "bpr" else config.num_negatives
    if config.logq:
        log_expected = jnp.zeros(table.shape[0]).at[1 : num_items + 1].set(log_q)
        log_expected = log_expected + jnp.log(float(num_negatives))

    shared = config.negatives != "per_position" and config.kind != "bpr"
    if shared and config.negatives == "shared" or grouped_users.ndim == 2:
        grouped_users, grouped_labels = users[None], labels[None]
    groups = grouped_users.shape[0] if shared else users.shape[0]
    shape = (groups, num_negatives)
    negatives = sample_items(rng, shape, num_items, cumulative)
    correction = None if log_expected is None else -log_expected

    if shared:
        positive = jnp.sum(users * table[labels], -1) / config.temperature
        logits = jnp.einsum("gnd,gsd->gns", grouped_users, table[negatives]) / config.temperature
        if correction is not None:
            logits = logits + correction[negatives][:, None]
        collision = negatives[:, None] == grouped_labels[:, :, None]
        logits = jnp.where(collision, COLLISION_LOGIT, logits).reshape(-1, num_negatives)
    elif users.shape[0] * table.shape[0] <= _FULL_LOGITS_LIMIT:
        # Small catalogues: one matrix product and a gather of scalars moves far less memory than
        # gathering S rows per position, and is the same number.
        full = users @ table.T / config.temperature
        positive = jnp.take_along_axis(full, labels[:, None], 1)[:, 0]
        logits = jnp.take_along_axis(full, negatives, 1)
        if correction is not None:
            logits = logits + correction[negatives]
        logits = jnp.where(negatives == labels[:, None], COLLISION_LOGIT, logits)
    elif config.kind == "sampled_softmax":
        total = _gathered_sampled_loss(
            users, table, labels, negatives, correction, config.temperature, config.chunk_positions
        )
        return total, weight
    else:
        positive = jnp.sum(users * table[labels], -1) / config.temperature
        logits = jnp.einsum("td,tsd->ts", users, table[negatives]) / config.temperature
        logits = jnp.where(negatives == labels[:, None], COLLISION_LOGIT, logits)

    if config.kind == "bpr":
        loss = jax.nn.softplus(logits[:, 0] - positive)
    else:
        loss = _softmax_terms(positive, jax.nn.logsumexp(logits, -1))
    return jnp.sum(jnp.where(valid, loss, 0.0)), weight
