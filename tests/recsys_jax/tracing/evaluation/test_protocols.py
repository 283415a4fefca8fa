"""What is observed and scored, by hand and on models with known answers."""

import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.evaluation import protocols
from recsys_jax.tracing.evaluation.protocols import SINGLE_STEP, Predictor, Protocol

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tracing_toys as toys  # noqa: E402

KEY = jax.random.key(3)
ALL = protocols.standard_protocols(rollouts=2)


def collect(model, batch, protocol, students=None):
    students = np.arange(len(batch.mask)) if students is None else students
    return protocols.collect(model, [(students, batch)], [protocol], KEY)[protocol.name]


def masks(lengths, protocol, steps=6):
    mask = np.arange(steps) < np.array(lengths)[:, None]
    observed, scored, horizon = protocols.protocol_masks(mask, protocol)
    draw = lambda m: ["".join(".x"[int(v)] for v in row) for row in m]  # noqa: E731
    return draw(observed), draw(scored), horizon


def test_masks_by_hand():
    half = Protocol(0.5, "threshold")
    observed, scored, horizon = masks([6, 5, 3, 2, 1, 0], half)
    assert observed == ["xxx...", "xx....", "x.....", "x.....", "......", "......"]
    assert scored == ["...xxx", "..xxx.", ".xx...", ".x....", "......", "......"]
    assert horizon[0].tolist() == [-2, -1, 0, 1, 2, 3] and horizon[1, 2] == 1
    # A prefix is never empty and never everything.
    assert masks([6, 2], Protocol(0.1, "sample"))[0] == ["x.....", "x....."]
    assert masks([6, 2], Protocol(0.9, "sample"))[0] == ["xxxxx.", "x....."]
    observed, scored, horizon = masks([6, 1], SINGLE_STEP)
    assert observed == ["xxxxxx", "x....."] and scored == [".xxxxx", "......"]
    assert horizon[0].tolist() == [1, 2, 3, 4, 5, 6]
    observed, scored, _ = masks([4], Protocol(0.0, "threshold"))
    assert observed == ["......"] and scored == ["xxxx.."]
    # Single steps after a prefix: the model reads all, the same steps are scored as in open loop.
    observed, scored, _ = masks([6], Protocol(0.5))
    assert observed == ["xxxxxx"] and scored == ["...xxx"]


@example(100, 0.29)  # 28.999... in floating point.
@given(st.integers(2, 400), st.sampled_from([0.2, 0.29, 0.5, 0.7, 0.8]))
def test_split_point_is_the_floor(length, rho):
    exact = length * round(rho * 100) // 100
    found = protocols.split_points(np.ones((1, length), bool), rho)[0]
    assert found == min(max(exact, 1), length - 1)


def test_copying_the_last_answer():
    """Single-step it errs where the answer changes; in open loop it repeats the last one seen."""
    model = toys.predictor(toys.copy_last)
    batch = toys.batch_of([0, 1, 1, 0, 0, 1], [1, 1, 0, 1])
    single = collect(model, batch, SINGLE_STEP)
    assert (single.probability > 0.5).tolist() == [0, 1, 1, 0, 0, 1, 1, 0]
    assert single.response.tolist() == [1, 1, 0, 0, 1, 1, 0, 1]
    free = collect(model, batch, Protocol(0.0, "threshold"))
    assert (free.probability > 0.5).all() and len(free) == 10  # It begins with 'right'.
    half = collect(model, batch, Protocol(0.5, "threshold"))
    assert (half.probability > 0.5).tolist() == [1, 1, 1, 1, 1]  # Last seen: 1 and 1.
    assert half.response.tolist() == [0, 0, 1, 0, 1] and half.horizon.tolist() == [1, 2, 3, 1, 2]
    fifth = collect(model, batch, Protocol(0.2, "threshold"))
    assert (fifth.probability > 0.5).tolist() == [0] * 5 + [1] * 3
    # Fed with probabilities, the log-odds shrink: 4 (2 sigmoid(4) - 1) and so on.
    soft = collect(model, batch, Protocol(0.5, "expected")).probability[:2]
    p = 1 / (1 + np.exp(-4.0))
    np.testing.assert_allclose(soft, [p, 1 / (1 + np.exp(-4 * (2 * p - 1)))], rtol=1e-6)


def test_non_accumulative_skips_what_lies_between():
    """The model counts the questions before: after a prefix alone it always counts the prefix."""
    model = toys.predictor(lambda q, fed: 0.1 * fed.shape[1] + 0.01 * q[:, -1] + fed.sum(1))
    batch = toys.batch_of([1, 1, 0, 0, 1, 0], [1, 0, 0, 1])
    found = collect(model, batch, Protocol(0.5, "nothing"))
    logit = np.log(found.probability) - np.log1p(-found.probability)
    expected = [0.3 + 0.04 + 2, 0.3 + 0.05 + 2, 0.3 + 0.06 + 2, 0.2 + 0.03 + 1, 0.2 + 0.04 + 1]
    np.testing.assert_allclose(logit, expected, atol=1e-5)
    # The first step after the prefix is the same in all of them.
    for after in ("true", "threshold", "expected", "sample"):
        other = collect(model, batch, Protocol(0.5, after))
        first = other.horizon == 1
        np.testing.assert_array_equal(other.probability[first], found.probability[first])


def test_sampled_probabilities_are_averaged():
    """A copier that is unsure: its chance of 'right' two steps on is known."""
    step = lambda q, fed: 1.0 * (2 * fed[:, -1] - 1) if fed.shape[1] else np.zeros(len(q))  # noqa: E731
    model = toys.predictor(step)
    batch = toys.batch_of(*[[1, 0, 1]] * 500)
    found = collect(model, batch, Protocol(0.34, "sample", rollouts=8)).probability.reshape(500, 2)
    p = 1 / (1 + np.exp(-1))
    np.testing.assert_allclose(found[:, 0], p, rtol=1e-6)
    # 4,000 draws: the standard error of the mean is .0033.
    assert found[:, 1].mean() == pytest.approx(p * p + (1 - p) * (1 - p), abs=0.015)
    assert 0 < found[:, 1].std() < 0.1  # Averaged over 8, but not constant.


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from(ALL))
def test_unobserved_answers_are_labels_only(seed, protocol):
    rng = np.random.default_rng(seed)
    batch = toys.random_batch(rng)
    model = toys.predictor(toys.mean_so_far)
    observed, scored, _ = protocols.protocol_masks(batch.mask, protocol)
    other = batch._replace(
        responses=np.where(batch.mask & ~observed, 1 - batch.responses, batch.responses)
    )
    a, b = collect(model, batch, protocol), collect(model, other, protocol)
    np.testing.assert_array_equal(a.probability, b.probability)
    np.testing.assert_array_equal(a.response, batch.responses[scored])
    np.testing.assert_array_equal(b.response, other.responses[scored])


def test_a_model_that_peeks_gets_nothing_to_see():
    """The batch handed to a roll-out holds no unobserved answer."""
    peeking = Predictor(
        lambda batch: 9.0 * (2 * batch.responses - 1.0),
        lambda batch, observed, feedback, key: 9.0 * (2 * batch.responses - 1.0),
    )
    batch = toys.random_batch(np.random.default_rng(0))
    for protocol in ALL:
        if protocol.open_loop:
            assert collect(peeking, batch, protocol).probability.max() < 0.01


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 10**6),
    st.sampled_from([p for p in ALL if p.after != "sample"]),
    st.integers(1, 5),
)
def test_padding_and_order_change_nothing(seed, protocol, extra):
    rng = np.random.default_rng(seed)
    batch = toys.random_batch(rng)
    model = toys.predictor(toys.mean_so_far)
    expected = collect(model, batch, protocol)
    order = rng.permutation(len(batch.mask))
    wide = [np.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)) for x in batch]
    found = collect(model, Batch(*(x[order] for x in wide)), protocol, students=order)
    back = np.lexsort([found.step, found.student])
    for name in ("student", "step", "question", "response", "horizon"):
        np.testing.assert_array_equal(getattr(found, name)[back], getattr(expected, name))
    np.testing.assert_allclose(found.probability[back], expected.probability, rtol=1e-6)


def test_teacher_forcing_runs_once_for_all_prefixes():
    calls = []
    model = Predictor(lambda batch: calls.append(1) or np.zeros(batch.mask.shape))
    batch = toys.batch_of([1, 0, 1, 0], [1, 1])
    found = protocols.collect(
        model, [(np.arange(2), batch)], [SINGLE_STEP, Protocol(0.2), Protocol(0.5)], KEY
    )
    assert len(calls) == 1
    assert [len(rows) for rows in found.values()] == [4, 4, 3]


def test_known_probabilities_and_the_data_part_s_batches():
    """A table of probabilities by row of a log gives the rows that a model with them would."""

    class Item(NamedTuple):
        batch: Batch
        students: np.ndarray
        rows: np.ndarray

    batch = toys.batch_of([1, 0, 1], [0, 1], [])
    rows = np.array([[4, 5, 6], [0, 1, -1], [-1, -1, -1]])
    item = Item(batch, np.array([7, 3, -1]), rows)
    table = np.array([0.1, 0.2, np.nan, np.nan, 0.5, 0.6, 0.7])
    given = protocols.collect_given([item], table, SINGLE_STEP)
    assert given.student.tolist() == [7, 7, 3]  # The row that only fills up has no step.
    np.testing.assert_allclose(given.probability, [0.6, 0.7, 0.2])
    p = np.where(batch.mask, np.nan_to_num(table[rows], nan=0.5), 0.5)
    model = Predictor(lambda batch: np.log(p) - np.log1p(-p))
    same = protocols.collect(model, [item], [SINGLE_STEP], KEY)["single-step"]
    np.testing.assert_allclose(same.probability, given.probability, rtol=1e-6)
    assert same.fingerprint() == given.fingerprint()


def test_names_are_read_back():
    for protocol in ALL:
        assert protocols.parse_protocol(protocol.name) == protocol
    assert len({p.name for p in ALL}) == len(ALL) == 19


@pytest.mark.parametrize(
    "name",
    ["open loop, single-step", "open loop, prefix only", "prefix 0, threshold", "threshold", "x"]
    + ["prefix 0.5", "single-step x3", "open loop, threshold x2", "prefix 0.5, sample x1"],
)
def test_other_names_are_refused(name):
    with pytest.raises(ValueError):
        protocols.parse_protocol(name)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(prefix=1.0), "below 1"),
        (dict(after="guess"), "allowed are true"),
        (dict(after="nothing"), "observed prefix"),
        (dict(after="threshold", rollouts=2), "after='sample'"),
        (dict(first=-1), "at least 0"),
    ],
)
def test_protocols_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        Protocol(**options)


def test_models_without_what_is_asked_for():
    batch = toys.batch_of([1, 0, 1])
    plain = Predictor(lambda batch: np.zeros(batch.mask.shape))
    with pytest.raises(ValueError, match="has no roll-out"):
        collect(plain, batch, Protocol(0.5, "threshold"))
    hard = Predictor(plain.logits, lambda b, o, f, k: np.zeros(b.mask.shape), ("threshold",))
    with pytest.raises(ValueError, match="takes threshold"):
        collect(hard, batch, Protocol(0.5, "expected"))
    with pytest.raises(ValueError, match="logits \\(3,\\)"):
        collect(Predictor(lambda batch: np.zeros(3)), batch, SINGLE_STEP)
    with pytest.raises(ValueError, match="must differ"):
        protocols.collect(plain, [], [SINGLE_STEP, SINGLE_STEP], KEY)
