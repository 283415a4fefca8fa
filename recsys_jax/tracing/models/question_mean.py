"""The smoothed share of right answers of each question: the floor of every open-loop comparison.

It reads no response, so no model that knows its student may fall below it (spec 2.4).

Letters: B students, T steps, C concepts of a question at most.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from recsys_jax.sequential.layers import partitioned
from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.embeddings import check_config, set_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionMeanConfig:
    """How the share is smoothed: p_q = (right_q + strength * prior) / (answers_q + strength).

    prior: 'global', the share of all answers; 'concepts', the mean over the question's concepts of
    their shares, themselves smoothed towards the global one. `strength` counts answers; ours, the
    spec does not say which smoothing its floors have.
    """

    strength: float = 5.0
    prior: str = "global"

    def __post_init__(self):
        check_config(self, ("strength",))
        if self.prior not in ("global", "concepts"):
            raise ValueError(
                f"QuestionMeanConfig.prior={self.prior!r} must be 'global' or 'concepts'"
            )


class QuestionMean(nn.Module):
    """Logit of the smoothed share of right answers; `fit_question_mean` gives the parameters.

    Unknown questions (id 0, or without answers in training) get the prior.
    """

    config: QuestionMeanConfig
    num_questions: int
    num_concepts: int

    def setup(self):
        zeros = partitioned(nn.initializers.zeros, "items")
        half = partitioned(nn.initializers.constant(0.5), "items")
        self.right = self.param("right", zeros, (self.num_questions + 1,))
        self.answers = self.param("answers", zeros, (self.num_questions + 1,))
        self.concept_share = self.param("concept_share", half, (self.num_concepts + 1,))
        self.share = self.param("share", nn.initializers.constant(0.5), ())

    def __call__(self, batch: Batch, *, train: bool = False) -> jax.Array:
        """float32 (B, T): the logit of each question, whatever was answered before."""
        return self.predict_step((), batch.questions, batch.concepts)

    def begin(self, batch: Batch) -> jax.Array:
        """An empty state, (B, 0)."""
        return jnp.zeros((batch.questions.shape[0], 0))

    def predict_step(self, state, question: jax.Array, concepts: jax.Array) -> jax.Array:
        """float32 (B,): logit for question (B,) with concepts (B, C)."""
        prior = jnp.full(question.shape, self.share)
        if self.config.prior == "concepts":
            means = set_mean(jnp.take(self.concept_share, concepts, axis=0), concepts)
            prior = jnp.where((concepts > 0).any(-1), means, prior)
        known, strength = question > 0, self.config.strength
        right = jnp.where(known, jnp.take(self.right, question), 0)
        answers = jnp.where(known, jnp.take(self.answers, question), 0)
        share = (right + strength * prior) / (answers + strength)
        # A share of exactly 0 or 1 needs a prior that is: every answer of the training set alike.
        share = jnp.clip(share, 1e-6, 1 - 1e-6)
        return jnp.log(share) - jnp.log1p(-share)

    def update_step(self, state, question, concepts, response):
        """The same empty state."""
        return state


def fit_question_mean(module: QuestionMean, batch: Batch) -> dict:
    """The variables of `module` from counts over real steps of the training students.

    Raises:
      ValueError: no answers, or an id beyond the module's tables.
    """
    mask = np.asarray(batch.mask)
    if not mask.any():
        raise ValueError("the training batch has no answers (mask is False everywhere)")
    questions, responses = (np.asarray(x)[mask] for x in (batch.questions, batch.responses))
    concepts = np.asarray(batch.concepts)[mask]
    sizes = {"questions": module.num_questions, "concepts": module.num_concepts}
    for name, ids in (("questions", questions), ("concepts", concepts)):
        if ids.size and ids.max() > sizes[name]:
            raise ValueError(f"{name} holds id {ids.max()}, the module knows 1..{sizes[name]}")
    strength, share = module.config.strength, responses.mean()
    rows = module.num_questions + 1
    right = np.bincount(questions, weights=responses, minlength=rows)
    answers = np.bincount(questions, minlength=rows)
    step, slot = np.nonzero(concepts)
    flat, rows = concepts[step, slot], module.num_concepts + 1
    concept_right = np.bincount(flat, weights=responses[step], minlength=rows)
    concept_answers = np.bincount(flat, minlength=rows)
    concept_share = (concept_right + strength * share) / (concept_answers + strength)
    tables = {"right": right, "answers": answers, "concept_share": concept_share, "share": share}
    return {"params": {name: jnp.asarray(x, jnp.float32) for name, x in tables.items()}}
