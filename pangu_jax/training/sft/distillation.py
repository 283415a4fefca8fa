"""Distillation of a teacher's next-token distribution, never holding a whole batch's logits.

Letters: B rows, P places with a label, C places whose logits exist at one time, D and E hidden
widths of student and teacher, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pangu_jax.models.decoder import logits_of
from pangu_jax.training.sft.log_probs import cut, joined
from pangu_jax.training.state import LossSums


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """teacher: weights as `base` has them, with the same tokenizer. forward: share of KL(teacher |
    student), which covers all that the teacher says; the rest is KL(student | teacher), which seeks
    its main mode. temperature: divides both models' logits; the loss is multiplied by its square
    (Hinton et al., arXiv 1503.02531, section 2). sft_weight: factor of the cross entropy added."""

    teacher: str | None = None
    forward: float = 1.0
    temperature: float = 1.0
    sft_weight: float = 0.0

    def __post_init__(self):
        if not 0 <= self.forward <= 1:
            raise ValueError(f"distill.forward={self.forward} must be from 0 (reverse) to 1")
        if not self.temperature > 0:
            raise ValueError(f"distill.temperature={self.temperature} must be above 0")
        if self.sft_weight < 0:
            raise ValueError(f"distill.sft_weight={self.sft_weight} must not be negative")


def kl_divergence(
    student: tuple[jax.Array, jax.Array],
    teacher: tuple[jax.Array, jax.Array],
    labels: jax.Array,
    weights: jax.Array,
    config: DistillConfig,
    *,
    chunk: int = 128,
) -> LossSums:
    """Sum over places of weight * temperature^2 * (f KL(t | s) + (1 - f) KL(s | t)), and the rest.

    Args:
      student: hidden (B, P, D) and head (D, V). teacher: hidden (B, P, E) and head (E, V), constant
        to differentiation.
      labels: int32 (B, P), below 0: place not counted. weights: (B, P).
      chunk: C; the backward pass forms the logits of a chunk anew.

    Returns:
      LossSums with metrics forward_kl, reverse_kl (at the temperature, in nats), nll, accuracy.

    Raises:
      ValueError: vocabularies of different sizes.
    """
    if student[1].shape[1] != teacher[1].shape[1]:
        raise ValueError(
            f"The teacher's vocabulary has {teacher[1].shape[1]} entries, the student's "
            f"{student[1].shape[1]}; distillation on logits needs the same tokens."
        )
    teacher = jax.lax.stop_gradient(teacher)
    places = labels.shape[1]

    def piece(x):
        hidden, other, label = x
        raw = logits_of(hidden, student[1])
        s = jax.nn.log_softmax(raw / config.temperature, axis=-1)
        t = jax.nn.log_softmax(logits_of(other, teacher[1]) / config.temperature, axis=-1)
        forward = jnp.sum(jnp.exp(t) * (t - s), axis=-1)
        reverse = jnp.sum(jnp.exp(s) * (s - t), axis=-1)
        own = jnp.take_along_axis(raw, jnp.maximum(label, 0)[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(raw, axis=-1) - own
        best = (own >= jnp.max(raw, axis=-1)).astype(raw.dtype)
        return forward, reverse, nll, best

    parts = jax.lax.map(
        jax.checkpoint(piece),
        (cut(student[0], chunk), cut(teacher[0], chunk), cut(labels, chunk, fill=-1)),
    )
    forward, reverse, nll, best = (joined(x, places) for x in parts)
    weights = jnp.where(labels >= 0, weights, 0).astype(forward.dtype)

    def total(x):
        return jnp.sum(jnp.where(weights > 0, weights * x, 0))

    mixed = config.forward * forward + (1 - config.forward) * reverse
    loss = config.temperature**2 * mixed + config.sft_weight * nll
    metrics = {"forward_kl": forward, "reverse_kl": reverse, "nll": nll, "accuracy": best}
    return LossSums(
        total=total(loss),
        weight=jnp.sum(weights),
        metrics={name: total(x) for name, x in metrics.items()},
    )
