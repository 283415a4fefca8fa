"""Time of a training step of a decoder, warm, median."""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.models import Decoder
from pangu_jax.parallel.sharding import global_batch, replicated, shardings_for, unbox
from pangu_jax.training.optimizer import build_optimizer
from pangu_jax.training.state import create_state
from pangu_jax.training.step import make_dispatch
from pangu_jax.training.utilisation import utilisation

WARM_UP, TIMED = 2, 8


def time_step(model, loss_fn, batches, train, schedule, mesh, steps: int = TIMED):
    """{'step_seconds', 'tokens_per_second', 'compile_seconds', ...} of whole optimizer steps."""
    host = [batch for batch, _ in zip(iter(batches), range(WARM_UP + steps), strict=False)]
    optimizer = build_optimizer(train.optimizer, schedule.total_steps, schedule.as_optax())

    def create(key):
        example = jnp.zeros((1, 8), jnp.int32)
        return create_state(lambda k: Decoder(model).init(k, example)["params"], optimizer, key)

    key = jax.random.key(train.seed)
    seconds, tokens, compile_seconds = [], [], 0.0
    with jax.set_mesh(mesh):
        placed = shardings_for(jax.eval_shape(create, key), mesh)
        state = jax.jit(lambda k: unbox(create(k)), out_shardings=placed)(key)
        fixed = replicated(mesh)
        bad = jax.device_put(jnp.int32(-1), fixed)
        step = jax.jit(
            make_dispatch(loss_fn, optimizer, accumulation=train.grad_accumulation),
            donate_argnums=0,
            out_shardings=(placed, fixed, fixed),
        )
        for index, batch in enumerate(host):
            stacked = global_batch({k: v[None] for k, v in batch.items()}, mesh, batch_axis=1)
            started = time.perf_counter()
            state, bad, out = step(state, bad, stacked)
            jax.block_until_ready(out)
            took = time.perf_counter() - started
            if index == 0:
                compile_seconds = took
            if index >= WARM_UP:
                seconds.append(took)
                tokens.append(int(np.sum(batch["labels"] >= 0)) * jax.process_count())
    median = statistics.median(seconds)
    rate = statistics.mean(tokens) / median
    length = host[0]["tokens"].shape[1]
    return {
        "step_seconds": median,
        "tokens_per_second": rate,
        "compile_seconds": compile_seconds,
        "parameters": float(model.num_parameters()),
        **utilisation(
            rate, model.flops_per_token(length), jax.devices()[0].device_kind, jax.device_count()
        ),
    }
