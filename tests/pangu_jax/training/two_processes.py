"""One of two processes of a run over loopback. Usage: two_processes.py PORT INDEX WORKDIR MODE"""

import os
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.parallel import DistributedConfig, MeshConfig, initialize
from pangu_jax.training import LossSums, OptimizerConfig, TrainConfig, TrainingError, fit

port, index, workdir, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]


class Batches:
    """Each process makes its own half of the rows."""

    def __init__(self, parts):
        self.parts, self.number = parts, 0

    def __iter__(self):
        return self

    def __next__(self):
        x = np.random.default_rng(self.number).normal(size=(8, 4)).astype(np.float32)
        self.number += 1
        rows = slice(None) if self.parts == 1 else slice(4 * index, 4 * index + 4)
        return {"x": x[rows], "y": x.sum(1)[rows]}

    def get_state(self):
        return {"number": self.number, "process": index}

    def set_state(self, state):
        assert state["process"] == index
        self.number = state["number"]


def loss(params, batch, rng):
    error = batch["x"] @ params["w"] - batch["y"]
    return LossSums(jnp.sum(error**2), jnp.float32(error.shape[0]))


def evaluate(params, step):
    if mode == "stop" and step == 6 and index == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # one process only; all must stop
    return {"score": float(step) / 3 if index == 0 else 0.0}


many = mode != "single"
if many:
    assert initialize(DistributedConfig(f"127.0.0.1:{port}", 2, index))
config = TrainConfig(
    steps=12,
    log_every=4,
    eval_every=3,
    checkpoint_every=5,
    best_metric="score",
    progress="none",
    mesh=MeshConfig(),
    optimizer=OptimizerConfig(),
)
try:
    result = fit(
        init_fn=lambda key: {"w": jax.random.normal(key, (4,))},
        loss_fn=loss,
        dataset=Batches(2 if many else 1),
        config=config,
        workdir=workdir,
        evaluate=evaluate,
    )
    print(
        f"RESULT {int(result.state.step)} {result.interrupted} {result.best_step} "
        f"{result.best_metrics['score']!r} {np.asarray(result.state.params['w']).tolist()}"
    )
    code = 0
except TrainingError as error:
    print(f"REFUSED {error}")
    code = 2
sys.stdout.flush()
if many:
    jax.distributed.shutdown()
os._exit(code)
