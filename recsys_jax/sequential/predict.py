"""Top-k lists per user: for the users of the log, or for a file of histories never seen."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from recsys_jax.data.histories import histories_from_file
from recsys_jax.data.splits import next_event_examples
from recsys_jax.evaluation.predictions import write_predictions
from recsys_jax.run_choice import choose_run
from recsys_jax.sequential.config import ExperimentConfig
from recsys_jax.sequential.dataset import Dataset
from recsys_jax.sequential.runs import Run


def predict(
    experiment: ExperimentConfig, data: Dataset, runs: list[Run], workdir: pathlib.Path
) -> pathlib.Path:
    """Writes the k best items per user and returns the file.

    The user's whole history up to the end of the log (or of the file) is the input, and its items
    are left out of the list.

    Raises:
      ValueError: unknown model, unknown items in the file, BPR-MF asked for users it never saw.
    """
    settings = experiment.predict
    one = choose_run(runs, settings.model)
    source, user_ids = data, data.log.user_ids
    if settings.histories:
        if one.entry.trains_on == "pairs":
            raise ValueError(
                f"{one.entry.label} knows only the users it was trained on and cannot serve "
                "--config.predict.histories; choose a sequence model with --config.predict.model."
            )
        histories = histories_from_file(
            settings.histories,
            data.log,
            columns=experiment.data.columns,
            separator=experiment.data.separator,
            time_scale=experiment.data.time_scale,
            unknown=settings.unknown,
        )
        if histories.skipped_events:
            print(
                f"{histories.skipped_events} events with items unknown to training were skipped; "
                f"{len(histories.skipped_users)} users had nothing else and get no list."
            )
        source = dataclasses.replace(data, sequences=histories.sequences)
        user_ids = histories.user_ids
    examples = next_event_examples(source.sequences)
    times = None
    if settings.request_time is not None:
        times = np.full(len(examples), settings.request_time, np.int64)
    output = pathlib.Path(settings.output or workdir / "predictions" / f"{one.entry.label}.parquet")
    batches = source.evaluation_batches(examples, times, keep_order=True)
    lists = one.evaluator.recommend(one.params(), one.model.item_table, batches, k=settings.k)
    count = write_predictions(
        output,
        lists,
        user_ids=user_ids,
        item_ids=data.log.item_ids,
        titles=data.log.item_titles,
    )
    print(f"Top {settings.k} of {one.entry.label} for {count:,} users: {output}")
    return output
