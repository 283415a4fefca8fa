"""Rewards, advantages, penalty and both losses: against NumPy, and what they must not depend on."""

import functools
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_jax.tracing.advkt import losses, real_rows, unrolling
from recsys_jax.tracing.advkt.objectives import observed_prefix
from recsys_jax.tracing.advkt.real_rows import loss_of_real_rows

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import advkt_data as data  # noqa: E402
import advkt_reference as reference  # noqa: E402

BATCH = data.make_batch([6, 8, 3], 8)
TABLES = data.make_tables()
WIDTH = 6


def numpy_actor_critic(nll, rewards, values, start, lengths, discount, decay, terminal):
    """The released loop over students, with its two sums kept apart (spec 1.7)."""
    policy = value = 0.0
    gains = np.zeros_like(rewards)
    for b, n in enumerate(lengths):
        after = values[b, :n].copy()
        before = np.concatenate([[start], after[:-1]])
        if terminal == "zero":
            after[-1] = 0
        target = rewards[b, :n] + discount * after
        advantage = 0.0
        for t in reversed(range(n)):
            advantage = decay * advantage + target[t] - before[t]
            gains[b, t] = advantage
        error = np.abs(before - target)
        value += np.where(error < 1, error**2 / 2, error - 0.5).sum()
        policy += (nll[b, :n] * gains[b, :n]).sum()
    return policy / sum(lengths), value / sum(lengths), gains


@given(
    lengths=st.lists(st.integers(1, WIDTH), min_size=3, max_size=3),
    terminal=st.sampled_from(["bootstrap", "zero"]),
    discount=st.floats(0, 1),
    decay=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=15)
def test_actor_critic_equals_the_loop(lengths, terminal, discount, decay, seed):
    rng = np.random.default_rng(seed)
    nll, rewards, values = (rng.normal(size=(3, WIDTH)) * 2 for _ in range(3))
    mask = np.arange(WIDTH) < np.array(lengths)[:, None]
    got = losses.actor_critic_loss(
        *(jnp.asarray(x, jnp.float32) for x in (nll, rewards, values)),
        jnp.float32(0.3),
        jnp.asarray(mask),
        discount=discount,
        decay=decay,
        terminal=terminal,
    )
    expected = numpy_actor_critic(nll, rewards, values, 0.3, lengths, discount, decay, terminal)
    np.testing.assert_allclose(got, expected[:2], rtol=1e-4, atol=1e-4)


def test_advantages_ignore_padding():
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(2, 5)).astype(np.float32)
    mask = np.arange(5) < np.array([[3], [5]])
    got = losses.advantages(jnp.asarray(deltas), jnp.asarray(mask), 0.93)
    noise = np.where(mask, deltas, 1e6).astype(np.float32)
    np.testing.assert_array_equal(got, losses.advantages(jnp.asarray(noise), mask, 0.93))
    assert not np.asarray(got)[~mask].any()
    expected = deltas[0, 0] + 0.93 * (deltas[0, 1] + 0.93 * deltas[0, 2])
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-6)


def test_gradients_of_policy_and_value_stay_apart():
    ones = jnp.ones((2, 4))
    mask = ones.astype(bool)
    settings_ = {"discount": 0.98, "decay": 0.93, "terminal": "bootstrap"}

    def loss(part, nll, values, rewards):
        return losses.actor_critic_loss(nll, rewards, values, 0.0, mask, **settings_)[part]

    rewards = jnp.linspace(0, 3, 8).reshape(2, 4)
    policy = jax.grad(loss, argnums=(1, 2, 3))(0, ones, 0.1 * ones, rewards)
    value = jax.grad(loss, argnums=(1, 2, 3))(1, ones, 0.1 * ones, rewards)
    assert policy[0].any() and not policy[1].any() and not policy[2].any()
    assert not value[0].any() and value[1].any() and not value[2].any()


def test_reward_is_bounded_and_exact():
    logits = np.array([-60.0, -3.0, 0.0, 3.0, 60.0])
    with np.errstate(divide="ignore"):
        expected = -np.log(1 - reference.sigmoid(logits) + 1e-10)
    np.testing.assert_allclose(
        losses.reward_of(jnp.asarray(logits)), expected, rtol=1e-5, atol=1e-6
    )


def test_smooth_l1_is_torchs():
    x = jnp.array([-3.0, -0.5, 0.0, 1.0, 2.5])
    np.testing.assert_allclose(losses.smooth_l1(x, 0.0), [2.5, 0.125, 0.0, 0.5, 2.0])


def test_gradient_penalty_is_the_analytic_one():
    """For a linear score w s + b: gradient p (1 - p) w."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=4)
    real, other = rng.normal(size=(2, 3, 5, 4))
    real_mask = np.arange(5) < np.array([[2], [5], [1]])
    other_mask = np.arange(5) < np.array([[5], [1], [4]])
    key = jax.random.key(0)
    got = losses.gradient_penalty(
        lambda s: s @ jnp.asarray(w, jnp.float32) + 0.1,
        key,
        losses.compact(jnp.asarray(real, jnp.float32), jnp.asarray(real_mask)),
        losses.compact(jnp.asarray(other, jnp.float32), jnp.asarray(other_mask)),
    )
    a, b = real[real_mask][:8], other[other_mask][:8]
    share = (np.asarray(losses.hash_bits(key, (8,))) >> 8)[:, None] * 2.0**-24
    p = reference.sigmoid((share * a + (1 - share) * b) @ w + 0.1)
    expected = np.mean((p * (1 - p) * np.linalg.norm(w) - 1) ** 2)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_gradient_penalty_against_finite_differences():
    """Slope of the score by central differences, for the discriminator's own head."""
    program, params = data.make_program()
    model = program.objectives.discriminator
    with jax.enable_x64(True):
        own = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), params)
        score = jax.jit(
            lambda s: model.apply({"params": own["discriminator"]}, s, method="score_state")
        )
        states = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3 * data.DIM)))
        count = jnp.asarray(4)
        key = jax.random.key(1)
        # Both of a pair alike: the point between them is known.
        got = losses.gradient_penalty(score, key, (states, count), (states, count))
        step = 1e-6 * np.eye(3 * data.DIM)
        slopes = [
            (
                reference.sigmoid(np.asarray(score(s + step)))
                - reference.sigmoid(np.asarray(score(s - step)))
            )
            / 2e-6
            for s in states
        ]
        expected = np.mean((np.linalg.norm(slopes, axis=-1) - 1) ** 2)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("switch", ["fixed", "released"])
def test_flipping_one_response_moves_its_reward_only_when_fixed(switch):
    program, params = data.make_program(reward_response=switch)
    rewards = data.jit(lambda b: program.objectives.rewards(params, b))
    base, states = rewards(BATCH)
    for step in (0, 2, 5):
        flipped = BATCH._replace(
            responses=BATCH.responses.at[:, step].set(1 - BATCH.responses[:, step])
        )
        other, other_states = rewards(flipped)
        moved = np.abs(other - base)[:2]
        if switch == "fixed":
            assert moved[:, step].min() > 1e-6 and moved[:, :step].sum() == 0
        else:
            assert moved.max() == 0 and (other_states == states).all()


PROGRAM, PARAMS = data.make_program(walk_rows=2)
OBJECTIVES = PROGRAM.objectives
GENERATOR = data.jit(OBJECTIVES.generator_loss)
DISCRIMINATOR = data.jit(OBJECTIVES.discriminator_loss)


@pytest.mark.parametrize(
    "name", ["generator", pytest.param("discriminator", marks=pytest.mark.slow)]
)
def test_losses_are_finite_and_touch_their_own_network_only(name):
    function = data.jit(jax.value_and_grad(getattr(OBJECTIVES, f"{name}_loss"), has_aux=True))
    (loss, metrics), grads = function(PARAMS, BATCH, TABLES, jax.random.key(0))
    assert np.isfinite(loss) and all(np.isfinite(x) for x in metrics.values())
    for network, tree in grads.items():
        leaves = jax.tree.leaves(tree)
        assert all(np.isfinite(x).all() for x in leaves)
        if network == name:
            assert not [k for k, x in tree.items() if not np.asarray(x).any()]
        else:
            assert not any(np.asarray(x).any() for x in leaves)


def test_discriminator_loss_is_the_sum_of_its_terms():
    loss, m = DISCRIMINATOR(PARAMS, BATCH, TABLES, jax.random.key(0))
    objectives = OBJECTIVES
    keys = dict(
        zip(
            ("augment", "walk", "sample", "gp_generated", "gp_flipped", *"abcde"),
            jax.random.split(jax.random.key(0), 10),
            strict=True,
        )
    )
    views = objectives.views(BATCH, TABLES, keys["augment"])
    own = objectives.walks(BATCH, TABLES, keys["walk"]).mask
    n, n_aug, n_gen = (float(x.sum()) for x in (BATCH.mask, views.mask, own))
    positive = (n * m["real"] + n_aug * m["augmented"]) / (n + n_aug)
    negative = (n * m["flipped"] + n_gen * m["generated"]) / (n + n_gen)
    expected = (
        -(positive - negative)
        - (m["real"] - m["augmented"])
        - m["short"]
        + m["constraint"]
        + 10 * m["gradient_penalty"]
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_generator_loss_is_the_sum_of_its_terms():
    loss, m = GENERATOR(PARAMS, BATCH, TABLES, jax.random.key(0))
    expected = m["bce"] + m["question"] + m["policy"] + m["value"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert 0 <= m["generated_right"] <= 1 and m["reward"] >= 0


def test_padding_of_students_changes_no_loss():
    """What walks do depends on the width, so only terms of the real batch are compared."""
    settings_ = {"generated_weight": 0.0, "rl_weight": 0.0}
    program, _ = data.make_program(**settings_)
    for name in ("generator_loss", "discriminator_loss"):
        function = data.jit(getattr(program.objectives, name))
        one, _ = function(PARAMS, BATCH, TABLES, jax.random.key(0))
        other, _ = function(PARAMS, data.pad(BATCH, 4), TABLES, jax.random.key(0))
        np.testing.assert_allclose(one, other, rtol=2e-5)


def test_padding_of_walks_changes_no_reward_and_no_loss():
    """The same walks with more padding: rewards, policy and value loss stay."""
    walks = BATCH

    @data.jit
    def reinforce(batch):
        program, _ = data.make_program()
        objectives = program.objectives
        object.__setattr__(objectives, "walks", lambda *_: batch)
        return objectives.reinforce(PARAMS, batch, TABLES, jax.random.key(0))

    _, metrics = reinforce(walks)
    _, padded = reinforce(data.pad(walks, 5))
    for name, tolerance in (("policy", 1e-4), ("value", 1e-4), ("reward", 1e-5)):
        np.testing.assert_allclose(metrics[name], padded[name], rtol=tolerance)


def test_continuations_keep_what_was_observed():
    """Own responses stand after a cut only, on the students' own questions."""
    program, _ = data.make_program(policy_on="continuations")
    objectives = program.objectives
    cuts = set()
    for seed in range(12):
        key = jax.random.key(seed)
        observed = observed_prefix(BATCH, key)
        answered, own = data.jit(objectives.generated)(PARAMS, BATCH, observed, key)
        np.testing.assert_array_equal(answered.questions, BATCH.questions)
        kept = np.asarray(BATCH.mask & ~own)
        np.testing.assert_array_equal(
            np.asarray(answered.responses)[kept], np.asarray(BATCH.responses)[kept]
        )
        # Rising: once own, own to the end.
        steps = np.where(np.asarray(BATCH.mask), own, True).astype(int)
        assert (np.diff(steps, axis=1) >= 0).all()
        cuts |= set(kept.sum(1).tolist())
    assert len(cuts) > 3


@pytest.mark.parametrize("supervision", ["own", "random_prefix"])
def test_continuations_learn_at_their_own_steps_alone(supervision):
    program, _ = data.make_program(supervision=supervision, policy_on="continuations")
    function = data.jit(program.objectives.generator_loss)
    loss, m = function(PARAMS, BATCH, TABLES, jax.random.key(0))
    expected = m["bce"] + m["question"] + m["policy"] + m["value"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    padded, _ = function(PARAMS, data.pad(BATCH, 4), TABLES, jax.random.key(0))
    np.testing.assert_allclose(loss, padded, rtol=2e-5)


def test_normalized_advantages_do_not_know_the_scale_of_rewards():
    rng = np.random.default_rng(0)
    nll, rewards = rng.uniform(0.1, 2, (2, 3, 6)).astype(np.float32)
    mask = np.arange(6) < np.array([[6], [2], [4]])

    def policy(rewards, normalize=True):
        return losses.actor_critic_loss(
            jnp.asarray(nll), jnp.asarray(rewards), jnp.zeros((3, 6)), jnp.zeros(()),
            jnp.asarray(mask), discount=0.98, decay=0.5, terminal="zero", normalize=normalize,
        )[0]  # fmt: skip

    np.testing.assert_allclose(policy(rewards), policy(7 * rewards), rtol=1e-3)
    assert abs(policy(rewards, False) - policy(7 * rewards, False)) > 0.1
    # Mean 0 and deviation 1 over the real steps: constant nll has no policy loss left.
    np.testing.assert_allclose(
        losses.actor_critic_loss(
            jnp.ones((3, 6)), jnp.asarray(rewards), jnp.zeros((3, 6)), jnp.zeros(()),
            jnp.asarray(mask), discount=0.98, decay=0.5, terminal="zero", normalize=True,
        )[0], 0.0, atol=1e-5,
    )  # fmt: skip


def test_policy_gradient_points_to_rewarded_responses():
    """Constant advantage 1 on sampled responses: descent raises their probability."""
    nll = jnp.array([[0.7, 0.7]])
    policy, _ = losses.actor_critic_loss(
        nll,
        jnp.array([[1.0, 1.0]]),
        jnp.zeros((1, 2)),
        jnp.zeros(()),
        jnp.ones((1, 2), bool),
        discount=0.98,
        decay=0.0,
        terminal="bootstrap",
    )
    np.testing.assert_allclose(policy, 0.7, rtol=1e-6)


@pytest.mark.parametrize("supervision", ["own", "random_prefix", "true"])
def test_supervision_decides_what_is_observed(supervision):
    program, _ = data.make_program(supervision=supervision)
    many = data.make_batch([8] * 400, 8)
    seen = np.asarray(program.objectives._observed(many, jax.random.key(0)))
    if supervision == "random_prefix":
        cuts = seen.sum(-1)
        assert (seen == (np.arange(8) < cuts[:, None])).all()
        counts = np.bincount(cuts, minlength=9)
        assert len(counts) == 9 and counts.min() > 15
    else:
        assert (seen == (supervision == "true")).all()


@pytest.mark.parametrize("real", range(8))
def test_padding_rows_are_left_out_of_a_batch(real, monkeypatch):
    monkeypatch.setattr(real_rows, "MIN_ROWS", 1)
    batch = data.make_batch([5] * 7, 5, seed=1)
    mask = batch.mask & (jnp.arange(7) < real)[:, None]
    batch = batch._replace(mask=mask)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(weight):
        def loss(weight, rows):
            kept = jnp.where(rows.mask, jnp.sin(weight * rows.questions), 0)
            return jnp.sum(kept), jnp.full((), rows.mask.shape[0])

        value, rows = loss_of_real_rows(loss, weight, batch)
        return 2 * value, rows

    (total, rows), slope = run(0.3)
    q = np.asarray(batch.questions, np.float64)
    want = 2 * np.sum(np.sin(0.3 * q) * mask), 2 * np.sum(q * np.cos(0.3 * q) * mask)
    np.testing.assert_allclose((total, slope), want, rtol=1e-5, atol=1e-5)
    assert rows == (3 if real <= 3 else 5 if real <= 5 else 7)


def test_fewer_rows_of_walks_change_no_gradient(monkeypatch):
    """Walks of which most are padding: loss and gradients are those of all rows at once, for
    both networks. Responses are fed back by threshold, since samples depend on the shape."""
    monkeypatch.setattr(real_rows, "MIN_ROWS", 1)
    monkeypatch.setattr(unrolling, "_feed", lambda _, logit, __: (logit > 0).astype(logit.dtype))
    settings_ = {"step_share": 2, "walk_rows": None, "augmented_weight": 0.0}
    program, _ = data.make_program(**settings_)
    key = jax.random.key(3)
    walks = program.objectives.walks(BATCH, TABLES, key)
    assert walks.mask.shape[0] == 12 and np.asarray(walks.mask.any(-1)).sum() == 8

    def run(name):
        function = getattr(program.objectives, f"{name}_loss")
        return data.jit(jax.value_and_grad(lambda p: function(p, BATCH, TABLES, key)[0]))(PARAMS)

    parts = {name: run(name) for name in ("generator", "discriminator")}
    monkeypatch.setattr(real_rows, "PARTS", 1)
    for name, (loss, grads) in parts.items():
        whole, slopes = run(name)
        np.testing.assert_allclose(loss, whole, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), grads, slopes
        )


def test_walks_go_with_the_batch():
    program, _ = data.make_program(step_share=4)
    got = program.objectives.walks(BATCH, TABLES, jax.random.key(0))
    assert got.mask.shape == (24 // 4, 8)
    assert np.asarray(got.mask.any(-1)).sum() == 17 // 4
    assert 6 <= int(got.mask[0].sum()) <= 7
