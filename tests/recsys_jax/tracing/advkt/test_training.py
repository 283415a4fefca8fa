"""The alternating step, by itself and in the one training loop."""

import dataclasses
import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.training import TrainConfig, TrainingError, fit
from pangu_jax.training.state import create_state
from recsys_jax.tracing.advkt.config import (
    AdversarialConfig,
    DiscriminatorConfig,
    GeneratorConfig,
)
from recsys_jax.tracing.advkt.training import build

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import advkt_data as data  # noqa: E402

BATCH = data.make_batch([6, 8, 3, 7, 2, 8, 5, 4], 8)
TABLES = data.make_tables()
# Fewer terms compile faster; what alternates does not depend on them.
PROGRAM, PARAMS = data.make_program(
    walk_rows=2, augmented_weight=0.0, gp_weight=0.0, constraint_weight=0.0, short_weight=0.0
)
STEP = data.jit(lambda state, key: PROGRAM.advance(state, BATCH, key, TABLES))


def state_at(step: int):
    state = create_state(lambda _: PARAMS, PROGRAM, jax.random.key(1))
    return dataclasses.replace(state, step=jnp.int32(step))


def same(one, other) -> bool:
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def test_discriminator_rests_at_odd_steps():
    for step in (0, 1, 2, 3):
        state = state_at(step)
        params, opt_state, sums, norm = STEP(state, jax.random.key(step))
        rested = step % 2 == 1
        for tree, before in ((params, state.params), (opt_state, state.opt_state)):
            assert same(tree["discriminator"], before["discriminator"]) == rested
            assert not same(tree["generator"], before["generator"])
        assert (sums.metrics["discriminator_loss"] == 0) == rested
        assert np.isfinite(sums.total) and np.isfinite(norm) and sums.weight == BATCH.mask.sum()


def test_generator_is_rewarded_by_the_updated_discriminator():
    """At an even step the generator's loss is that under the new discriminator."""
    key = jax.random.key(0)
    params, _, sums, _ = STEP(state_at(0), key)
    _, g_key = jax.random.split(key)
    mixed = {"generator": PARAMS["generator"], "discriminator": params["discriminator"]}
    loss = data.jit(PROGRAM.objectives.generator_loss)
    new, _ = loss(mixed, BATCH, TABLES, g_key)
    old, _ = loss(PARAMS, BATCH, TABLES, g_key)
    np.testing.assert_allclose(sums.total / sums.weight, new, rtol=1e-5)
    assert abs(float(new - old)) > 1e-4


def test_first_update_is_adams_with_each_rate():
    """Adam's first step moves every parameter with a gradient by its learning rate."""
    params, _, _, _ = STEP(state_at(0), jax.random.key(0))
    for name, rate in (("generator", 1e-3), ("discriminator", 5e-3)):
        moved = np.concatenate(
            [
                np.abs(x - y).ravel()
                for x, y in zip(
                    jax.tree.leaves(params[name]), jax.tree.leaves(PARAMS[name]), strict=True
                )
            ]
        )
        assert moved.max() <= rate * 1.001 and np.median(moved[moved > 0]) > 0.9 * rate


def batches():
    while True:
        yield jax.tree.map(np.asarray, BATCH)


def run(workdir, steps, **config):
    return fit(
        init_fn=PROGRAM.init_params,
        loss_fn=None,
        dataset=batches(),
        config=TrainConfig(
            steps=steps,
            log_every=2,
            checkpoint_every=0,
            checkpoint_minutes=None,
            progress="none",
            quick_compile=True,
            **config,
        ),
        workdir=workdir,
        program=PROGRAM,
        frozen=TABLES,
    )


@pytest.mark.slow
def test_the_training_loop_resumes_where_it_stopped(tmp_path):
    whole = run(tmp_path / "whole", 3)
    run(tmp_path / "halves", 1)
    halves = run(tmp_path / "halves", 3)
    assert halves.state.step == 3
    chex.assert_trees_all_equal(whole.state.params, halves.state.params)
    chex.assert_trees_all_equal(whole.state.opt_state, halves.state.opt_state)
    values = whole.history[0]["values"]
    assert {"loss", "generator_bce", "discriminator_real"} <= set(values)


def test_the_training_loop_refuses_micro_batches(tmp_path):
    with pytest.raises(TrainingError, match="grad_accumulation=2"):
        run(tmp_path, 1, grad_accumulation=2)


def test_networks_must_agree():
    with pytest.raises(ValueError, match="dim is 8 for the generator and 16"):
        build(
            GeneratorConfig(num_questions=3, num_concepts=2, dim=8),
            DiscriminatorConfig(num_questions=3, num_concepts=2, dim=16),
            AdversarialConfig(),
        )


def test_settings_out_of_range_are_named():
    for name, value in (
        ("mask_prob", 1.5),
        ("discriminator_every", 0),
        ("generator_rate", 0.0),
        ("gp_weight", -1.0),
        ("walk_rows", 0),
    ):
        with pytest.raises(ValueError, match=f"{name} is {value}"):
            AdversarialConfig(**{name: value})
    with pytest.raises(ValueError, match="reward_response='both'"):
        AdversarialConfig(reward_response="both")
