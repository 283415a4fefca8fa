"""Epochs of pyKT's DKT, SAKT or AKT in PyTorch on the CPU, by its own data set and loop.

Runs inside an environment of its own (see docs/tracing_speed.md); called by
benchmarks/tracing_train_epoch.py. Data set, model, forward pass and loss are those of pykt-toolkit
(`KTDataset`, `model_forward`), the loop is its `train_model`'s, less validation. Prints one RESULT
line after an epoch, then one per line on its input, a number of epochs to time.
"""

import pykt_side
from timed_turns import answer_turns, tell, warm_up

parser = pykt_side.parser()
parser.add_argument("--windows", required=True, help="CSV of padded sequences, as pyKT writes.")
parser.add_argument("--batch", type=int, required=True)
arguments = parser.parse_args()
model = pykt_side.build(arguments)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pykt.datasets import data_loader  # noqa: E402
from pykt.models.train_model import model_forward  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

# pyKT's data set makes its tensors on a GPU.
data_loader.FloatTensor, data_loader.LongTensor = torch.FloatTensor, torch.LongTensor
dataset = data_loader.KTDataset(arguments.windows, ["questions", "concepts"], {0})
loader = DataLoader(dataset, batch_size=arguments.batch)
optimizer = pykt_side.build_optimizer(arguments, model)


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
        "versions": pykt_side.versions(),
        "first_epoch_seconds": first,
        "batches": len(loader),
        "cells": len(dataset) * dataset.dori["rseqs"].shape[1],
        "losses": losses,
    }
)
answer_turns(epoch)
