"""Simulated students: known chances, seeds, mastery, and one answer whichever way it is asked."""

import pathlib
import sys

import jax
import numpy as np
import polars
import pytest

from recsys_jax.tracing.evaluation.student import StudentSimulator, simulate

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import tracing_toys as toys  # noqa: E402

# Question 4 has two concepts; concept 3 has no question.
CONCEPTS = np.array([[0, 0], [1, 0], [1, 0], [2, 0], [1, 2], [4, 0]])
MODEL = toys.predictor(toys.mean_so_far)


def chance(questions, responses):
    return 1 / (1 + np.exp(-toys.mean_so_far(np.array([questions]), np.array([responses]))[0]))


def simulator(**options):
    return StudentSimulator(MODEL.logits, CONCEPTS, **({"max_steps": 8} | options))


def roller(batch, observed, feedback, key):
    """Logits and fed responses of the toy, from the responses that reproduce themselves."""
    q, true = np.asarray(batch.questions), np.asarray(batch.responses, float)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    fed, out = np.zeros(q.shape), np.zeros(q.shape)
    for t in range(q.shape[1]):
        out[:, t] = toys.mean_so_far(q[:, : t + 1], fed[:, :t])
        p = 1 / (1 + np.exp(-out[:, t]))
        own = rng.random(len(q)) < p if feedback == "sample" else p >= 0.5
        fed[:, t] = np.where(observed[:, t], true[:, t], own)
    return out, fed.astype(int)


def test_steps_follow_the_model():
    student = simulator()
    state = student.reset([(1, 1), (3, 0)], seed=7)
    assert state.questions.tolist() == [1, 3] and state.responses.tolist() == [1, 0]
    asked, given = [1, 3], [1, 0]
    for question in (2, 5, 4, 4):
        expected = chance([*asked, question], given)
        assert student.probability(question) == pytest.approx(expected, rel=1e-6)
        response, p = student.step(question)
        assert p == pytest.approx(expected, rel=1e-6) and response in (0, 1)
        asked, given = [*asked, question], [*given, response]
    assert student.state.questions.tolist() == asked
    assert student.state.responses.tolist() == given


def test_seeds_and_states_repeat_a_student():
    student = simulator(max_steps=40)
    path = [1, 2, 3, 4, 5] * 6
    student.reset(seed=3)
    first = [student.step(q) for q in path]
    kept = student.state
    second = [student.step(q) for q in (1, 2)]
    student.reset(seed=3)
    assert [student.step(q) for q in path] == first
    student.reset(seed=4)
    assert [student.step(q) for q in path] != first
    # A state is not changed by later steps, and it is enough to go on from.
    assert len(kept) == 30 and len(student.reset(kept)) == 30
    assert student.probability(1) == pytest.approx(second[0][1])
    # Without a seed the stream runs on: students differ.
    runs = set()
    for _ in range(5):
        student.reset()
        runs.add(tuple(student.step(q)[0] for q in path))
    assert len(runs) > 1


def test_responses_have_their_probability():
    student = simulator(max_steps=1)
    answers = []
    for _ in range(600):
        student.reset()
        answers.append(student.step(2)[0])
    p = chance([2], [])
    assert np.mean(answers) == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / 600))
    always = simulator(answer="threshold")
    assert always.step(2)[0] == int(p >= 0.5)


@pytest.mark.parametrize("probes", [1, 8])
def test_mastery_by_hand(probes):
    student = simulator(probes_per_concept=probes)
    student.reset([(1, 1), (2, 1)])
    found = student.mastery()
    now = {q: chance([1, 2, q], [1, 1]) for q in range(1, 6)}
    assert np.isnan(found[[0, 3]]).all() and len(found) == 5
    assert found[4] == pytest.approx(now[5])
    if probes == 8:
        assert found[1] == pytest.approx((now[1] + now[2] + now[4]) / 3)
        assert found[2] == pytest.approx((now[3] + now[4]) / 2)
    else:
        assert any(found[1] == pytest.approx(now[q]) for q in (1, 2, 4))
    assert len(student.state) == 2  # Estimating is not asking.
    better = found.copy()
    student.reset([(1, 0), (2, 0)])
    np.testing.assert_array_less(student.mastery()[[1, 2, 4]], better[[1, 2, 4]])


def test_a_list_of_questions_is_answered_as_step_by_step():
    histories = [[(1, 1), (2, 0), (3, 1)], []]
    found = simulate(
        roller, [[4, 5], [1, 2, 3]], CONCEPTS, histories=histories, feedback="threshold"
    )
    assert found.questions.tolist() == [[4, 5, 0], [1, 2, 3]]
    for i, asked in enumerate([[4, 5], [1, 2, 3]]):
        student = simulator(answer="threshold")
        student.reset(histories[i])
        steps = [student.step(q) for q in asked]
        assert found.answers[0, i, : len(asked)].tolist() == [r for r, _ in steps]
        np.testing.assert_allclose(
            found.probability[i, : len(asked)], [p for _, p in steps], rtol=1e-6
        )


def test_samples_average_and_files(tmp_path):
    found = simulate(roller, [[4, 5, 1]] * 3 + [[2]], CONCEPTS, samples=400)
    assert found.answers.shape == (400, 4, 3)
    np.testing.assert_allclose(found.answers.mean(0), found.probability, atol=0.11)
    assert found.answers[:, 3, 1:].max() == 0 and found.probability[3, 1:].max() == 0
    few = simulate(roller, [[4, 5, 1]] * 3 + [[2]], CONCEPTS, samples=2)
    for name, read in (("a.csv", polars.read_csv), ("a.parquet", polars.read_parquet)):
        assert few.write(tmp_path / name, student_ids=["x", "y", "z", "w"]) == 10
        frame = read(tmp_path / name)
        assert frame.columns == "student place question probability answer_1 answer_2".split()
        assert frame["student"].to_list() == ["x"] * 3 + ["y"] * 3 + ["z"] * 3 + ["w"]
        assert frame["question"].to_list() == [4, 5, 1] * 3 + [2]
        assert frame["answer_2"].to_list()[:3] == few.answers[1, 0].tolist()
    with pytest.raises(ValueError, match="must end in"):
        few.write(tmp_path / "a.txt")


def test_a_real_model_and_its_roll_out():
    """The environment (whole passes) and the list (the shared roll-out) agree on a Flax model."""
    flax = pytest.importorskip("flax.linen")
    import jax.numpy as jnp

    from recsys_jax.tracing.evaluation.protocols import predictor_of
    from recsys_jax.tracing.evaluation.student import roller_of

    class Shared(flax.Module):
        @flax.compact
        def __call__(self, batch, *, train: bool = False):
            e = flax.Embed(6, 4)(batch.questions)
            before = jnp.cumsum(batch.responses, 1) - batch.responses
            return flax.Dense(1)(jnp.concatenate([e, before[..., None]], -1))[..., 0]

    model = Shared()
    batch = toys.batch_of([1, 0, 1])
    variables = model.init(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    student = StudentSimulator(
        predictor_of(model, variables).logits, CONCEPTS, max_steps=8, answer="threshold"
    )
    student.reset([(1, 1), (2, 1)])
    steps = [student.step(q) for q in (5, 4, 1)]
    found = simulate(
        roller_of(model, variables), [[5, 4, 1]], CONCEPTS, histories=[[(1, 1), (2, 1)]],
        feedback="threshold",
    )  # fmt: skip
    assert found.answers[0, 0].tolist() == [r for r, _ in steps]
    np.testing.assert_allclose(found.probability[0], [p for _, p in steps], rtol=1e-5)
    assert predictor_of(model, variables).feedback == ("threshold", "sample")


def test_mistakes_are_named():
    student = simulator(max_steps=2)
    with pytest.raises(
        ValueError, match="Question 6 of student 0 is unknown; the model knows 1 to 5"
    ):
        student.step(6)
    with pytest.raises(ValueError, match="unknown"):
        student.reset([(0, 1)])
    with pytest.raises(ValueError, match="other than 0 or 1"):
        student.reset([(1, 2)])
    with pytest.raises(ValueError, match="max_steps=2"):
        student.reset([(1, 1)] * 3)
    assert len(student.state) == 0  # What was refused left no trace.
    student.step(1), student.step(2)
    with pytest.raises(ValueError, match="answered 2 questions"):
        student.step(3)
    with pytest.raises(ValueError, match="allowed are sample, threshold"):
        simulator(answer="guess")
    with pytest.raises(ValueError, match="row 0 for padding"):
        StudentSimulator(MODEL.logits, np.zeros(3))
    with pytest.raises(ValueError, match="2 histories for 1"):
        simulate(roller, [[1]], CONCEPTS, histories=[[], []])
    with pytest.raises(ValueError, match="1 with 'threshold'"):
        simulate(roller, [[1]], CONCEPTS, feedback="threshold", samples=2)
    with pytest.raises(ValueError, match="max_steps=3"):
        simulate(roller, [[1, 2, 3, 4]], CONCEPTS, max_steps=3)
