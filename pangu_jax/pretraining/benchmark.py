"""Throughput of a training step of a decoder (`launch.py --mode=benchmark`)."""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models import Decoder
from pangu_jax.training.optimizer import build_optimizer
from pangu_jax.training.timing import TIMED, WARM_UP, time_steps
from pangu_jax.training.utilisation import utilisation


def time_training(model, loss_fn, batches, train, schedule, mesh) -> dict[str, float]:
    """{'step_seconds' (median), 'tokens_per_second', 'compile_seconds', ...}; labelled tokens."""
    host = [batch for batch, _ in zip(iter(batches), range(WARM_UP + TIMED), strict=False)]
    optimizer = build_optimizer(train.optimizer, schedule.total_steps, schedule.as_optax())
    example = jnp.zeros((1, 8), jnp.int32)
    times = time_steps(
        lambda key: Decoder(model).init(key, example)["params"], loss_fn, host, optimizer, mesh,
        seed=train.seed, accumulation=train.grad_accumulation,
    )  # fmt: skip
    counts = [int(np.sum(batch["labels"] >= 0)) for batch in host[WARM_UP:]]
    median = statistics.median(times.seconds)
    rate = statistics.mean(counts) * jax.process_count() / median
    per_token = model.flops_per_token(host[0]["tokens"].shape[1])
    kind, devices = jax.devices()[0].device_kind, jax.device_count()
    return {
        "step_seconds": median,
        "tokens_per_second": rate,
        "compile_seconds": times.compile_seconds,
        "parameters": float(model.num_parameters()),
        **utilisation(rate, per_token, kind, devices),
    }
