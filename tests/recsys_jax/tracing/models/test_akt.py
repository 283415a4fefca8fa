"""AKT against its equations in NumPy, and the parts that only AKT has."""

from __future__ import annotations

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

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import attention_reference as ref  # noqa: E402

SIZES = (ref.QUESTIONS, ref.CONCEPTS)
TINY = dict(embedding_dim=8, ffn_dim=6, num_heads=2, head_dims=(5, 4))


def akt(params, questions, concepts, responses, *, num_blocks, heads=2, rasch=True):
    """x = c + mu d, y = c + g_r + mu (f_r + d); encoder, retriever, head on [d ; x]."""
    c = ref.concept_mean(params["concept"]["table"], concepts)
    x, y = c, c + params["response"]["table"][responses]
    if rasch:
        mu = params["difficulty"]["table"][questions]
        d = ref.concept_mean(params["concept_variation"]["table"], concepts)
        x = x + mu * d
        y = y + mu * (params["response_variation"]["table"][responses] + d)
    question, options = x, dict(shared=True, monotonic=True)
    for i in range(num_blocks):
        y = ref.block(params[f"answers_{i}"], y, y, y, ref.up_to, heads, **options)
    for i in range(num_blocks):
        x = ref.block(params[f"questions_{i}"], x, x, x, ref.up_to, heads, ffn=False, **options)
        x = ref.block(params[f"retriever_{i}"], x, x, y, ref.before, heads, **options)
    return ref.head(params["head"], np.concatenate([x, question], -1))


@pytest.mark.parametrize("num_blocks,rasch", [(2, True), (1, False)])
def test_logits_are_those_of_the_equations(num_blocks, rasch):
    model = AKT(AKTConfig(**TINY, num_blocks=num_blocks, rasch=rasch), *SIZES)

    def reference(*args):
        return akt(*args, num_blocks=num_blocks, rasch=rasch)

    ref.check_logits(model, ref.initial(model), ref.batch_of(), reference)


def test_loss_on_difficulties_is_their_mean_square_over_real_steps():
    model = AKT(AKTConfig(**TINY, difficulty_l2=0.5), *SIZES)
    params, batch = ref.initial(model), ref.batch_of()
    _, sown = model.apply({"params": params}, batch, mutable=["losses"])
    (loss,) = jax.tree.leaves(sown)
    mu = params["difficulty"]["table"][np.asarray(batch.questions), 0][np.asarray(batch.mask)]
    np.testing.assert_allclose(loss, 0.5 * (mu**2).mean(), rtol=1e-5)
    plain = AKT(AKTConfig(**TINY, rasch=False), *SIZES)
    _, sown = plain.apply({"params": ref.initial(plain)}, batch, mutable=["losses"])
    assert not jax.tree.leaves(sown)


def test_difficulties_start_at_zero_and_init_returns_no_loss():
    variables = AKT(AKTConfig(**TINY), *SIZES).init(jax.random.key(0), ref.batch_of())
    assert set(variables) == {"params"}
    assert not np.any(variables["params"]["difficulty"]["table"].unbox())


def test_no_gradient_passes_through_the_distance():
    rng = np.random.default_rng(0)
    scores = jnp.asarray(rng.normal(size=(1, 2, 5, 5)), jnp.float32)
    mask, gamma = blocks.seen(jnp.ones((1, 5), bool)), jnp.array([0.3, -0.5])
    through = jax.grad(lambda s: blocks.distance_effect(s, mask, gamma).sum())(scores)
    assert not np.any(through)
    to_gamma = jax.grad(lambda g: blocks.distance_effect(scores, mask, g).sum())(gamma)
    assert np.all(to_gamma < 0)


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_effect_is_a_decay_that_spares_the_nearest_key(seed):
    rng = np.random.default_rng(seed)
    scores = jnp.asarray(rng.normal(size=(2, 2, 6, 6)) * 5, jnp.float32)
    lengths = jnp.asarray(rng.integers(0, 7, 2))
    mask = blocks.seen(jnp.arange(6) < lengths[:, None])
    effect = np.asarray(blocks.distance_effect(scores, mask, jnp.asarray(rng.normal(size=2))))
    assert effect.min() >= 1e-5 and effect.max() <= 1
    np.testing.assert_allclose(np.diagonal(effect, axis1=2, axis2=3), 1)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="embedding_dim=10 is not a multiple of num_heads=4"):
        AKTConfig(embedding_dim=10, num_heads=4)
    with pytest.raises(ValueError, match="difficulty_l2=-1"):
        AKTConfig(difficulty_l2=-1)
