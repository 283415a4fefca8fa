"""SAKT against its equations in NumPy; the masked softmax and first answers of all models."""

from __future__ import annotations

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_jax.tracing.models import attention_blocks as blocks
from recsys_jax.tracing.models.akt import AKT, AKTConfig
from recsys_jax.tracing.models.cl4kt import CL4KT, CL4KTConfig
from recsys_jax.tracing.models.saint import SAINT, SAINTConfig
from recsys_jax.tracing.models.sakt import SAKT, SAKTConfig
from recsys_jax.tracing.models.simplekt import SimpleKT, SimpleKTConfig
from recsys_jax.tracing.rollout import rollout

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import attention_reference as ref  # noqa: E402

SIZES, STEPS = (ref.QUESTIONS, ref.CONCEPTS), ref.STEPS
NARROW = dict(embedding_dim=8, num_heads=2)
MODELS = {
    "sakt": SAKT(SAKTConfig(**NARROW, max_len=16), *SIZES),
    "saint": SAINT(SAINTConfig(**NARROW, num_blocks=1, max_len=16), *SIZES),
    "akt": AKT(AKTConfig(**NARROW, ffn_dim=4, head_dims=(4,)), *SIZES),
    "simplekt": SimpleKT(SimpleKTConfig(**NARROW, ffn_dim=4, head_dims=(4,), num_blocks=1), *SIZES),
    "cl4kt": CL4KT(CL4KTConfig(**NARROW, ffn_dim=4, head_dims=(4,), num_blocks=1), *SIZES),
}
every_model = pytest.mark.parametrize("name", MODELS)


def answer_mean(table, concepts, responses):
    """Mean over the set of the row of (response, concept)."""
    table = table.reshape(2, -1, table.shape[-1])
    return np.concatenate(
        [ref.concept_mean(table[r], ids[None]) for ids, r in zip(concepts, responses, strict=True)]
    )


def sakt(params, questions, concepts, responses, *, num_blocks, use_questions):
    query = ref.concept_mean(params["concept"]["table"], concepts)
    keys = answer_mean(params["answer"]["concept"], concepts, responses)
    if use_questions:
        query = query + params["question"]["table"][questions]
        table = params["answer"]["question"].reshape(2, -1, query.shape[-1])
        keys = keys + table[responses, questions]
    keys = keys + params["positions"][: len(keys)]
    for i in range(num_blocks):
        sees = ref.before if i == 0 else ref.up_to
        keys = ref.block(params[f"block_{i}"], query, keys, keys, sees, 2)
    return ref.head(params["head"], keys)


@pytest.mark.parametrize("num_blocks,use_questions", [(1, False), (2, True)])
def test_logits_are_those_of_the_equations(num_blocks, use_questions):
    config = SAKTConfig(**NARROW, num_blocks=num_blocks, use_questions=use_questions, max_len=STEPS)

    def reference(*args):
        return sakt(*args, num_blocks=num_blocks, use_questions=use_questions)

    model = SAKT(config, *SIZES)
    ref.check_logits(model, ref.initial(model), ref.batch_of(), reference)


def test_a_sequence_longer_than_the_positions_is_refused():
    model = SAKT(SAKTConfig(**NARROW, max_len=STEPS - 1), *SIZES)
    with pytest.raises(ValueError, match=f"{STEPS} steps.*max_len={STEPS - 1}"):
        model.init(jax.random.key(0), ref.batch_of())


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1.0, 30.0, 1e4]))
def test_weights_sum_to_one_or_are_zero_where_nothing_is_seen(seed, scale):
    rng = np.random.default_rng(seed)
    scores = jnp.asarray(rng.normal(size=(2, 3, 5, 5)) * scale, jnp.float32)
    mask = jnp.asarray(rng.random((2, 1, 5, 5)) < 0.4)
    weights = np.asarray(blocks.masked_softmax(scores, mask))
    assert not np.any(weights[np.broadcast_to(~mask, weights.shape)])
    sums = np.broadcast_to(mask.any(-1), weights.shape[:3]).astype(np.float32)
    np.testing.assert_allclose(weights.sum(-1), sums, atol=1e-6)
    gradient = jax.grad(lambda s: (blocks.masked_softmax(s, mask) ** 2).sum())(scores)
    assert np.isfinite(gradient).all()
    assert not np.any(np.asarray(gradient)[np.broadcast_to(~mask, weights.shape)])


def test_what_a_query_sees():
    mask = jnp.array([[True, True, False]])
    up_to = [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    np.testing.assert_array_equal(blocks.seen(mask)[0, 0], up_to)
    np.testing.assert_array_equal(
        blocks.seen(mask, strict=True)[0, 0], [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    )
    np.testing.assert_array_equal(blocks.seen(mask, causal=False)[0, 0], [[1, 1, 0]] * 3)


@functools.cache
def compiled(name):
    """The module's variables and its compiled pass."""
    return {"params": ref.initial(MODELS[name])}, jax.jit(MODELS[name].apply)


@every_model
def test_gradients_are_finite_for_students_without_a_step(name):
    model = MODELS[name]
    params, batch = compiled(name)[0]["params"], ref.batch_of(lengths=(4, 0), steps=6)

    @jax.jit
    def gradient(params, batch, weights):
        def loss(params):
            logits = model.apply({"params": params}, batch)
            return jnp.sum(weights * jnp.logaddexp(0, logits))

        return jax.grad(loss)(params)

    real = gradient(params, batch, batch.mask)
    # Even the logits of padding, counted in, give finite gradients.
    padding = gradient(params, batch, ~batch.mask)
    nobody = gradient(params, batch._replace(mask=jnp.zeros_like(batch.mask)), batch.mask)
    for tree in (real, padding, nobody):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(real))


@every_model
def test_the_first_logit_is_a_function_of_the_question(name):
    variables, apply = compiled(name)
    batch = ref.batch_of(1)
    same_first = jax.tree.map(lambda x: x.at[1, 0].set(x[0, 0]), batch)
    turned = same_first._replace(responses=1 - same_first.responses)
    logits = np.asarray(apply(variables, same_first))
    np.testing.assert_allclose(logits[0, 0], logits[1, 0], rtol=1e-5, atol=1e-6)
    assert abs(logits[0, 0] - logits[2, 0]) > 1e-3  # not a constant
    np.testing.assert_array_equal(apply(variables, turned)[:, 0], logits[:, 0])


@every_model
def test_probabilities_lie_between_and_roll_out(name):
    (variables, apply), batch = compiled(name), ref.batch_of()
    sure = batch._replace(responses=batch.responses.astype(jnp.float32))
    logits = apply(variables, batch)
    np.testing.assert_allclose(apply(variables, sure), logits, atol=1e-5)
    half = batch._replace(responses=jnp.full(batch.mask.shape, 0.5))
    assert np.abs(apply(variables, half) - logits).max() > 1e-3
    observed = jnp.arange(STEPS) < jnp.full((len(ref.LENGTHS), 1), 2)
    roll = jax.jit(rollout, static_argnums=0, static_argnames=("feedback", "with_responses"))
    logits, fed = roll(
        MODELS[name], variables, batch, observed, feedback="expected", with_responses=True
    )
    own = np.where(observed, batch.responses, jax.nn.sigmoid(logits))
    np.testing.assert_allclose(fed, np.where(batch.mask, own, 0), atol=1e-6)
