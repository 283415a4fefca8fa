"""Epochs of pyKT's DKT, SAKT or AKT in PyTorch on the CPU, by its own data set and loop.

Runs inside an environment of its own (see docs/tracing_speed.md); called by
benchmarks/tracing_train_epoch.py. Data set, model, forward pass and loss are those of pykt-toolkit
(`KTDataset`, `model_forward`), the loop is its `train_model`'s, less validation. Prints one RESULT
line after an epoch, then one per line on its input, a number of epochs to time.
"""

import argparse
import importlib.metadata
import json
import os
import sys
import types

parser = argparse.ArgumentParser()
parser.add_argument("--model", choices=("dkt", "sakt", "akt"), required=True)
parser.add_argument("--sizes", required=True, help="JSON: arguments of pyKT's class.")
parser.add_argument("--windows", required=True, help="CSV of padded sequences, as pyKT writes.")
parser.add_argument("--optimizer", required=True, help="JSON: arguments of torch.optim.Adam.")
parser.add_argument("--batch", type=int, required=True)
parser.add_argument("--threads", type=int, required=True)
arguments = parser.parse_args()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])

# pyKT imports its experiment logger in places that a training step never reaches.
sys.modules.setdefault("wandb", types.ModuleType("wandb"))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pykt.datasets import data_loader  # noqa: E402
from pykt.models.akt import AKT  # noqa: E402
from pykt.models.dkt import DKT  # noqa: E402
from pykt.models.sakt import SAKT  # noqa: E402
from pykt.models.train_model import model_forward  # noqa: E402
from timed_turns import answer_turns, tell, warm_up  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

torch.set_num_threads(arguments.threads)
torch.manual_seed(0)
# pyKT's data set makes its tensors on a GPU.
data_loader.FloatTensor, data_loader.LongTensor = torch.FloatTensor, torch.LongTensor
dataset = data_loader.KTDataset(arguments.windows, ["questions", "concepts"], {0})
loader = DataLoader(dataset, batch_size=arguments.batch)
model = {"dkt": DKT, "sakt": SAKT, "akt": AKT}[arguments.model](**json.loads(arguments.sizes))
# One kernel over all parameters: the fastest of PyTorch's Adams on a CPU. pyKT takes the default.
optimizer = torch.optim.Adam(model.parameters(), fused=True, **json.loads(arguments.optimizer))


def epoch():
    losses = []
    for batch in loader:
        model.train()
        loss = model_forward(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach().cpu().numpy())
    return float(np.mean(losses))


losses, first = warm_up(epoch, 1)
tell(
    {
        "versions": f"torch {torch.__version__}, "
        f"pykt-toolkit {importlib.metadata.version('pykt-toolkit')}",
        "first_epoch_seconds": first,
        "batches": len(loader),
        "cells": len(dataset) * dataset.dori["rseqs"].shape[1],
        "losses": losses,
    }
)
answer_turns(epoch)
