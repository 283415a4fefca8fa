"""Views, the contrastive loss against NumPy, and CL4KT's use of both."""

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

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.models.cl4kt import CL4KT, CL4KTConfig
from recsys_jax.tracing.models.contrastive import (
    ContrastiveConfig,
    contrastive_loss,
    difficulty_neighbours,
    flipped,
    info_nce,
    pool,
    view,
)

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import attention_reference as ref  # noqa: E402

OFF = dict(mask_prob=0.0, replace_prob=0.0, permute_prob=0.0, crop_prob=0.0)
SIZES = dict(num_questions=ref.QUESTIONS, num_concepts=ref.CONCEPTS)


@functools.cache
def viewer(name, rate, tokens=(0, 0)):
    config = ContrastiveConfig(**(OFF | {name: rate}))
    return jax.jit(
        lambda seed, batch, neighbours=None: view(
            jax.random.key(seed), batch, config, neighbours, mask_tokens=tokens, **SIZES
        )
    )


def steps_of(batch: Batch, student: int):
    """The student's real steps as tuples (question, concepts, response), in order."""
    n = int(batch.mask[student].sum())
    assert not np.any(batch.mask[student, n:]), "padding must be on the right"
    for array in batch[:3]:
        assert not np.any(array[student, n:]), "padding must be zero"
    return [
        (
            int(batch.questions[student, t]),
            tuple(np.asarray(batch.concepts[student, t]).tolist()),
            int(batch.responses[student, t]),
        )
        for t in range(n)
    ]


seeds = given(seed=st.integers(0, 10_000))


@settings(max_examples=15)
@seeds
def test_permute_shuffles_one_run_of_the_steps(seed):
    batch = ref.batch_of(seed)
    out = viewer("permute_prob", 0.5)(seed, batch)
    for i, length in enumerate(ref.LENGTHS):
        old, new = steps_of(batch, i), steps_of(out, i)
        assert sorted(old) == sorted(new)
        moved = [t for t in range(length) if old[t] != new[t]]
        assert not moved or moved[-1] - moved[0] < length // 2


@settings(max_examples=15)
@seeds
def test_crop_keeps_a_run_at_the_front(seed):
    batch = ref.batch_of(seed)
    out = viewer("crop_prob", 0.5)(seed, batch)
    for i, length in enumerate(ref.LENGTHS):
        old, new = steps_of(batch, i), steps_of(out, i)
        assert len(new) == max(length // 2, 1)
        assert any(old[s : s + len(new)] == new for s in range(length - len(new) + 1))


def test_mask_hides_its_share_of_steps_and_keeps_responses():
    batch = ref.batch_of(0, (200,) * 20, 200)
    tokens = (ref.QUESTIONS + 1, ref.CONCEPTS + 1)
    out = viewer("mask_prob", 0.4, tokens)(0, batch)
    hidden = np.asarray(out.questions == tokens[0])
    assert abs(hidden.mean() - 0.8 * 0.4) < 4 * (0.32 * 0.68 / hidden.size) ** 0.5
    np.testing.assert_array_equal(
        np.asarray(out.concepts)[hidden], np.tile([tokens[1], 0, 0], (hidden.sum(), 1))
    )
    np.testing.assert_array_equal(out.responses, batch.responses)
    other = np.asarray(out.questions != batch.questions) & ~hidden
    assert 0.02 < other.mean() < 0.05  # a tenth of .4, less the draws of the same question
    assert np.all(np.asarray(out.concepts)[other][:, 1:] == 0)
    # With the default token, 0, a hidden step is still a real one.
    unknown = viewer("mask_prob", 0.4)(0, batch)
    np.testing.assert_array_equal(np.asarray(unknown.questions == 0), hidden)
    assert unknown.mask.all() and not np.any(np.asarray(unknown.concepts)[hidden])


def test_replace_takes_the_neighbour_in_the_order_of_difficulty():
    # Shares of right answers: concept 1: 1, 2: 0, 3: 1/2; 4 and 5 are never answered.
    concepts = jnp.array([[1, 2, 3, 3]])[..., None]
    responses = jnp.array([[1, 0, 1, 0]])
    batch = Batch(concepts[..., 0], concepts, responses, jnp.ones((1, 4), bool))
    neighbours = difficulty_neighbours(batch, ref.CONCEPTS)
    np.testing.assert_array_equal(neighbours.easier, [0, 1, 3, 1, 4, 5, 6])
    np.testing.assert_array_equal(neighbours.harder, [0, 3, 2, 2, 4, 5, 6])
    out = viewer("replace_prob", 1.0)(0, batch, neighbours)
    np.testing.assert_array_equal(out.concepts[0, :, 0], [1, 2, 1, 2])
    np.testing.assert_array_equal(out.questions, np.zeros((1, 4)))
    np.testing.assert_array_equal(out.responses, responses)


def test_flipped_turns_real_responses_only():
    batch = ref.batch_of()
    out = flipped(jax.random.key(0), batch, 1.0)
    np.testing.assert_array_equal(
        out.responses, np.where(batch.mask, 1 - np.asarray(batch.responses), 0)
    )
    np.testing.assert_array_equal(flipped(jax.random.key(0), batch, 0.0).responses, batch.responses)


@settings(max_examples=15)
@seeds
def test_info_nce_is_its_definition(seed):
    rng = np.random.default_rng(seed)
    a, p, n = rng.normal(size=(3, 4, 5))
    valid = np.array([True, True, False, True])
    loss = info_nce(
        *(jnp.asarray(x) for x in (a, p, valid)),
        temperature=0.3,
        negatives=jnp.asarray(n),
        negative_weight=0.7,
    )

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    rows = np.flatnonzero(valid)
    losses = []
    for i in rows:
        right = np.exp(cosine(a[i], p[i]) / 0.3)
        total = sum(np.exp(cosine(a[i], p[j]) / 0.3) for j in rows)
        total += sum(np.exp(cosine(a[i], n[j]) / 0.3 + 0.7 * (i == j)) for j in rows)
        losses.append(-np.log(right / total))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-4)


def test_any_encoder_can_be_pre_trained_and_its_gradient_is_finite():
    """A bag of answers: identical views give a loss that only the other students raise."""
    batch = ref.batch_of(0, (9, 5, 0))
    table = jax.random.normal(jax.random.key(0), (ref.QUESTIONS + 1, 2, 4))

    def loss(table, config):
        def encode(b):
            return table[b.questions, b.responses]

        return contrastive_loss(encode, jax.random.key(1), batch, config, **SIZES)

    identity = ContrastiveConfig(**OFF, temperature=1.0, negative_prob=0.0)
    pooled = pool(table[batch.questions, batch.responses], batch.mask)
    expected = info_nce(pooled, pooled, batch.mask.any(-1), temperature=1.0)
    np.testing.assert_allclose(loss(table, identity), expected, rtol=1e-5)
    harder = ContrastiveConfig(**OFF, temperature=1.0, hard_negative_weight=3.0)
    assert loss(table, harder) > loss(table, identity)
    gradient = jax.grad(loss)(table, ContrastiveConfig())
    assert np.isfinite(gradient).all() and np.any(gradient != 0)
    nobody = batch._replace(mask=jnp.zeros_like(batch.mask))
    assert (
        contrastive_loss(
            lambda b: table[b.questions, b.responses],
            jax.random.key(1),
            nobody,
            ContrastiveConfig(),
            **SIZES,
        )
        == 0
    )


def test_cl4kt_trains_with_the_contrastive_loss_beside():
    config = CL4KTConfig(
        embedding_dim=8, ffn_dim=4, num_heads=2, num_blocks=1, head_dims=(4,), dropout_rate=0.0
    )
    model, batch = CL4KT(config, ref.QUESTIONS, ref.CONCEPTS), ref.batch_of()
    variables = {"params": ref.initial(model)}

    @jax.jit
    def both(key):
        sown = model.apply(variables, batch, train=True, rngs={"dropout": key}, mutable=["losses"])[
            1
        ]
        direct = model.apply(variables, batch, key, train=False, method="pretraining_loss")
        return jax.tree.leaves(sown)[0], direct

    values = [both(jax.random.key(seed)) for seed in range(3)]
    assert all(np.isfinite(v) and v > 0 for pair in values for v in pair)
    assert len({float(sown) for sown, _ in values}) == 3  # views differ
    _, sown = model.apply(variables, batch, mutable=["losses"])
    assert not jax.tree.leaves(sown)


def test_bad_rates_are_refused():
    with pytest.raises(ValueError, match="crop_prob=1.5"):
        ContrastiveConfig(crop_prob=1.5)
    with pytest.raises(ValueError, match="temperature=0"):
        ContrastiveConfig(temperature=0)
    with pytest.raises(ValueError, match="contrastive_weight=-1"):
        CL4KTConfig(contrastive_weight=-1)
