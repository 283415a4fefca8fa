"""Thresholds against exhaustive search."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_jax.tools.meco import DualThreshold, MecoError, fit_dual, fit_threshold

CASES = st.lists(
    st.tuples(st.sampled_from([-1.5, -1.0, 0.0, 0.25, 2.0, 7.0]), st.booleans(), st.booleans()),
    min_size=1, max_size=9,
)  # fmt: skip


def brute_force(scores, yes, needed, orientation):
    """Best accuracy over all threshold pairs, and the fewest flips that reach it."""
    values = sorted(set(scores))
    cuts = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(values)), math.inf]
    best = None
    for l_yes, l_no in itertools.product(cuts, cuts):
        flips = right = 0
        for s, says, label in zip(scores, yes, needed, strict=True):
            if says:
                call = not s < l_yes
            else:
                call = s > l_no if orientation == "B" else s < l_no
            flips += call != says
            right += call == label
        if best is None or (right, -flips) > best:
            best = (right, -flips)
    return best


@pytest.mark.parametrize("orientation", ["A", "B"])
@given(cases=CASES)
def test_dual_thresholds_are_the_best_there_are_and_turn_fewest(orientation, cases):
    scores, yes, needed = (np.array(column) for column in zip(*cases, strict=True))
    rule = fit_dual(scores, yes, needed, orientation=orientation, min_count=1)
    decided = rule.decide(scores, yes)
    right, flips = brute_force(scores.tolist(), yes, needed, orientation)
    assert int((decided == needed).sum()) == right
    assert int((decided != yes).sum()) == -flips
    assert rule.validation_accuracy == pytest.approx(right / len(cases))


@given(cases=CASES, shift=st.floats(-50, 50), scale=st.floats(0.1, 20))
def test_decisions_do_not_depend_on_the_scale_of_scores(cases, shift, scale):
    scores, yes, needed = (np.array(column) for column in zip(*cases, strict=True))
    moved = scores * scale + shift
    one = fit_dual(scores, yes, needed, min_count=1).decide(scores, yes)
    other = fit_dual(moved, yes, needed, min_count=1).decide(moved, yes)
    np.testing.assert_array_equal(one, other)


def test_rare_answers_are_not_turned():
    scores = np.array([0.0, 1.0, 2.0, 3.0])
    yes = np.array([True, True, True, False])
    needed = np.array([False, False, True, True])
    rule = fit_dual(scores, yes, needed, min_count=2)
    assert rule.l_yes == 1.5 and rule.l_no == math.inf
    untouched = fit_dual(scores, yes, needed, min_count=4)
    assert (untouched.l_yes, untouched.l_no) == (-math.inf, math.inf)
    other = fit_dual(scores, yes, needed, orientation="A", min_count=4)
    np.testing.assert_array_equal(other.decide(scores, yes), yes)


def test_the_two_orientations_differ_for_no_alone():
    scores, yes = np.array([0.0, 2.0, 0.0, 2.0]), np.array([True, True, False, False])
    up = DualThreshold(l_yes=1.0, l_no=1.0, orientation="B").decide(scores, yes)
    down = DualThreshold(l_yes=1.0, l_no=1.0, orientation="A").decide(scores, yes)
    np.testing.assert_array_equal(up, [False, True, False, True])
    np.testing.assert_array_equal(down, [False, True, True, False])


@given(cases=CASES)
def test_single_threshold_is_the_best_there_is(cases):
    scores, _, needed = (np.array(column) for column in zip(*cases, strict=True))
    rule = fit_threshold(scores, needed)
    values = sorted(set(scores.tolist()))
    cuts = [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(values)), math.inf]
    best = max(np.mean((scores > cut) == needed) for cut in cuts)
    assert np.mean(rule.decide(scores) == needed) == pytest.approx(best)


def test_neighbouring_floats_are_told_apart():
    low = 1.0
    high = np.nextafter(low, 2)
    rule = fit_dual(np.array([low, high]), np.array([True, True]), np.array([False, True]),
                    min_count=1)  # fmt: skip
    np.testing.assert_array_equal(rule.decide([low, high], [True, True]), [False, True])


@pytest.mark.parametrize(
    "scores, says, match",
    [([0.0, math.nan], [True, True], "finite"), ([0.0], [True, False], "equally many"),
     ([], [], "at least one")],
)  # fmt: skip
def test_what_cannot_be_fitted_is_named(scores, says, match):
    with pytest.raises(MecoError, match=match):
        fit_dual(np.array(scores), np.array(says, bool), np.array(says, bool))


def test_unknown_orientation_is_named():
    with pytest.raises(MecoError, match="orientation='C'.*A, B"):
        DualThreshold(orientation="C")
