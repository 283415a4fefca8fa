"""The same small evaluation for the test and for the processes it starts."""

import numpy as np


def problem():
    rng = np.random.default_rng(0)
    items, rows = 300, 8
    params = rng.integers(-3, 4, (items + 1, 4)).astype(np.float32)
    batches = []
    for i in range(3):
        users = np.arange(rows, dtype=np.int32) + i * rows
        if i == 2:
            users[5:] = -1
        batches.append(
            dict(
                items=rng.integers(1, items + 1, (rows, 6)).astype(np.int32),
                users=users,
                lengths=rng.integers(1, 7, rows).astype(np.int32),
                targets=rng.integers(1, items + 1, rows).astype(np.int32),
                history=rng.integers(0, items + 1, (rows, 5)).astype(np.int32),
            )
        )
    return params, batches


def record(params, batches, mesh=None):
    from recsys_jax.evaluation.evaluator import Evaluator

    options = dict(popularity=np.arange(len(params)), keep_topk=5, mesh=mesh)
    evaluator = Evaluator(lambda table, batch: table[batch["items"]], **options)
    got = evaluator.evaluate(params, params, batches)
    return dict(
        metrics=got.metrics,
        users=got.users.tolist(),
        ranks=got.ranks.tolist(),
        topk=got.topk_items.tolist(),
        counts=got.item_counts.tolist(),
    )
