"""The losses of a run on a packed batch: cross entropy, preference, distillation.

Letters: B rows, P places with a label, S sequences of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from pangu_jax.models.config import DecoderConfig
from pangu_jax.models.loss import cross_entropy
from pangu_jax.training.sft.config import SftConfig
from pangu_jax.training.sft.distillation import kl_divergence
from pangu_jax.training.sft.log_probs import (
    Labelled,
    at_labels,
    label_log_probs,
    sums_by_sequence,
)
from pangu_jax.training.sft.preference import dpo_loss
from pangu_jax.training.sft.tuning import Tuning, run_decoder
from pangu_jax.training.state import LossSums

# (params, batch, key or None, frozen) -> LossSums. frozen: {'base': of an adapter, 'reference' and
# 'teacher': parameters of other models}, each only where the objective reads it.
Loss = Callable[[Any, Any, jax.Array | None, dict[str, Any]], LossSums]


def make_loss(config: SftConfig, tuning: Tuning, teacher: DecoderConfig | None = None) -> Loss:
    """The loss that `config.objective` names; teacher: configuration of the teacher's decoder."""
    if config.objective == "dpo":
        return _preference(config, tuning)
    if config.objective == "distill":
        return _distillation(config, tuning, teacher)
    return _cross_entropy(config, tuning)


def sequence_log_probs(
    config: DecoderConfig, variables: dict[str, Any], batch: dict[str, jax.Array], chunk: int
) -> jax.Array:
    """Log-probability of the learned tokens of each sequence, (B, S)."""
    out = run_decoder(config, variables, batch)
    return _by_sequence(out.hidden, out.head, batch, chunk)[0]


def _cross_entropy(config: SftConfig, tuning: Tuning) -> Loss:
    def loss(params, batch, key, frozen):
        out = tuning.run(params, frozen.get("base"), batch, key)
        own = at_labels(out.hidden, batch)
        return cross_entropy(own.hidden, out.head, own.labels, own.weights, chunk=config.loss_chunk)

    return loss


def _preference(config: SftConfig, tuning: Tuning) -> Loss:
    chunk = config.loss_chunk

    def loss(params, batch, key, frozen):
        out = tuning.run(params, frozen.get("base"), batch, key)
        policy, own = _by_sequence(out.hidden, out.head, batch, chunk)
        if "reference" in batch:
            reference = batch["reference"]
        else:
            held = frozen["base"] if tuning.lora else frozen["reference"]
            reference = sequence_log_probs(tuning.config, {"params": held}, batch, chunk)
        count = policy.shape[1]
        tokens = sums_by_sequence((own.labels >= 0).astype(policy.dtype), own.segments, count)

        def pairs(x):
            return x.reshape(x.shape[0], -1, 2)

        weights = pairs(batch["segment_weights"])[..., 0]
        return dpo_loss(pairs(policy), pairs(reference), pairs(tokens), weights, config.dpo)

    return loss


def _distillation(config: SftConfig, tuning: Tuning, teacher: DecoderConfig) -> Loss:
    def loss(params, batch, key, frozen):
        out = tuning.run(params, frozen.get("base"), batch, key)
        other = run_decoder(teacher, {"params": frozen["teacher"]}, batch)
        own = at_labels(out.hidden, batch)
        return kl_divergence(
            (own.hidden, out.head), (at_labels(other.hidden, batch).hidden, other.head),
            own.labels, own.weights, config.distill, chunk=config.loss_chunk,
        )  # fmt: skip

    return loss


def _by_sequence(hidden, head, batch, chunk) -> tuple[jax.Array, Labelled]:
    own = at_labels(hidden, batch)
    values, _ = label_log_probs(own.hidden, head, own.labels, chunk=chunk)
    return sums_by_sequence(values, own.segments, batch["segment_weights"].shape[1]), own
