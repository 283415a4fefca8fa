"""Times one training epoch and one full-ranking evaluation of a RecBole model on MovieLens-100K.

Runs inside an environment of its own (`pip install torch==2.13.0 recbole==1.2.1 "numpy<2"`);
called by benchmarks/recbole.py, prints one JSON line.
"""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True, choices=["SASRec", "GRU4Rec"])
parser.add_argument("--max_len", type=int, default=50)
parser.add_argument("--batch_size", type=int, default=2048)
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--epochs", type=int, default=2)
arguments = parser.parse_args()

import logging  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

# RecBole 1.2.1 reads its own checkpoint with the old default.
_load = torch.load
torch.load = lambda *args, **kwargs: _load(*args, **{"weights_only": False, **kwargs})
for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
    if not hasattr(np, name):
        setattr(np, name, kind)

import recbole  # noqa: E402
from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, get_trainer, init_seed  # noqa: E402

torch.set_num_threads(arguments.threads)
sizes = {
    "SASRec": dict(n_layers=2, n_heads=1, hidden_size=64, inner_size=64),
    "GRU4Rec": dict(embedding_size=64, hidden_size=64, num_layers=1, dropout_prob=0.2),
}[arguments.model]
config = Config(
    model=arguments.model,
    dataset="ml-100k",
    config_dict=dict(
        data_path=os.path.join(os.path.dirname(recbole.__file__), "dataset_example"),
        load_col={"inter": ["user_id", "item_id", "timestamp"]},
        MAX_ITEM_LIST_LENGTH=arguments.max_len,
        loss_type="CE",
        train_neg_sample_args=None,
        train_batch_size=arguments.batch_size,
        eval_batch_size=arguments.batch_size,
        eval_args={
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        metrics=["NDCG", "Hit"],
        topk=[10],
        valid_metric="NDCG@10",
        use_gpu=False,
        show_progress=False,
        state="ERROR",
        seed=0,
        **sizes,
    ),
)
init_seed(0, True)
logging.getLogger().setLevel(logging.ERROR)
dataset = create_dataset(config)
train, _, test = data_preparation(config, dataset)
model = get_model(config["model"])(config, train.dataset)
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
seconds = []
for epoch in range(arguments.epochs):
    started = time.perf_counter()
    trainer._train_epoch(train, epoch)
    seconds.append(time.perf_counter() - started)
trainer.evaluate(test, load_best_model=False)
passes = []
for _ in range(7):  # as on our side: the median of warm passes
    started = time.perf_counter()
    trainer.evaluate(test, load_best_model=False)
    passes.append(time.perf_counter() - started)
evaluation = sorted(passes)[len(passes) // 2]
targets = len(train.dataset)
print(
    "RESULT "
    + json.dumps(
        {
            "peer": f"RecBole {recbole.__version__}, torch {torch.__version__}",
            "model": arguments.model,
            "targets": targets,
            "epoch_seconds": min(seconds),
            "targets_per_second": targets / min(seconds),
            "eval_seconds": evaluation,
            "threads": torch.get_num_threads(),
        }
    )
)
