"""Mixtures: weights, interleaving of rows, quality-weighted sampling, curriculum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pangu_jax.data.text import DOMAINS, PANGU_ULTRA_WEIGHTS, Mixture, TextDataError
from pangu_jax.data.text.mixture import RowSchedule, epoch_order, selected_documents

BOTH = {"english": 0.5, "code": 0.5}


def order(quality, difficulty, mixture, epoch=0, seed=0, domain="code"):
    return epoch_order(
        np.asarray(quality, np.float32), np.asarray(difficulty, np.float32), mixture, domain, seed,
        epoch,
    )  # fmt: skip


def test_the_papers_tables_sum_to_one_and_use_known_domains():
    assert set(PANGU_ULTRA_WEIGHTS) == {"general", "reasoning", "annealing"}
    for weights in PANGU_ULTRA_WEIGHTS.values():
        assert set(weights) == set(DOMAINS)
        Mixture(weights)
    assert PANGU_ULTRA_WEIGHTS["reasoning"]["math"] + PANGU_ULTRA_WEIGHTS["reasoning"][
        "code"
    ] == pytest.approx(0.65)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_rows_of_every_domain_in_order_without_gaps(parts):
    weights = np.array(parts) / sum(parts)
    schedule = RowSchedule(weights, 1 << 40)
    seen = np.zeros(len(parts), np.int64)
    for row in range(700):
        domain, index = schedule[row]
        assert index == seen[domain]
        seen[domain] += 1
    assert schedule.rows_before(700).tolist() == seen.tolist()
    # Never further from the wanted count than one row per domain.
    assert np.all(np.abs(seen - 700 * weights) <= 1 + len(parts))
    for periods in (1, 3):
        counts = schedule.rows_before(10_000 * periods)
        assert np.all(np.abs(counts - 10_000 * periods * weights) <= periods)


def test_a_tiny_weight_is_not_lost():
    schedule = RowSchedule([1 - 1e-7, 1e-7], 1 << 40)
    assert schedule.rows_before(10_000).tolist() == [9_999, 1]


def test_without_quality_weighting_every_document_comes_once():
    mixture = Mixture(BOTH)
    first, second = (order([0.1] * 50, [0] * 50, mixture, epoch) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first.tolist() != second.tolist()
    assert first.tolist() == order([0.1] * 50, [0] * 50, mixture).tolist()
    assert first.tolist() != order([0.1] * 50, [0] * 50, mixture, domain="english").tolist()


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_documents_come_in_proportion_to_their_quality(power):
    quality = np.array([0.0, 0.1, 0.2, 0.4, 0.8, 1.0] * 5)
    mixture = Mixture(BOTH, quality_power=power, quality_floor=0.1)
    counts = np.zeros(30)
    for epoch in range(400):
        chosen = order(quality, np.zeros(30), mixture, epoch)
        assert len(chosen) == 30
        counts += np.bincount(chosen, minlength=30)
    weight = np.maximum(quality, 0.1) ** power
    want = 400 * 30 * weight / weight.sum()
    # Systematic resampling: each epoch gives floor or ceil, so the deviation is below 0.5 an epoch.
    assert np.all(np.abs(counts - want) < 4 * 0.5 * np.sqrt(400))


def test_curriculum_goes_from_simple_to_complex():
    difficulty = np.random.default_rng(0).permutation(200) / 200
    exact = Mixture(BOTH, curriculum=("code",), curriculum_noise=0.0)
    assert np.all(np.diff(difficulty[order([1] * 200, difficulty, exact)]) > 0)
    noisy = Mixture(BOTH, curriculum=("code",), curriculum_noise=0.05)
    chosen = order([1] * 200, difficulty, noisy)
    assert sorted(chosen) == list(range(200))
    assert not np.all(np.diff(difficulty[chosen]) > 0)
    assert np.all(np.abs(difficulty[chosen] - np.arange(200) / 200) <= 0.11)
    shuffled = order([1] * 200, difficulty, noisy, domain="english")
    assert abs(np.corrcoef(difficulty[shuffled], np.arange(200))[0, 1]) < 0.3


def test_difficulty_ranges_part_the_curriculum_domains_only():
    difficulty = np.random.default_rng(1).random(101).astype(np.float32)
    borders = [(0.0, 0.3), (0.3, 0.7), (0.7, 1.0)]
    parts = [
        selected_documents(
            difficulty, Mixture(BOTH, curriculum=("code",), difficulty_range=b), "code"
        )
        for b in borders
    ]
    assert sorted(np.concatenate(parts)) == list(range(101))
    assert difficulty[parts[0]].max() <= difficulty[parts[1]].min()
    mixture = Mixture(BOTH, curriculum=("code",), difficulty_range=(0.0, 0.3))
    assert len(selected_documents(difficulty, mixture, "english")) == 101
    with pytest.raises(TextDataError, match="holds none of the 1 documents"):
        selected_documents(difficulty[:1], mixture, "code")


def test_restriction_scales_what_is_left():
    mixture = Mixture(PANGU_ULTRA_WEIGHTS["general"], curriculum=("math", "code"))
    small = mixture.restricted_to(["english", "code"])
    assert small.weights == pytest.approx({"english": 54 / 71, "code": 17 / 71})
    assert small.curriculum == ("code",)
    with pytest.raises(TextDataError, match="None of the domains"):
        mixture.restricted_to(["law"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"english": 0.5, "code": 0.4}}, "weights sum to 0.9, not to 1"),
        ({"weights": {"english": 1.5, "code": -0.5}}, "'code' is -0.5"),
        ({"curriculum": ("math",)}, "curriculum domain 'math'"),
        ({"quality_floor": 0.0}, "quality_floor"),
        ({"difficulty_range": (0.5, 0.5)}, "difficulty_range"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(TextDataError, match=message):
        Mixture(**({"weights": BOTH} | change))
