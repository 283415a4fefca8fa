"""The discriminator against NumPy, prefix by prefix; its masks, flips and constraint heads."""

import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import advkt_data as data  # noqa: E402
import advkt_reference as reference  # noqa: E402

from recsys_jax.tracing.advkt.discriminator import attend_before  # noqa: E402

BATCH = data.make_batch([6, 8, 3], 8)
PROGRAM, PARAMS = data.make_program(discriminator={"num_heads": 2})
MODEL = PROGRAM.objectives.discriminator


def run(model, params, *args, method="__call__", **kwargs):
    """A method with float64 parameters, as NumPy."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
        call = data.jit(lambda p, *a: model.apply({"params": p}, *a, method=method, **kwargs))
        return jax.tree.map(np.asarray, call(params, *args))


def prefixes(batch):
    for b, n in enumerate(np.asarray(batch.mask).sum(-1)):
        for t in range(n):
            yield (
                (b, t),
                *(np.asarray(x[b, : t + 1]) for x in (batch.questions, batch.concepts)),
                np.asarray(batch.responses[b, : t + 1]),
            )


def test_scores_equal_numpy_prefix_by_prefix():
    got = run(MODEL, PARAMS["discriminator"], BATCH)
    own = data.to_numpy64(PARAMS["discriminator"])
    for place, q, c, r in prefixes(BATCH):
        logit, state = reference.discriminator_last(own, q, c, r)
        np.testing.assert_allclose(got.logits[place], logit, rtol=0, atol=1e-11)
        np.testing.assert_allclose(got.states[place], state, rtol=0, atol=1e-11)


def test_flipped_scores_equal_the_loop_over_prefixes():
    got = run(MODEL, PARAMS["discriminator"], BATCH, method="score_flipped")
    own = data.to_numpy64(PARAMS["discriminator"])
    for place, q, c, r in prefixes(BATCH):
        flipped = r.copy()
        flipped[-1] = 1 - flipped[-1]
        logit, state = reference.discriminator_last(own, q, c, flipped)
        np.testing.assert_allclose(got.logits[place], logit, rtol=0, atol=1e-11)
        np.testing.assert_allclose(got.states[place], state, rtol=0, atol=1e-11)


def test_single_scores_are_those_of_first_steps():
    tables = data.make_tables()
    questions = jnp.arange(1, data.QUESTIONS + 1)
    got = run(MODEL, PARAMS["discriminator"], questions, tables.concepts[1:], method="score_single")
    own = data.to_numpy64(PARAMS["discriminator"])
    assert got.shape == (data.QUESTIONS, 2)
    for question in range(1, data.QUESTIONS + 1):
        for response in (0, 1):
            logit, _ = reference.discriminator_last(
                own, [question], tables.concepts[[question]], [response]
            )
            np.testing.assert_allclose(got[question - 1, response], logit, atol=1e-11)


@pytest.mark.parametrize("divisor", ["fixed", "released"])
def test_released_masks_equal_numpy(divisor):
    program, params = data.make_program(
        discriminator={
            "masks": "released",
            "concept_divisor": divisor,
            "attention_init": "normal",
        }
    )
    model, own = program.objectives.discriminator, data.to_numpy64(params["discriminator"])
    got = run(model, params["discriminator"], BATCH)
    for b in range(3):
        rows = np.asarray(2 * BATCH.questions[b] + BATCH.responses[b])
        expected = reference.discriminator_unmasked(
            own, np.asarray(BATCH.questions[b]), np.asarray(BATCH.concepts[b]), rows, divisor
        )
        np.testing.assert_allclose(got.logits[b], expected, rtol=0, atol=1e-10)


def test_released_flips_see_no_history():
    program, params = data.make_program(discriminator={"masks": "released"})
    model = program.objectives.discriminator
    got = run(model, params["discriminator"], BATCH, method="score_flipped")
    # A flip scores the same as the same answer to a first question.
    single = run(
        model,
        params["discriminator"],
        BATCH.questions[0],
        BATCH.concepts[0],
        method="score_single",
    )
    steps = np.arange(6)
    np.testing.assert_allclose(
        got.logits[0, :6], single[steps, 1 - np.asarray(BATCH.responses[0, :6])], atol=1e-12
    )


@pytest.mark.parametrize("masks", ["fixed", "released"])
def test_causality_and_padding_hold_with_masks_only(masks):
    program, params = data.make_program(discriminator={"masks": masks})
    model = program.objectives.discriminator
    other = data.make_batch([6, 8, 8], 8, seed=4)
    later = jnp.arange(8) > 4
    changed = BATCH._replace(
        questions=jnp.where(later & BATCH.mask, other.questions, BATCH.questions),
        responses=jnp.where(later & BATCH.mask, 1 - BATCH.responses, BATCH.responses),
    )
    one, two, padded = (
        run(model, params["discriminator"], b).logits for b in (BATCH, changed, data.pad(BATCH, 3))
    )
    past = np.abs(one - two)[:2, :5].max()
    padding = np.abs(np.where(BATCH.mask, one - padded[:, :8], 0)).max()
    if masks == "fixed":
        assert past == 0 and padding < 1e-12
    else:
        assert past > 1e-6 and padding > 1e-6


@pytest.mark.parametrize("shift", ["fixed", "released"])
def test_constraint_heads_see_their_targets_only_when_released(shift):
    program, params = data.make_program(discriminator={"shift": shift})
    model, step = program.objectives.discriminator, 3

    def heads(p, batch, labels):
        scores = model.apply({"params": p}, batch)
        asked = model.apply({"params": p}, scores, labels, batch.mask, method="question_nll")
        return asked, model.apply({"params": p}, scores, method="response_logits")

    call = data.jit(heads)
    other = BATCH.questions.at[:, step].set(BATCH.questions[:, step] % data.QUESTIONS + 1)
    asked = BATCH._replace(questions=other)
    answered = BATCH._replace(
        responses=BATCH.responses.at[:, step].set(1 - BATCH.responses[:, step])
    )
    own = params["discriminator"]
    labels = BATCH.questions
    base = call(own, BATCH, labels)
    moved = np.abs(call(own, asked, labels)[0] - base[0])[:2]
    moved_response = np.abs(call(own, answered, labels)[1] - base[1])[:2]
    assert moved[:, :step].max() == 0 and moved_response[:, :step].max() == 0
    assert moved[:, step + 1].min() > 1e-6 and moved_response[:, step + 1].min() > 1e-6
    if shift == "fixed":
        assert moved[:, step].max() == 0 and moved_response[:, step].max() == 0
    else:
        assert moved[:, step].min() > 1e-6 and moved_response[:, step].min() > 1e-6


def test_xavier_attention_is_not_one_hot_but_released_is():
    """Mean largest weight of a causal softmax over N(0, 1) inputs of width 64."""
    rng = np.random.default_rng(0)
    largest = {}
    for init in ("xavier", "normal"):
        program, params = data.make_program(discriminator={"attention_init": init})
        own = data.to_numpy64(params["discriminator"])
        x = rng.normal(size=(200, 2 * data.DIM))
        q, k = (x @ own[f"question_{part}"][0] for part in ("query", "key"))
        scores = q @ k.T / np.sqrt(data.DIM)
        largest[init] = np.mean([reference.softmax(row).max() for row in scores])
    assert largest["normal"] > 0.7 and largest["xavier"] < 0.3


@pytest.mark.parametrize("block", [1, 3, 7, 50])
def test_attention_in_blocks_of_queries_is_the_plain_one(block):
    """Values and gradients of a softmax over the keys before a step and one of its own."""
    rng = np.random.default_rng(0)
    arguments = [rng.normal(size=(2, 7, 3, 4)) for _ in range(5)]

    def plain(q, k, v, k_own, v_own):
        scores = jnp.einsum("bthd,bshd->bhts", q, k)
        scores = jnp.where(jnp.tril(jnp.ones((7, 7), bool), -1), scores, -jnp.inf)
        own = jnp.einsum("bthd,bthd->bht", q, k_own)[..., None]
        weights = jax.nn.softmax(jnp.concatenate([scores, own], -1), -1)
        heads = jnp.einsum("bhts,bshd->bthd", weights[..., :-1], v)
        return heads + jnp.einsum("bht,bthd->bthd", weights[..., -1], v_own)

    def value_and_gradients(function, *x):
        out, pull = jax.vjp(function, *x)
        return out, pull(jnp.cos(jnp.arange(out.size).reshape(out.shape)))

    with jax.enable_x64():
        x = [jnp.asarray(a) for a in arguments]
        found = value_and_gradients(lambda *a: attend_before(*a, block=block), *x)
        chex.assert_trees_all_close(found, value_and_gradients(plain, *x), rtol=0, atol=1e-12)
