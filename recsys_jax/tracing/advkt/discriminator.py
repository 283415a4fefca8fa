"""AdvKT's discriminator: how plausible each response of a student is, given what came before.

Source: the released code, spec section 1.4. Letters: B students, T steps, C concepts of a
question, D width, H heads, X and Y input widths.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from recsys_jax.sequential.layers import partitioned
from recsys_jax.tracing.advkt.config import DiscriminatorConfig
from recsys_jax.tracing.advkt.layers import (
    Params,
    class_nll,
    declare_mlp,
    declare_table,
    mlp,
    question_features,
)
from recsys_jax.tracing.batch import Batch


class Scores(NamedTuple):
    """The discriminator's view of B students.

    logits: (B, T), of "this response is real". states: (B, T, 3 D), what the logits and the
    critic's values are read from. questions, responses: (B, T, D), the two self-attentions.
    """

    logits: jax.Array
    states: jax.Array
    questions: jax.Array
    responses: jax.Array


class Stream(NamedTuple):
    """Questions (B, T, 2 D) and responses (B, T, D) as vectors."""

    questions: jax.Array
    responses: jax.Array


class Discriminator(nn.Module):
    """Scores of responses; it uses `setup`, because several methods share the parameters.

    Question ids may go up to num_questions + 1 and concept ids up to num_concepts + 1: the last
    ones stand for masked steps.
    """

    config: DiscriminatorConfig

    def setup(self):
        cfg = self.config
        dim, hidden = cfg.dim, cfg.num_layers
        self.question_table = declare_table(self, "questions", cfg.num_questions + 1, dim)
        self.concept_table = declare_table(self, "concepts", cfg.num_concepts + 1, dim)
        self.response_table = declare_table(self, "responses", 2 * (cfg.num_questions + 2), dim)
        self.question_attention = self._declare_attention("question", 2 * dim, 2 * dim, 2 * dim)
        self.response_attention = self._declare_attention("response", dim, dim, dim)
        self.final_attention = self._declare_attention("final", dim, dim, 3 * dim)
        self.norm = {
            "scale": self.param("norm_scale", partitioned(nn.initializers.ones, None), (dim,)),
            "bias": self.param("norm_bias", partitioned(nn.initializers.zeros, None), (dim,)),
        }
        self.score_params = declare_mlp(self, "score", 3 * dim, 1, hidden)
        self.ask_params = declare_mlp(self, "ask", 2 * dim, cfg.num_questions + 2, hidden)
        self.answer_params = declare_mlp(self, "answer", 2 * dim, 1, hidden)

    def __call__(
        self, batch: Batch, *, rows: jax.Array | None = None, train: bool = False
    ) -> Scores:
        """Scores of the responses in a batch.

        rows: int32 (B, T), rows of the response table in place of 2 * question + response (the
        released reward reads row 0).
        """
        if rows is None:
            rows = 2 * batch.questions + batch.responses
        stream = self._stream(batch.questions, batch.concepts, rows)
        keys = self._keys(train)
        if self.config.masks == "fixed":
            return self._causal(stream, stream.responses, keys)
        return self._unmasked(stream, keys)

    def score_flipped(self, batch: Batch, *, train: bool = False) -> Scores:
        """Scores of the opposite response at each step, given the true responses before it.

        masks='fixed': what `__call__` would say at step t of a sequence whose response t alone is
        flipped, for all t at once. 'released': without any history, as in the released decoder.
        """
        true = self._stream(batch.questions, batch.concepts, 2 * batch.questions + batch.responses)
        opposite = jnp.take(self.response_table, 2 * batch.questions + 1 - batch.responses, axis=0)
        keys = self._keys(train)
        if self.config.masks == "fixed":
            return self._causal(true, opposite, keys)
        return self._alone(Stream(true.questions, opposite), keys)

    def score_single(
        self, questions: jax.Array, concepts: jax.Array, *, train: bool = False
    ) -> jax.Array:
        """(M, 2): logits of responses 0 and 1 to questions (M,), concepts (M, C), asked first.

        A first step attends to itself alone, with or without masks: `_alone` is `__call__` there.
        """
        logits = []
        for response in (0, 1):
            rows = 2 * questions + response
            stream = self._stream(questions[:, None], concepts[:, None], rows[:, None])
            logits.append(self._alone(stream, self._keys(train)).logits[:, 0])
        return jnp.stack(logits, -1)

    def score_state(self, states: jax.Array) -> jax.Array:
        """(...): logits of states (..., 3 D)."""
        return mlp(self.score_params, states)[..., 0]

    def question_nll(
        self,
        scores: Scores,
        questions: jax.Array,
        mask: jax.Array,
        *,
        train: bool = False,
    ) -> jax.Array:
        """float (B, T): -log p(q_t) (item 1.4.5); 0 where not mask.

        shift='fixed' reads steps before t only; the response vector of step t would name the
        question, because each question has response embeddings of its own.
        """
        fixed = self.config.shift == "fixed"
        own = _shift(scores.responses) if fixed else scores.responses
        past = _shift(scores.questions) if fixed else _replace_first(scores.questions)
        return class_nll(
            self.ask_params,
            jnp.concatenate([past, own], -1),
            questions,
            mask,
            squash=self.config.sigmoid_before_ce,
            rate=self.config.dropout_rate,
            key=self._keys(train)[0],
        )

    def response_logits(self, scores: Scores, *, train: bool = False) -> jax.Array:
        """float (B, T): logit of a right response t, from questions up to t and, with
        shift='fixed', responses before t."""
        fixed = self.config.shift == "fixed"
        past = _shift(scores.responses) if fixed else _replace_first(scores.responses)
        x = jnp.concatenate([scores.questions, past], -1)
        return mlp(self.answer_params, x, self.config.dropout_rate, self._keys(train)[0])[..., 0]

    # Parts

    def _stream(self, questions, concepts, rows) -> Stream:
        features = question_features(
            self.question_table,
            self.concept_table,
            questions,
            concepts,
            self.config.concept_divisor,
        )
        return Stream(features, jnp.take(self.response_table, rows, axis=0))

    def _causal(self, history: Stream, responses: jax.Array, keys) -> Scores:
        """Steps attend to the history before them and to their own question and `responses`.

        With the history's own responses this is ordinary causal attention; with others, two
        streams in one pass.
        """
        q = history.questions
        asked = self._attend(self.question_attention, q, (q, q), (q, q), keys[0])
        answered = self._attend(
            self.response_attention,
            responses,
            (history.responses, history.responses),
            (responses, responses),
            keys[1],
        )
        past = asked, jnp.concatenate([q, history.responses], -1)
        own = asked, jnp.concatenate([q, responses], -1)
        decoded = self._attend(self.final_attention, answered, past, own, keys[2])
        return self._scores(decoded, q, asked, answered)

    def _unmasked(self, stream: Stream, keys) -> Scores:
        q, r = stream
        asked = self._attend(self.question_attention, q, (q, q), None, keys[0])
        answered = self._attend(self.response_attention, r, (r, r), None, keys[1])
        memory = asked, jnp.concatenate([q, r], -1)
        decoded = self._attend(self.final_attention, answered, memory, None, keys[2])
        return self._scores(decoded, q, asked, answered)

    def _alone(self, stream: Stream, keys) -> Scores:
        """The released step-wise scorer: its decoder has one key, the step itself, so that
        neither the history nor the two self-attentions reach the score."""
        params = self.final_attention
        x = jnp.concatenate(stream, -1)
        heads = jnp.einsum("bty,hyd->bthd", x, params["value"])
        decoded = self._finish(params, heads, keys[2])
        blank = jnp.zeros_like(decoded)
        return self._scores(decoded, stream.questions, blank, blank)

    def _scores(self, decoded, questions, asked, answered) -> Scores:
        states = jnp.concatenate([decoded, questions], -1)
        return Scores(self.score_state(states), states, asked, answered)

    def _attend(self, params: Params, query, past, own, key) -> jax.Array:
        """(B, T, D): attention of queries (B, T, X) to keys and values (B, T, .) of the past.

        own: keys and values that step t adds for itself to those before t; None: no mask at all.
        """
        scale = self.config.dim**-0.5
        q, k, v = (
            jnp.einsum("btx,hxd->bthd", x, params[name])
            for x, name in ((query, "query"), (past[0], "key"), (past[1], "value"))
        )
        if own is None:
            scores = jnp.einsum("bthd,bshd->bhts", q, k) * scale
            heads = jnp.einsum("bhts,bshd->bthd", nn.softmax(scores, -1), v)
        else:
            k_own, v_own = (
                jnp.einsum("btx,hxd->bthd", x, params[name])
                for x, name in ((own[0], "key"), (own[1], "value"))
            )
            heads = attend_before(q * scale, k, v, k_own, v_own)
        return self._finish(params, heads, key)

    def _finish(self, params: Params, heads: jax.Array, key) -> jax.Array:
        """Sum of heads (B, T, H, D), feed-forward with residual, the one shared LayerNorm."""
        z = jnp.einsum("bthd,h->btd", heads, params["heads"])
        z = z + mlp(params["ffn"], z, self.config.dropout_rate, key)
        centred = z - jnp.mean(z, -1, keepdims=True)
        var = jnp.mean(centred * centred, -1, keepdims=True)
        normed = centred * jax.lax.rsqrt(var + 1e-5)
        return normed * self.norm["scale"] + self.norm["bias"]

    def _declare_attention(self, name: str, query: int, key: int, value: int) -> Params:
        cfg = self.config
        if cfg.attention_init == "normal":
            matrix = heads = nn.initializers.normal(1.0)
        else:
            # Per head: the leading axis is not part of the fan.
            matrix = nn.initializers.variance_scaling(
                1.0, "fan_avg", "uniform", in_axis=-2, out_axis=-1, batch_axis=(0,)
            )
            heads = nn.initializers.constant(cfg.num_heads**-0.5)
        axes = partitioned(matrix, None, None, None)
        return {
            **{
                part: self.param(f"{name}_{part}", axes, (cfg.num_heads, width, cfg.dim))
                for part, width in (("query", query), ("key", key), ("value", value))
            },
            "heads": self.param(f"{name}_heads", partitioned(heads, None), (cfg.num_heads,)),
            "ffn": declare_mlp(self, f"{name}_ffn", cfg.dim, cfg.dim, 1),
        }

    def _keys(self, train: bool):
        if not train or self.config.dropout_rate == 0:
            return (None, None, None)
        return tuple(self.make_rng("dropout") for _ in range(3))


def attend_before(
    q: jax.Array, k: jax.Array, v: jax.Array, k_own: jax.Array, v_own: jax.Array, block: int = 50
) -> jax.Array:
    """Attention of each step to the keys of steps before it and to one of its own, all
    (B, T, H, D), scores not scaled.

    Queries go in blocks, each with the keys up to its end: no scores of later steps are computed,
    and those of a block stay in a CPU's cache.
    """
    length = q.shape[1]
    out = []
    for start in range(0, length, block):
        end = min(start + block, length)
        own_q = q[:, start:end]
        before = jnp.arange(end) < jnp.arange(start, end)[:, None]
        scores = jnp.einsum("bthd,bshd->bhts", own_q, k[:, :end])
        scores = jnp.where(before, scores, -jnp.inf)
        score_own = jnp.einsum("bthd,bthd->bht", own_q, k_own[:, start:end])
        top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, -1), score_own))
        weights, weight_own = jnp.exp(scores - top[..., None]), jnp.exp(score_own - top)
        total = jnp.moveaxis(jnp.sum(weights, -1) + weight_own, 1, 2)[..., None]
        heads = jnp.einsum("bhts,bshd->bthd", weights, v[:, :end])
        heads += jnp.moveaxis(weight_own, 1, 2)[..., None] * v_own[:, start:end]
        out.append(heads / total)
    return out[0] if len(out) == 1 else jnp.concatenate(out, 1)


def _shift(x: jax.Array) -> jax.Array:
    """Step t gets what step t - 1 had; the first gets zeros."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]


def _replace_first(x: jax.Array) -> jax.Array:
    """The released 'shift': zeros at the first step, everything else in its place."""
    return x.at[:, 0].set(0)
