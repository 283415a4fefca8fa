"""What pyKT's processes share: its cores, its model, its optimiser.

Imported in an environment of its own (see docs/tracing_speed.md).
"""

import argparse
import importlib.metadata
import json
import os
import sys
import types


def parser():
    """The arguments that every pyKT process takes."""
    common = argparse.ArgumentParser()
    common.add_argument("--model", choices=("dkt", "sakt", "akt"), required=True)
    common.add_argument("--sizes", required=True, help="JSON: arguments of pyKT's class.")
    common.add_argument("--optimizer", required=True, help="JSON: arguments of torch.optim.Adam.")
    common.add_argument("--threads", type=int, required=True)
    return common


def build(arguments):
    """pyKT's model on the cores that it may use; before anything else touches PyTorch."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    # pyKT imports its experiment logger in places that a training step never reaches.
    sys.modules.setdefault("wandb", types.ModuleType("wandb"))

    import torch
    from pykt.models.akt import AKT
    from pykt.models.dkt import DKT
    from pykt.models.sakt import SAKT

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    return {"dkt": DKT, "sakt": SAKT, "akt": AKT}[arguments.model](**json.loads(arguments.sizes))


def build_optimizer(arguments, model):
    """One kernel over all parameters: the fastest of PyTorch's Adams on a CPU. pyKT takes the
    default."""
    import torch

    return torch.optim.Adam(model.parameters(), fused=True, **json.loads(arguments.optimizer))


def versions():
    import torch

    pykt = importlib.metadata.version("pykt-toolkit")
    return f"torch {torch.__version__}, pykt-toolkit {pykt}"
