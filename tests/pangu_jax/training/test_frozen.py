"""`fit` with arrays that the loss reads and training leaves alone, and with given first values."""

import grain
import jax.numpy as jnp
import numpy as np

from pangu_jax.training import LossSums, OptimizerConfig, TrainConfig, fit

CONFIG = TrainConfig(
    steps=4, log_every=1, checkpoint_every=2, progress="none", quick_compile=True,
    optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, b1=0.0),
)  # fmt: skip


def loss(params, batch, key, frozen):
    error = batch["x"] @ frozen["w"] + params["b"] - batch["y"]
    return LossSums(jnp.sum(error**2), jnp.float32(error.shape[0]))


def dataset():
    rng = np.random.default_rng(0)
    rows = [{"x": x, "y": x.sum()} for x in rng.normal(size=(16, 3)).astype(np.float32)]
    return grain.MapDataset.source(rows).repeat().batch(8).to_iter_dataset()


def run(workdir, frozen, steps=4, initial=None):
    import dataclasses

    return fit(
        init_fn=lambda key: {"b": jnp.zeros(())}, loss_fn=loss, dataset=dataset(),
        config=dataclasses.replace(CONFIG, steps=steps), workdir=workdir, frozen=frozen,
        initial=initial,
    )  # fmt: skip


def test_frozen_arrays_are_read_and_are_no_part_of_the_state(tmp_path):
    # With the right w there is no error at b = 0; with another one b moves.
    right = run(tmp_path / "right", {"w": jnp.ones(3)}).state
    assert list(right.params) == ["b"]
    np.testing.assert_allclose(right.params["b"], 0, atol=1e-6)
    other = {"w": jnp.array([1.0, 1.0, 3.0])}
    moved = run(tmp_path / "other", other).state
    assert abs(float(moved.params["b"])) > 1e-3
    np.testing.assert_array_equal(other["w"], [1, 1, 3])  # not given up to the program
    # Interrupted half-way, with the same frozen arrays: the same result.
    run(tmp_path / "parts", other, steps=2)
    again = run(tmp_path / "parts", other).state
    np.testing.assert_array_equal(again.params["b"], moved.params["b"])


def test_initial_values_are_taken_once(tmp_path):
    asked = []

    def initial():
        asked.append(1)
        return {"b": jnp.float32(5.0)}

    frozen = {"w": jnp.ones(3)}
    first = run(tmp_path, frozen, steps=1, initial=initial).state
    # One step of gradient descent on b**2.
    np.testing.assert_allclose(first.params["b"], 5 - 0.1 * 2 * 5, rtol=1e-5)
    run(tmp_path, frozen, steps=2, initial=initial)
    assert len(asked) == 1
