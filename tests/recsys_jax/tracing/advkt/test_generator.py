"""The generator against NumPy, its causality, and its three ways to run."""

import pathlib
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_jax.tracing.advkt import layers
from recsys_jax.tracing.advkt.config import GeneratorConfig
from recsys_jax.tracing.rollout import rollout

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import advkt_data as data  # noqa: E402
import advkt_reference as reference  # noqa: E402

LENGTHS = [7, 10, 3]
BATCH = data.make_batch(LENGTHS, 10)


def in_float64(function, params, *args):
    """The function with float64 parameters, as NumPy."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
        return jax.tree.map(np.asarray, data.jit(function)(params, *args))


def numpy_rows(batch):
    return [
        (
            np.asarray(batch.questions[b])[:n],
            np.asarray(batch.concepts[b])[:n],
            np.asarray(batch.responses[b])[:n],
        )
        for b, n in enumerate(np.asarray(batch.mask).sum(-1))
    ]


@pytest.mark.parametrize("divisor", ["fixed", "released"])
@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"question_mlp": False, "num_layers": 2},
        {"sigmoid_before_ce": True},
        {"question_embedding": "rasch"},
    ],
)
def test_equals_numpy_teacher_forced(divisor, settings_):
    config = {"concept_divisor": divisor, **settings_}
    program, params = data.make_program(generator=config)
    model = program.objectives.generator

    def run(p, batch):
        ones = jnp.ones_like(batch.mask)
        unrolled = model.apply(
            {"params": p}, batch, observed=ones, feedback="threshold", method="unroll"
        )
        nll = model.apply(
            {"params": p}, unrolled, batch.questions, batch.mask, method="question_nll"
        )
        return model.apply({"params": p}, batch), unrolled.states, nll

    logits, states, nll = in_float64(run, params["generator"], BATCH)
    own = data.to_numpy64(params["generator"])
    for b, (q, c, r) in enumerate(numpy_rows(BATCH)):
        expected, before, asked = reference.generator(
            own, q, c, r, divisor=divisor, question_mlp=settings_.get("question_mlp", True)
        )
        np.testing.assert_allclose(logits[b, : len(q)], expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(states[b, : len(q)], before, rtol=0, atol=1e-12)
        if settings_.get("sigmoid_before_ce"):
            asked = reference.sigmoid(asked)
        norm = np.log(np.exp(asked).sum(-1))
        np.testing.assert_allclose(
            nll[b, : len(q)], norm - asked[np.arange(len(q)), q], rtol=0, atol=1e-12
        )


def test_divisors_differ():
    outputs = []
    for divisor in ("fixed", "released"):
        program, params = data.make_program(generator={"concept_divisor": divisor})
        model = program.objectives.generator
        outputs.append(data.jit(model.apply)({"params": params["generator"]}, BATCH))
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


@pytest.mark.parametrize("cut", [0, 3])
def test_own_thresholded_responses_equal_numpy(cut):
    program, params = data.make_program()
    model = program.objectives.generator

    def run(p, batch):
        none = jnp.zeros_like(batch.mask)
        return model.apply(
            {"params": p},
            batch,
            observed=none,
            feedback="threshold",
            reset_every=cut,
            method="unroll",
        )

    got = in_float64(run, params["generator"], BATCH)
    own = data.to_numpy64(params["generator"])
    for b, (q, c, _) in enumerate(numpy_rows(BATCH)):
        expected, _, _ = reference.generator(own, q, c, None, divisor="fixed", cut=cut)
        np.testing.assert_allclose(got.logits[b, : len(q)], expected, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(got.responses[b, : len(q)], expected > 0)


def test_gru_is_flax_grucell_and_torch_equations():
    rng = np.random.default_rng(0)
    dim, width = 4, 6
    params = {
        f"gru_{side}{gate}_{part}": rng.normal(size=shape)
        for side, inputs in (("i", width), ("h", dim))
        for gate in "rzn"
        for part, shape in (("kernel", (inputs, dim)), ("bias", (dim,)))
    }
    x, h = rng.normal(size=(3, width)), rng.normal(size=(3, dim))
    tree = {
        f"{side}{gate}": {
            part: jnp.asarray(params[f"gru_{side}{gate}_{part}"]) for part in ("kernel", "bias")
        }
        for side in "ih"
        for gate in "rzn"
    }
    got = layers.gru(tree, jnp.asarray(x), jnp.asarray(h))
    expected = np.array([reference.gru_torch(params, a, b) for a, b in zip(x, h, strict=True)])
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # flax has one bias for r and z together, and none for the input of n's recurrent part.
    merged = {
        name: {
            "kernel": jnp.asarray(params[f"gru_{name}_kernel"]),
            **({"bias": jnp.asarray(bias)} if bias is not None else {}),
        }
        for name, bias in (
            ("ir", params["gru_ir_bias"] + params["gru_hr_bias"]),
            ("iz", params["gru_iz_bias"] + params["gru_hz_bias"]),
            ("in", params["gru_in_bias"]),
            ("hr", None),
            ("hz", None),
            ("hn", params["gru_hn_bias"]),
        )
    }
    flax, _ = nn.GRUCell(dim).apply({"params": merged}, jnp.asarray(h), jnp.asarray(x))
    np.testing.assert_allclose(got, flax, atol=1e-6)


PROGRAM, PARAMS = data.make_program()
MODEL = PROGRAM.objectives.generator
VARIABLES = {"params": PARAMS["generator"]}
TEACHER = data.jit(lambda batch: MODEL.apply(VARIABLES, batch))
FREE = data.jit(
    lambda batch, observed, key: MODEL.apply(
        VARIABLES, batch, observed=observed, key=key, method="unroll"
    )
)


@settings(max_examples=10)
@given(step=st.integers(0, 9), seed=st.integers(0, 10))
def test_causality(step, seed):
    """Questions after t and responses from t on change no logit up to t, but do change later."""
    batch = data.make_batch([10, 10, 10], 10)
    other = data.make_batch([10, 10, 10], 10, seed + 1)
    later = jnp.arange(10) > step
    changed = batch._replace(
        questions=jnp.where(later, other.questions, batch.questions),
        concepts=jnp.where(later[:, None], other.concepts, batch.concepts),
        responses=jnp.where(jnp.arange(10) >= step, 1 - batch.responses, batch.responses),
    )
    before, after = TEACHER(batch), TEACHER(changed)
    np.testing.assert_array_equal(before[:, : step + 1], after[:, : step + 1])
    if step < 9:
        assert np.all(np.abs(before - after)[:, step + 1] > 1e-6)


def test_open_loop_does_not_read_true_responses():
    none, key = jnp.zeros_like(BATCH.mask), jax.random.key(5)
    one = FREE(BATCH, none, key)
    other = FREE(BATCH._replace(responses=1 - BATCH.responses), none, key)
    chex.assert_trees_all_equal(one, other)


def test_observed_prefix_is_fed_and_the_rest_is_not():
    observed = jnp.broadcast_to(jnp.arange(10) < 4, BATCH.mask.shape)
    got = FREE(BATCH, observed, jax.random.key(5))
    np.testing.assert_array_equal(got.responses[:, :4], BATCH.responses[:, :4])
    np.testing.assert_allclose(got.logits[:, :5], TEACHER(BATCH)[:, :5], atol=1e-6)
    assert set(np.unique(got.responses)) <= {0.0, 1.0}


def test_padding_changes_nothing():
    padded = data.pad(BATCH, 7)
    key = jax.random.key(5)
    np.testing.assert_allclose(TEACHER(padded)[:, :10], TEACHER(BATCH), atol=1e-5)
    one = FREE(BATCH, jnp.zeros_like(BATCH.mask), key)
    other = FREE(padded, jnp.zeros_like(padded.mask), key)
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y[:, :10], atol=1e-5)


@pytest.mark.parametrize("chunk", [3, 64])
def test_chunk_size_changes_nothing(chunk):
    program, _ = data.make_program(generator={"chunk": chunk})
    model = program.objectives.generator

    def loss(params, model):
        return jnp.sum(jnp.where(BATCH.mask, jnp.sin(model.apply({"params": params}, BATCH)), 0))

    got = data.jit(jax.grad(loss), static_argnums=1)(PARAMS["generator"], model)
    expected = data.jit(jax.grad(loss), static_argnums=1)(PARAMS["generator"], MODEL)
    chex.assert_trees_all_close(got, expected, atol=2e-5)


@pytest.mark.parametrize("feedback", ["threshold", "expected"])
def test_stepwise_rollout_equals_unroll(feedback):
    observed = jnp.broadcast_to(jnp.arange(10) < 3, BATCH.mask.shape)
    got = data.jit(
        lambda: MODEL.apply(VARIABLES, BATCH, observed=observed, feedback=feedback, method="unroll")
    )().logits
    expected = data.jit(lambda: rollout(MODEL, VARIABLES, BATCH, observed, feedback=feedback))()
    np.testing.assert_allclose(
        np.where(BATCH.mask, got, 0), np.where(BATCH.mask, expected, 0), atol=1e-5
    )


def test_no_gradient_through_what_is_fed_back():
    """The gradient of free running is that of teacher forcing with the same responses."""
    none = jnp.zeros_like(BATCH.mask)

    def loss(params, batch, observed, feedback):
        unrolled = MODEL.apply(
            {"params": params},
            batch,
            observed=observed,
            feedback=feedback,
            method="unroll",
        )
        return jnp.sum(jnp.sin(unrolled.logits)), unrolled.responses

    slope = data.jit(jax.grad(loss, has_aux=True), static_argnums=3)
    free, fed = slope(PARAMS["generator"], BATCH, none, "expected")
    given_ = BATCH._replace(responses=fed)
    forced, _ = slope(PARAMS["generator"], given_, jnp.ones_like(none), "expected")
    chex.assert_trees_all_close(free, forced, atol=1e-5)


def test_samples_follow_the_probabilities():
    """One student many times: the share of right first responses is the first probability."""
    many = jax.tree.map(lambda x: jnp.repeat(x[:1], 4000, 0), BATCH)
    got = FREE(many, jnp.zeros_like(many.mask), jax.random.key(0))
    p = float(jax.nn.sigmoid(got.logits[0, 0]))
    share = float(got.responses[:, 0].mean())
    assert abs(share - p) < 4 * np.sqrt(p * (1 - p) / 4000)


def test_question_loss_is_sown():
    run = data.jit(lambda batch: MODEL.apply(VARIABLES, batch, mutable=["losses"])[1])
    (loss,) = run(BATCH)["losses"]["question"]
    padded = run(data.pad(BATCH, 5))
    assert 0 < loss < 20
    np.testing.assert_allclose(padded["losses"]["question"][0], loss, rtol=1e-5)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="needs a key"):
        MODEL.apply(VARIABLES, BATCH, observed=BATCH.mask, method="unroll")
    with pytest.raises(ValueError, match="feedback='best'"):
        MODEL.apply(VARIABLES, BATCH, observed=BATCH.mask, feedback="best", method="unroll")
    with pytest.raises(ValueError, match="concept_divisor='both'"):
        data.make_program(generator={"concept_divisor": "both"})
    with pytest.raises(ValueError, match="dim is 0"):
        GeneratorConfig(num_questions=3, num_concepts=2, dim=0)
