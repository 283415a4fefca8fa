"""One of several processes that train a tiny decoder divided by hand, over loopback.

Usage: divided_run.py PORT INDEX COUNT DEVICES WORKDIR LAYOUT [kill | slow]

LAYOUT: fields of a Layout as JSON. COUNT 1: everything in one process. kill: the last process
kills itself at the evaluation of step 6, when step 4 has been saved. slow: where checkpoints are
superseded the last process is a second behind the first, which deletes the files.
"""

import json
import os
import signal
import sys
import time

import jax
import numpy as np

from pangu_jax.models import Decoder
from pangu_jax.models.presets import preset
from pangu_jax.parallel import DistributedConfig, initialize
from pangu_jax.parallel.decoder import DecoderProgram
from pangu_jax.parallel.layout import Layout, layout_mesh
from pangu_jax.parallel.sharding import batch_part
from pangu_jax.training import OptimizerConfig, TrainConfig, TrainingError, fit
from pangu_jax.training.checkpoint import Checkpoints

port, index, count, devices, workdir, layout = sys.argv[1:7]
index, count, kill = int(index), int(count), "kill" in sys.argv
LENGTH, ROWS = 16, 4

jax.config.update("jax_num_cpu_devices", int(devices))
initialize(DistributedConfig(f"127.0.0.1:{port}", count, index) if count > 1 else None)
model = preset("debug", vocab_size=40, hidden_dim=16, mlp_dim=24, head_dim=4, num_layers=3)
layout = Layout(**json.loads(layout))
mesh = layout_mesh(layout)
part, parts = batch_part(mesh)


if "slow" in sys.argv and index == count - 1:
    prune = Checkpoints.prune

    def prune_late(self, **limits):
        time.sleep(1)
        prune(self, **limits)

    Checkpoints.prune = prune_late


class Batches:
    """This process's rows of packed random documents."""

    def __init__(self):
        self.number = 0

    def __iter__(self):
        return self

    def __next__(self):
        tokens = np.random.default_rng(self.number).integers(0, 40, (ROWS, LENGTH), np.int32)
        self.number += 1
        place = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
        batch = {
            "tokens": tokens,
            "labels": np.where(place % 8 == 7, np.int32(-1), np.roll(tokens, -1, 1)),
            "segment_ids": place // 8 + 1,
            "positions": place % 8,
        }
        own = slice(part * ROWS // parts, (part + 1) * ROWS // parts)
        return {name: np.ascontiguousarray(x[own]) for name, x in batch.items()}

    def get_state(self):
        return {"number": self.number}

    def set_state(self, state):
        self.number = state["number"]


def evaluate(params, step):
    if kill and step == 6 and index == count - 1:
        time.sleep(3)  # until the checkpoint of step 4 is surely complete
        os.kill(os.getpid(), signal.SIGKILL)
    return {"score": float(step)}


def init(key):
    return Decoder(model).init(key, np.zeros((1, 8), np.int32))["params"]


try:
    result = fit(
        init_fn=init,
        loss_fn=None,
        dataset=Batches(),
        config=TrainConfig(
            steps=10, log_every=1, eval_every=3, checkpoint_every=4, best_metric="score",
            progress="none", quick_compile=True,
            optimizer=OptimizerConfig(learning_rate=1e-2, clip_norm=1.0, weight_decay=0.1),
        ),
        workdir=workdir,
        evaluate=evaluate,
        division=DecoderProgram(model, layout, mesh),
    )  # fmt: skip
    print(f"RESULT {int(result.state.step)}", flush=True)
except TrainingError as error:
    print(f"ENDED {error}", flush=True)
    os._exit(2)
if count > 1:
    jax.distributed.shutdown()
os._exit(0)
