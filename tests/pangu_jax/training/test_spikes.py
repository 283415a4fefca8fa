import json

import numpy as np
import pytest

from pangu_jax.training.spikes import SpikeCounter


def falling_loss(steps=400, seed=0):
    rng = np.random.default_rng(seed)
    return 3 + 4 * np.exp(-np.arange(steps) / 60) + 0.03 * rng.standard_normal(steps)


def count(losses):
    counter = SpikeCounter()
    return counter, [i for i, x in enumerate(losses) if counter.add(float(x))]


def test_a_smooth_run_has_none():
    for seed in range(20):
        assert count(falling_loss(seed=seed))[0].count == 0


def test_planted_spikes_are_found_once_each():
    losses = falling_loss()
    losses[150] += 2.0
    losses[200:205] += [1.0, 2.0, 1.5, 1.0, 0.6]  # one spike of five steps
    losses[300] += 0.5
    counter, where = count(losses)
    assert where == [150, 200, 300] and counter.count == 3


def test_a_lasting_rise_is_one_spike():
    losses = falling_loss()
    losses[200:] += 1.0
    assert count(losses)[1] == [200]


@pytest.mark.parametrize("cut", [1, 60, 151])
def test_saved_and_read_back_it_goes_on(cut):
    losses = falling_loss()
    losses[150] += 2.0
    whole, _ = count(losses)
    first, _ = count(losses[:cut])
    second = SpikeCounter.from_json(json.loads(json.dumps(first.to_json())))
    for x in losses[cut:]:
        second.add(float(x))
    assert second == whole


def test_not_a_number_changes_nothing():
    counter, _ = count(falling_loss())
    before = counter.to_json()
    assert not counter.add(float("nan")) and counter.to_json() == before
