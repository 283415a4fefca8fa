"""DKT, DKT+, DKVMN, ATKT, IEKT and direct multi-step DKT against NumPy in float64."""

from __future__ import annotations

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recsys_jax.tracing.models import build
from recsys_jax.tracing.models.atkt import ATKTConfig
from recsys_jax.tracing.models.dkt import DKTConfig
from recsys_jax.tracing.models.dkt2_multi import DKT2MultiConfig
from recsys_jax.tracing.models.dkt_plus import DKTPlusConfig
from recsys_jax.tracing.models.dkvmn import DKVMNConfig
from recsys_jax.tracing.models.iekt import IEKTConfig, policy_loss
from recsys_jax.tracing.models.recurrent import checkpointed_scan, lstm_states_before

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tiny_batches import CONCEPTS, QUESTIONS, STEPS, moved_variables, students  # noqa: E402


def made(name, config):
    module = build(name, config, num_questions=QUESTIONS, num_concepts=CONCEPTS)
    variables = moved_variables(module)
    return module, variables, jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def log_loss(logit, target):
    return np.logaddexp(0, logit) - target * logit


def steps_of(batch):
    """(student, step, question, list of concepts, response) of every real step, in order."""
    questions, concepts, responses, mask = map(np.asarray, batch)
    for b, t in zip(*np.nonzero(mask), strict=True):
        yield b, t, questions[b, t], [c for c in concepts[b, t] if c], responses[b, t]


def mean_rows(table, ids):
    return np.mean([table[i] for i in ids], axis=0)


def interaction(p, question, concepts, response, use_questions):
    x = mean_rows(p["concept"], [c + response * (CONCEPTS + 1) for c in concepts])
    return x + p["question"][question + response * (QUESTIONS + 1)] if use_questions else x


def readout(p, state, question, concepts, use_questions):
    logit = np.mean([p["kernel"][c] @ state + p["bias"][c] for c in concepts])
    if use_questions:
        logit += p["question_kernel"][question] @ state + p["question_bias"][question]
    return logit


def lstm(p, x, h, c):
    width = len(h)
    gates = x @ p["kernel"] + p["bias"] + h @ p["recurrent"]
    i, f, g, o = (gates[k * width : (k + 1) * width] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def dkt_states(p, batch, width, use_questions):
    """{(student, step): h before the step}, and after the last step."""
    states = {}
    for b, t, q, concepts, r in steps_of(batch):
        if t == 0:
            h = c = np.zeros(width)
        states[b, t] = h
        h, c = lstm(p["lstm"], interaction(p["interactions"], q, concepts, r, use_questions), h, c)
        states[b, t + 1] = h
    return states


@pytest.mark.parametrize("use_questions", [False, True])
def test_dkt(use_questions):
    config = DKTConfig(embedding_dim=6, hidden_dim=4, use_questions=use_questions)
    module, variables, p = made("dkt", config)
    batch = students()
    logits = np.asarray(jax.jit(module.apply)(variables, batch))
    states = dkt_states(p, batch, 4, use_questions)
    for b, t, q, concepts, _ in steps_of(batch):
        expected = readout(p["readout"], states[b, t], q, concepts, use_questions)
        assert logits[b, t] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_dkt_plus_losses():
    config = DKTPlusConfig(
        embedding_dim=6,
        hidden_dim=4,
        dropout_rate=0.0,
        reconstruction=0.5,
        waviness_l1=2.0,
        waviness_l2=3.0,
    )
    module, variables, p = made("dkt_plus", config)
    batch = students()
    logits, sown = module.apply(variables, batch, train=True, mutable=["losses"])
    np.testing.assert_allclose(logits, module.apply(variables, batch), rtol=1e-6)
    states, real = dkt_states(p, batch, 4, False), np.asarray(batch.mask)
    again, l1, l2 = [], [], []
    kernel, bias = p["readout"]["kernel"][1:], p["readout"]["bias"][1:]
    for b, t, q, concepts, r in steps_of(batch):
        if t + 1 < STEPS and real[b, t + 1]:
            logit = readout(p["readout"], states[b, t + 1], q, concepts, False)
            again.append(log_loss(logit, r))
        if t + 2 < STEPS and real[b, t + 2]:
            after, later = (sigmoid(kernel @ states[b, t + k] + bias) for k in (1, 2))
            l1.append(np.abs(later - after).mean())
            l2.append(((later - after) ** 2).mean())
    losses = {name: float(np.sum(value)) for name, value in sown["losses"].items()}
    assert losses["reconstruction"] == pytest.approx(0.5 * np.mean(again), rel=1e-5)
    assert losses["waviness"] == pytest.approx(2 * np.mean(l1) + 3 * np.mean(l2), rel=1e-5)


@pytest.mark.parametrize("use_questions", [False, True])
def test_dkvmn(use_questions):
    config = DKVMNConfig(embedding_dim=6, memory_size=3, use_questions=use_questions)
    module, variables, p = made("dkvmn", config)
    batch = students()
    logits = np.asarray(jax.jit(module.apply)(variables, batch))

    def dense(name, x):
        return x @ p[name]["kernel"] + p[name]["bias"]

    for b, t, q, concepts, r in steps_of(batch):
        memory = p["memory_start"] if t == 0 else memory  # noqa: F821
        key = mean_rows(p["key_embedding"], concepts)
        if use_questions:
            key = key + p["question_embedding"][q]
        w = softmax(p["memory_keys"] @ key)
        summary = np.tanh(dense("summary", np.concatenate([w @ memory, key])))
        expected = dense("output", summary)[0]
        assert logits[b, t] == pytest.approx(expected, rel=1e-5, abs=1e-5)
        v = interaction(p["interactions"], q, concepts, r, use_questions)
        erase, add = sigmoid(dense("erase", v)), np.tanh(dense("add", v))
        memory = memory * (1 - np.outer(w, erase)) + np.outer(w, add)


@pytest.mark.parametrize("steps", [1, 6, 7])
def test_lstm_gradients_are_those_of_the_differentiated_scan(steps):
    rng = np.random.default_rng(0)
    recurrent, gates, weights = (
        jnp.asarray(rng.normal(size=shape), jnp.float32)
        for shape in ((4, 16), (steps, 3, 16), (steps, 3, 4))
    )

    def plain(recurrent, gates):
        def step(state, gate):
            h, c = state
            i, f, g, o = jnp.split(gate + h @ recurrent, 4, -1)
            after = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return (jax.nn.sigmoid(o) * jnp.tanh(after), after), h

        return jax.lax.scan(step, (jnp.zeros((3, 4)),) * 2, gates)[1]

    def loss(states):
        return lambda *args: (states(*args) ** 2 * weights).sum()

    states = lstm_states_before(recurrent, gates)
    np.testing.assert_allclose(states, plain(recurrent, gates), rtol=1e-5, atol=1e-7)
    actual, expected = (
        jax.jit(jax.grad(loss(f), (0, 1)))(recurrent, gates) for f in (lstm_states_before, plain)
    )
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_projecting_the_table_is_projecting_the_answers():
    module, variables, _ = made("dkt", DKTConfig(embedding_dim=6, hidden_dim=4))
    many = students(count=9)
    assert STEPS < 2 * 2 * (CONCEPTS + 1) < many.questions.size  # both orders are taken
    whole = jax.jit(module.apply)(variables, many)
    for student in range(9):
        alone = jax.tree.map(lambda x, i=student: x[i : i + 1], many)
        np.testing.assert_allclose(
            module.apply(variables, alone), whole[student : student + 1], rtol=1e-5, atol=1e-5
        )


def test_checkpointed_scan_is_scan():
    def step(carry, x):
        carry = jnp.tanh(0.9 * carry + x)
        return carry, carry**2

    xs = jnp.asarray(np.random.default_rng(0).normal(size=(11, 2)))

    def plain(xs):
        return jax.lax.scan(step, jnp.zeros(2), xs)[1]

    def saved(xs):
        return checkpointed_scan(step, jnp.zeros(2), xs, 11, segment=4)[1]

    np.testing.assert_allclose(saved(xs), plain(xs), rtol=1e-6)
    gradients = (jax.grad(lambda x, f=f: f(x).sum())(xs) for f in (saved, plain))
    np.testing.assert_allclose(*gradients, rtol=1e-6)


ATKT_TINY = ATKTConfig(skill_dim=5, answer_dim=3, hidden_dim=4, attention_dim=4, dropout_rate=0.0)


def atkt_logits(p, batch, shift=None):
    """Masked softmax over the states so far, then the sum of the earlier outputs."""
    logits = np.zeros(batch.mask.shape)
    for b, t, _, concepts, r in steps_of(batch):
        if t == 0:
            h = c = np.zeros(4)
            states, outputs = [], []
        past = np.sum(outputs[:-1], axis=0) if len(outputs) > 1 else np.zeros(4)
        logits[b, t] = readout(p["readout"], np.concatenate([past, h]), 0, concepts, False)
        skill = mean_rows(p["skills"], concepts)
        x = np.concatenate([skill, p["answers"][1]] if r else [p["answers"][0], skill])
        h, c = lstm(p["lstm"], x if shift is None else x + shift[b, t], h, c)
        states.append(h)
        scores = np.tanh(states @ p["attention_kernel"] + p["attention_bias"]) @ p["similarity"]
        outputs.append(softmax(scores[:, 0]) @ np.array(states))
    return logits


def test_atkt():
    module, variables, p = made("atkt", ATKT_TINY)
    batch = students()
    logits = np.asarray(jax.jit(module.apply)(variables, batch))
    mask = np.asarray(batch.mask)
    np.testing.assert_allclose(logits[mask], atkt_logits(p, batch)[mask], rtol=1e-5, atol=1e-5)


def test_atkt_perturbs_along_the_gradient():
    """The sown loss is beta times the BCE after a step of length epsilon up the gradient."""
    module, variables, p = made("atkt", ATKT_TINY)
    batch = students(count=2, steps=4)
    mask, responses = np.asarray(batch.mask), np.asarray(batch.responses)

    def loss(shift):
        return log_loss(atkt_logits(p, batch, shift), responses)[mask].mean()

    gradient = np.zeros((2, 4, 8))
    for index in np.ndindex(gradient.shape):
        shift = np.zeros_like(gradient)
        shift[index] = 1e-5
        gradient[index] = (loss(shift) - loss(-shift)) / 2e-5
    norm = np.sqrt((gradient**2).sum((1, 2), keepdims=True))
    _, sown = module.apply(variables, batch, train=True, mutable=["losses"])
    expected = 0.2 * loss(10.0 * gradient / norm)
    assert float(sown["losses"]["adversarial"][0]) == pytest.approx(expected, rel=1e-4)


def test_iekt():
    module, variables, p = made("iekt", IEKTConfig(embedding_dim=4, cognition_levels=3))
    batch = students()
    logits = np.asarray(jax.jit(module.apply)(variables, batch))

    def mlp(name, x):
        hidden = p[name]["hidden_0"]
        x = np.maximum(x @ hidden["kernel"] + hidden["bias"], 0)
        return x @ p[name]["out"]["kernel"] + p[name]["out"]["bias"]

    def gate(name, x):
        return x @ p["gru"][name]["kernel"] + p["gru"][name].get("bias", 0)

    for b, t, q, concepts, r in steps_of(batch):
        h = np.zeros(4) if t == 0 else h  # noqa: F821
        v = np.concatenate([mean_rows(p["embed"]["concept"], concepts), p["embed"]["question"][q]])
        level = p["cognition"][mlp("choose_cognition", np.concatenate([v, h])).argmax()]
        logit = mlp("predictor", np.concatenate([h, v, level]))[0]
        assert logits[b, t] == pytest.approx(logit, rel=1e-5, abs=1e-5)
        hv, zero = np.concatenate([h, v]), np.zeros(12)
        seen = [hv, zero] if r else [zero, hv]
        guessed = [hv, zero] if logit > 0 else [zero, hv]
        level = mlp("choose_acquisition", np.concatenate(seen + guessed)).argmax()
        s = p["acquisition"][level]
        x = np.concatenate([v, s] if r else [s, v])
        reset, update = (sigmoid(gate("i" + k, x) + gate("h" + k, h)) for k in "rz")
        new = np.tanh(gate("in", x) + reset * gate("hn", h))
        h = (1 - update) * new + update * h


def test_policy_loss_sums_discounted_rewards():
    rng = np.random.default_rng(0)
    log_choices, logits = -rng.random((2, 4)), rng.normal(size=(2, 4))
    responses = rng.integers(0, 2, (2, 4))
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    total = 0.0
    for b, length in enumerate((4, 2)):
        right = (logits[b] > 0) == responses[b]
        for t in range(length):
            returns = sum(0.9 ** (u - t) * right[u] / length for u in range(t, length))
            total -= log_choices[b, t] * returns
    loss = policy_loss(*map(jnp.asarray, (log_choices, logits, responses, mask)), 0.9)
    assert float(loss) == pytest.approx(total / 6, rel=1e-5)


def test_the_policy_loss_reaches_both_policies():
    module, variables, _ = made("iekt", IEKTConfig(embedding_dim=4))
    batch = students()

    def sown(params, key):
        rngs = {"dropout": key}
        return module.apply({"params": params}, batch, train=True, rngs=rngs, mutable=["losses"])[
            1
        ]["losses"]["policy"][0]

    gradient = jax.jit(jax.grad(sown))(variables["params"], jax.random.key(0))
    for policy in ("choose_cognition", "choose_acquisition"):
        assert np.abs(gradient[policy]["out"]["kernel"]).max() > 0


DIRECT = DKT2MultiConfig(embedding_dim=6, hidden_dim=4, horizons=3, head_dim=5, dropout_rate=0.0)


def direct_logit(p, state, question, concepts, ahead):
    v = [mean_rows(p["asked"]["concept"], concepts), p["asked"]["question"][question]]
    hidden = state @ p["from_state"]["kernel"] + p["from_state"]["bias"]
    hidden = hidden + np.concatenate(v) @ p["from_question"]["kernel"] + p["from_question"]["bias"]
    hidden = np.maximum(hidden + p["horizon"][min(ahead, 3)], 0)
    return (hidden @ p["head"]["kernel"] + p["head"]["bias"])[0]


def test_direct_prediction_and_its_loss():
    module, variables, p = made("dkt2_multi", DIRECT)
    batch = students()
    observed = np.array([0, 2, 1])
    logits = module.apply(variables, batch, jnp.asarray(observed), method="predict_ahead")
    one_step = module.apply(variables, batch)
    states = dkt_states(p, batch, 4, True)
    losses = []
    for b, t, q, concepts, r in steps_of(batch):
        ahead = t - observed[b] + 1
        expected = one_step[b, t]
        if ahead > 1:
            expected = direct_logit(p, states[b, observed[b]], q, concepts, ahead)
        assert float(logits[b, t]) == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
        for k in (1, 2, 3):
            if t - (k - 1) >= 0:
                state = states[b, t - (k - 1)]
                losses.append(log_loss(direct_logit(p, state, q, concepts, k), r))
    _, sown = module.apply(variables, batch, train=True, mutable=["losses"])
    assert float(sown["losses"]["direct"][0]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_direct_prediction_reads_only_observed_responses():
    module, variables, _ = made("dkt2_multi", DIRECT)
    batch, observed = students(), jnp.array([4, 0, STEPS])
    unseen = jnp.arange(STEPS) >= observed[:, None]
    changed = batch._replace(responses=jnp.where(unseen, 1 - batch.responses, batch.responses))
    run = jax.jit(lambda b: module.apply(variables, b, observed, method="predict_ahead"))
    np.testing.assert_array_equal(run(changed), run(batch))
