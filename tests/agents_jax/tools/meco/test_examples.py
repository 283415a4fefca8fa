"""Roles that share nothing, prompts, and text features."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meco_made import example, example_set

from agents_jax.tools.meco import MecoError, embeddings, texts
from agents_jax.tools.meco.controls import CONTROLS, EMBEDDING_CONTROLS, fit_control
from agents_jax.tools.meco.evaluation import auroc
from agents_jax.tools.meco.examples import (
    ExampleSet,
    assign_folds,
    components,
    question_key,
    rotations,
)
from agents_jax.tools.meco.matching import matched
from agents_jax.tools.meco.prompts import messages, question
from pangu_jax.data.wheel import WheelError

LINKED = st.lists(
    st.tuples(st.booleans(), st.frozensets(st.integers(0, 12), max_size=2)),
    min_size=12, max_size=40,
)  # fmt: skip


@given(entries=LINKED, seed=st.integers(0, 5))
def test_what_hangs_together_stays_in_one_fold(entries, seed):
    examples = [example(i, needed, links=tuple(links)) for i, (needed, links) in enumerate(entries)]
    groups = components(examples)
    for i, one in enumerate(examples):
        for j, other in enumerate(examples):
            if set(one.links) & set(other.links):
                assert groups[i] == groups[j]
    if len(set(groups.tolist())) < 4:
        with pytest.raises(MecoError, match="independent group"):
            assign_folds(examples, 4, seed)
        return
    folds = assign_folds(examples, 4, seed)
    for group in set(groups.tolist()):
        assert len(set(folds[groups == group].tolist())) == 1
    np.testing.assert_array_equal(folds, assign_folds(examples, 4, seed))


def test_every_example_is_tested_once_and_roles_are_disjoint():
    data = example_set(40)
    roles = rotations(assign_folds(data.examples, 5, 0))
    tested = np.concatenate([r.test for r in roles])
    assert sorted(tested.tolist()) == list(range(40))
    for r in roles:
        parts = [set(part.tolist()) for part in (r.fit, r.validation, r.test)]
        assert sum(map(len, parts)) == 40 and len(set.union(*parts)) == 40
        assert all(data.labels[r.test].mean() == 0.5 for r in roles)


def test_questions_asked_twice_hang_together():
    twice = [example(0, True, query="What is it?"), example(1, False, query="what  is IT")]
    assert question_key("A-b, c!") == "a b c"
    assert len(set(components(twice).tolist())) == 1


def test_ids_are_unique_and_folds_enough():
    with pytest.raises(MecoError, match="'e1' twice"):
        ExampleSet("x", "", (example(1, True), example(1, False)))
    with pytest.raises(MecoError, match="folds=2"):
        assign_folds(example_set(10).examples, 2, 0)


def test_a_query_in_braces_is_no_field():
    asked = question(example(0, True, query="{tools} and {query}", template="tools"))
    assert "{tools} and {query}" in asked and "none" in asked


def test_the_instruction_stands_first_and_history_before_the_question():
    history = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"})
    chat = messages(example(3, True, history=history), instruction="Be aware.")
    assert [m["role"] for m in chat] == ["system", "user", "assistant", "user"]
    assert chat[-1]["content"].startswith("Be aware.\n")
    assert "Yes or No first" in chat[-1]["content"]
    number = messages(example(3, True), confidence=True)[-1]["content"]
    assert "0 to 100" in number and "Yes or No first" not in number
    with pytest.raises(MecoError, match="template 'x'"):
        question(example(0, True, template="x"))


TOOL = {
    "name": "get_weatherForecast",
    "description": "Forecasts rain.",
    "parameters": {"properties": {"city": {"description": "Name of the city."}}},
}


def test_overlap_counts_words_of_names_and_descriptions():
    assert {"weather", "forecast", "rain", "city"} <= texts.words(texts.tool_text([TOOL]))
    assert texts.overlap("Will it rain in the city?", [TOOL]) == 1.0
    assert texts.overlap("Sing a song", [TOOL]) == 0.0
    assert texts.overlap("the of", [TOOL]) == texts.overlap("rain", []) == 0.0


def test_controls_see_what_they_should():
    """Labels that the text gives away in one way each."""
    rng = np.random.default_rng(0)
    near, far = "rain in the city", "a song of joy"
    cases = {
        "overlap": lambda n: {"query": near if n else far, "tools": (TOOL,)},
        "length": lambda n: {"query": "x" * (20 if n else 4)},
        "tfidf_query": lambda n: {"query": f"{'book' if n else 'sing'} {rng.integers(99)}"},
    }
    for name, make in cases.items():
        data = [example(i, i % 2 == 0, **make(i % 2 == 0)) for i in range(40)]
        scores = fit_control(name, data[:20])(data[20:])
        assert auroc(scores, np.array([e.needed for e in data[20:]])) == 1.0
    for name in CONTROLS:  # texts that say nothing
        data = example_set(40).examples
        scores = fit_control(name, data[:20])(data[20:])
        assert scores.shape == (20,) and np.isfinite(scores).all()
    for few in (1, 2):  # examples of one label
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = fit_control("combined", [*data[: 2 * few], *data[1:20:2]])
        assert np.isfinite(fitted(data[20:])).all()
    with pytest.raises(MecoError, match="control 'x'.*overlap"):
        fit_control("x", data)
    with pytest.raises(MecoError, match="one label"):
        fit_control("length", data[::2])


def test_embeddings_know_what_words_mean():
    """Animals against vehicles, no word of which stands in both halves."""
    try:
        near = embeddings.embed(["a dog barks", "a puppy", "the invoice is overdue", ""])
    except WheelError as error:
        pytest.skip(f"the wordllama wheel cannot be had: {error}")
    assert near.shape == (4, 256) and near.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(near[:3], axis=1), 1, rtol=1e-5)
    assert near[0] @ near[1] > near[0] @ near[2] + 0.2 and not near[3].any()
    animals = "dog cat horse cow sheep goat lion tiger wolf bear fox mouse".split()
    vehicles = "car bus train plane truck boat ship tram van bicycle lorry ferry".split()
    data = [
        example(i, i % 2 == 0, query=f"I saw one {(animals if i % 2 == 0 else vehicles)[i // 2]}")
        for i in range(24)
    ]
    needed = np.array([e.needed for e in data[12:]])
    for name in EMBEDDING_CONTROLS:
        scores = fit_control(name, data[:12])(data[12:])
        assert auroc(scores, needed) > 0.9, name
    assert auroc(fit_control("tfidf_query", data[:12])(data[12:]), needed) == 0.5


def test_matching_takes_what_text_gives_away_out_of_the_set():
    """Length gives half of the labels away; the rest is pairs of like length."""
    rng = np.random.default_rng(1)
    made = []
    for i in range(240):
        needed = i % 2 == 0
        alike = i % 4 < 2
        middle = 60 if alike else (90 if needed else 30)
        words = int(rng.normal(middle, 10)) // 5
        text = " ".join(rng.choice(["red", "blue", "green", "grey"], max(words, 1)))
        made.append(example(i, needed, query=f"{i} {text}"))
    data = ExampleSet("made", "", tuple(made))

    def control(data):
        length = np.array([len(e.query) for e in data.examples])
        return auroc(length, data.labels)

    found = matched(data, caliper=0.2)
    assert control(data) > 0.7 and abs(control(found) - 0.5) < 0.1
    assert found.labels.mean() == 0.5 and 60 <= len(found) < 240
    with pytest.raises(MecoError, match="caliper=1e-09"):
        matched(data, caliper=1e-9)
