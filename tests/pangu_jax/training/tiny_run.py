"""A tiny training run, started as its own process by the kill-and-resume tests.

Usage: tiny_run.py WORKDIR OUT_NPZ [--slow SECONDS] [--per-dispatch K] [--steps N]
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.training import LossSums, OptimizerConfig, TrainConfig, TrainingError, fit
from pangu_jax.training.signals import exit_code


def init(key):
    keys = jax.random.split(key, 2)
    return {
        "hidden": {"kernel": jax.random.normal(keys[0], (6, 16)) * 0.3, "bias": jnp.zeros(16)},
        "out": jax.random.normal(keys[1], (16, 1)) * 0.3,
    }


def loss(params, batch, rng):
    hidden = jax.nn.relu(batch["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    # Dropout, so that a wrong random key after a resume shows.
    hidden = hidden * jax.random.bernoulli(rng, 0.8, hidden.shape)
    error = (hidden @ params["out"])[:, 0] - batch["y"]
    return LossSums(
        jnp.sum(error**2), jnp.float32(error.shape[0]), {"absolute_error": jnp.sum(jnp.abs(error))}
    )


def dataset(rows=8, examples=64, seed=3):
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(examples, 6)).astype(np.float32)
    y = np.sin(x.sum(1)).astype(np.float32)
    source = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
    return (
        grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(rows).to_iter_dataset()
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("out")
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--per-dispatch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    valid = {k: v for k, v in next(iter(dataset(rows=32, seed=9))).items()}

    def evaluate(params, step):
        time.sleep(args.slow)
        hidden = jax.nn.relu(valid["x"] @ params["hidden"]["kernel"] + params["hidden"]["bias"])
        return {"mse": float(jnp.mean(((hidden @ params["out"])[:, 0] - valid["y"]) ** 2))}

    def slow_dataset():
        # Slows the run down without touching its numbers, so that kills land in the middle.
        class Slow:
            def __init__(self):
                self.it = iter(dataset())

            def __iter__(self):
                return self

            def __next__(self):
                time.sleep(args.slow)
                return next(self.it)

            def get_state(self):
                return self.it.get_state()

            def set_state(self, state):
                self.it.set_state(state)

        return Slow()

    config = TrainConfig(
        steps=args.steps,
        seed=1,
        steps_per_dispatch=args.per_dispatch,
        log_every=7,
        eval_every=15,
        checkpoint_every=10,
        best_metric="mse",
        best_mode="min",
        progress="none",
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="cosine", warmup_steps=5),
    )
    try:
        result = fit(
            init_fn=init,
            loss_fn=loss,
            dataset=slow_dataset(),
            config=config,
            workdir=args.workdir,
            evaluate=evaluate,
        )
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    if result.interrupted:
        return exit_code(result.signal)
    leaves = jax.tree_util.tree_flatten_with_path(result.state)[0]
    np.savez(
        args.out,
        best_step=result.best_step,
        **{jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
