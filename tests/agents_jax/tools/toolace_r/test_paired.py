"""Paired comparisons: McNemar's test, the interval of the difference, the verdict."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents_jax.tools.toolace_r.paired import compare

pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_the_test_is_the_binomial_one_on_discordant_pairs(pairs):
    found = compare(*zip(*pairs, strict=True))
    gained = sum(b > a for a, b in pairs)
    lost = sum(a > b for a, b in pairs)
    n = gained + lost
    # Two-sided at one half: twice the smaller tail, by counting.
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    assert (found.gained, found.lost) == (gained, lost)
    assert found.p_value == pytest.approx(min(1.0, 2 * tail))
    assert found.difference == pytest.approx(np.mean([b - a for a, b in np.array(pairs, int)]))
    assert -1 <= found.low <= found.high <= 1


@given(pairs)
@settings(max_examples=50, deadline=None)
def test_turned_round_the_difference_changes_its_sign(pairs):
    first, second = zip(*pairs, strict=True)
    one, other = compare(first, second), compare(second, first)
    assert one.p_value == pytest.approx(other.p_value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def made(both, gained, lost, neither):
    first = [True] * both + [False] * gained + [True] * lost + [False] * neither
    second = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return compare(first, second)


def test_the_published_form_of_the_interval():
    """By hand, 5 gained and 1 lost of 48: (6 - 2) / 50 -+ 1.96 sqrt((8 / 50 - .08^2) / 50)."""
    found = made(30, 5, 1, 12)
    half = 1.959964 * math.sqrt((0.16 - 0.08**2) / 50)
    assert (found.low, found.high) == pytest.approx((0.08 - half, 0.08 + half), abs=1e-6)


def test_verdicts():
    assert made(100, 12, 1, 87).verdict == "different"
    assert made(150, 3, 2, 145).verdict == "no difference"
    assert made(10, 2, 1, 7).verdict == "undecided"
    assert made(50, 0, 0, 150).verdict == "no difference"


@given(st.integers(40, 80))
@settings(max_examples=10, deadline=None)
def test_the_interval_covers_the_truth_as_often_as_it_says(n):
    """Simulated: gained with probability .15, lost with .05."""
    rng = np.random.default_rng(n)
    covered = 0
    for counts in rng.multinomial(n, [0.15, 0.05, 0.8], 250):
        found = made(0, int(counts[0]), int(counts[1]), int(counts[2]))
        covered += found.low <= 0.1 <= found.high
    assert covered / 250 > 0.9


def test_answers_that_cannot_be_paired():
    with pytest.raises(ValueError, match="2 and 1 answers"):
        compare([True, False], [True])
    with pytest.raises(ValueError, match="0 and 0"):
        compare([], [])
