"""Measures against scikit-learn and by hand; methods on states whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from meco_made import LAYERS, example_set, model
from sklearn.metrics import brier_score_loss, roc_auc_score

from agents_jax.tools.calls import Call
from agents_jax.tools.meco import MecoConfig, agent_effect, evaluation
from agents_jax.tools.meco.collect import StateStore
from agents_jax.tools.meco.config import ContrastConfig
from agents_jax.tools.meco.contrast import WORDINGS, make_pairs
from agents_jax.tools.meco.study import (
    carry_over,
    contrast_readers,
    given_scores,
    held_out_pair_accuracy,
    study_set,
)


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 3.0]), st.booleans()), min_size=2,
             max_size=30)
)  # fmt: skip
def test_auroc_is_scikit_learns(cases):
    scores, labels = (np.array(column) for column in zip(*cases, strict=True))
    if labels.all() or not labels.any():
        assert math.isnan(evaluation.auroc(scores, labels))
    else:
        assert evaluation.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_folds_are_not_compared_with_one_another():
    labels = np.array([False, True, False, True])
    scores, folds = np.array([0.0, 1.0, 10.0, 11.0]), np.array([0, 0, 1, 1])
    assert evaluation.fold_auroc(scores, labels, folds) == 1.0
    assert evaluation.auroc(scores, labels) == 0.75


def test_calibration_by_hand():
    chances = np.array([0.1] * 10 + [0.9] * 10)
    labels = np.array([False] * 9 + [True] + [True] * 9 + [False])
    assert evaluation.calibration_error(chances, labels, bins=2) == pytest.approx(0)
    assert evaluation.calibration_error(1 - chances, labels, bins=2) == pytest.approx(0.8)
    assert evaluation.brier(chances, labels) == pytest.approx(brier_score_loss(labels, chances))


def test_platt_keeps_order_and_reaches_the_base_rate():
    rng = np.random.default_rng(0)
    labels = rng.random(400) < 0.3
    scores = 100 + 5 * labels + rng.standard_normal(400)
    chances = evaluation.platt(scores, labels)(scores)
    assert (np.argsort(chances) == np.argsort(scores)).all()
    assert chances.mean() == pytest.approx(labels.mean(), abs=0.01)
    assert evaluation.platt(scores[:3], np.ones(3, bool))(scores[:2]).tolist() == [1.0, 1.0]


def test_the_bootstrap_draws_whole_groups():
    values = np.array([0.0] * 50 + [1.0] * 50)
    wide = evaluation.bootstrap(lambda at: values[at].mean(), values, draws=200, seed=0)
    assert wide == (0.0, 1.0)  # two groups: all of one now and then
    narrow = evaluation.bootstrap(lambda at: values[at].mean(), np.arange(100), draws=200, seed=0)
    assert 0.35 < narrow[0] < 0.5 < narrow[1] < 0.65


def test_mcnemar_and_flips_by_hand():
    one = np.array([True, True, True, False, True, True])
    other = np.array([False, False, True, True, False, True])
    found = evaluation.mcnemar(one, other)
    assert (found["only_one"], found["only_other"]) == (3, 1)
    assert found["p"] == pytest.approx(2 * (1 + 4) / 16)
    assert evaluation.mcnemar(one, one)["p"] == 1.0
    yes = np.array([True, True, False, False, True])
    decided = np.array([False, False, True, False, True])
    needed = np.array([False, True, True, True, True])
    table = evaluation.flips(yes, decided, needed)
    assert table == {"yes_to_no": 2, "yes_to_no_right": 1, "no_to_yes": 1, "no_to_yes_right": 1,
                     "kept_yes": 1, "kept_no": 1}  # fmt: skip


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """States in which the label stands, as `meco_made.states_of` makes them."""
    config = MecoConfig(
        seeds=(0, 1), bootstrap=50, min_count=5, primary_layers=(-3, -2),
        contrast=ContrastConfig(max_tokens=3),
    )  # fmt: skip
    asked = model()
    store = StateStore(asked, tmp_path_factory.mktemp("states"), LAYERS)
    data = example_set(120)
    observed = store.observe(data.examples)
    pairs = make_pairs(example_set(10).examples, WORDINGS["pretend"], layers=LAYERS)
    states = {"pretend": store.contrast(pairs, "pretend")}
    readers = {seed: contrast_readers(states, 3, seed) for seed in config.seeds}
    more = {"verbalised": np.full(len(data), 0.5)}
    study = study_set(data, observed, readers, given_scores(observed, **more), config)
    return config, data, observed, readers, states, study


def test_probes_find_what_is_there_and_controls_do_not(studied):
    _, data, _, _, _, study = studied
    assert study.results["probe: logistic"].auroc > 0.97
    assert study.results["probe: mean difference"].accuracy > 0.9
    shuffled = study.results["probe: shuffled labels"]
    assert abs(shuffled.auroc - 0.5) < 0.3
    assert study.results["text:tfidf_query"].accuracy < 0.7
    assert study.results["always"].accuracy == study.results["never"].accuracy == 0.5
    assert study.results["naive"].accuracy == pytest.approx(np.mean(
        [(i % 3 != 0) == (i % 2 == 0) for i in range(len(data))]
    ))  # fmt: skip
    assert math.isnan(study.results["naive"].auroc)
    test = study.report["tests"]["probe: logistic against p_yes"]
    assert test["only_one"] > test["only_other"] and test["p"] < 1e-4


def test_a_reader_of_instructions_need_not_read_need(studied):
    """Here instructions stand in a dimension of their own: pairs are told apart, need is not."""
    _, _, _, _, states, study = studied
    assert (held_out_pair_accuracy(states["pretend"], 3, 0) == 1).all()
    assert study.results["meco"].auroc < 0.8
    chosen = study.results["meco"].details["chosen"]
    assert {c["layer"] for c in chosen} <= {-3, -2}
    assert study.results["meco"].flips is not None


def test_curves_by_layer_have_every_layer(studied):
    _, _, _, _, _, study = studied
    for name in ("meco", "probe: logistic"):
        for key in ("auroc", "accuracy"):
            assert study.by_layer[name][key].shape == (3,)
    assert study.report["methods"]["naive"]["auroc"] is None  # NaN is no JSON


def test_every_seed_divides_anew_and_the_first_gives_the_decisions(studied):
    _, data, _, _, _, study = studied
    for name, result in study.results.items():
        first = float(np.mean(study.outcomes[name].decided == data.labels))
        assert result.details["accuracy_by_seed"][0] == result.accuracy == first
        assert len(result.details["accuracy_by_seed"]) == 2


def test_thresholds_carry_over_to_a_set_that_is_alike(studied):
    config, data, observed, readers, _, study = studied
    found = carry_over(study, data, observed, readers[0], config)
    assert found["methods"]["probe: logistic"]["accuracy"] > 0.9
    assert found["methods"]["naive"]["auroc"] is None
    half = carry_over(study, data, observed, readers[0], config, source_places=range(60))
    assert half["fitted_on"] == 60 and half["examples"] == 120


def test_calls_that_are_saved_and_lost_are_counted():
    examples = example_set(6).examples  # even ones need a call
    calls = agent_effect.Calls(
        np.array([True, False, False, False, True, False]), np.full(6, 10), np.full(6, 5), 0
    )
    needed = np.array([e.needed for e in examples])
    picked = np.array([True, True, True, False, False, False])
    rows = {
        row["policy"]: row
        for row in agent_effect.compare(
            examples, calls, {"always": np.ones(6, bool), "oracle": needed, "some": picked},
            {"some": 7.0},
        )
    }  # fmt: skip
    assert rows["always"]["needless"] == 3 and rows["always"]["right_calls"] == 2
    assert rows["always"]["success"] == pytest.approx(2 / 6)
    assert rows["oracle"]["needless"] == 0 and rows["oracle"]["success"] == pytest.approx(5 / 6)
    assert rows["some"]["missed"] == 1 and rows["some"]["right_calls"] == 1
    assert rows["some"]["tokens_per_query"] == pytest.approx(7.0 + 3 * 15 / 6)


def test_recall_is_kept_by_a_threshold_from_the_other_folds():
    scores = np.linspace(0, 1, 40)
    needed = np.arange(40) % 2 == 0
    folds = np.arange(40) // 2 % 4
    all_kept = agent_effect.keeps_recall(scores, needed, folds, 1.0)
    assert all_kept[needed].mean() > 0.9
    fewer = agent_effect.keeps_recall(scores, needed, folds, 0.5)
    assert 0.35 < fewer[needed].mean() < 0.65 and fewer.sum() < all_kept.sum()


def test_forced_calls_are_judged_by_bfcl(tmp_path):
    import sys

    sys.path.insert(0, str(__import__("pathlib").Path(__file__).parents[1] / "bfcl"))
    from made import function, item

    from agents_jax.llm import Choice, ToolCall
    from agents_jax.tools.meco.examples import Example

    asked = item([function("f", ["a"], a="integer")], [{"f": {"a": [3]}}])
    one = Example(id="x", query="Please.", needed=True, tools=asked.functions, payload=asked)
    answers = [
        Choice("", "tool_calls", (ToolCall("f", '{"a": 3}'),)),
        Choice("", "tool_calls", (ToolCall("f", '{"a": 4}'),)),
        Choice("", "tool_calls", (ToolCall("f", '{"a": '),)),
    ]
    model_ = model(answers=answers, concurrency=1)
    calls = agent_effect.forced_calls(model_, [one] * 3)
    assert calls.right.tolist() == [True, False, False] and calls.unreadable == 1
    assert model_.asked[0].tool_choice["function"]["name"] == "f"
    assert Call("f", {"a": 3}).arguments == {"a": 3}
