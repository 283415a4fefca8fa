"""Which of an experiment's runs a mode that takes a single model works with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class _Labelled(Protocol):
    label: str


class _HasEntry(Protocol):
    entry: _Labelled


R = TypeVar("R", bound=_HasEntry)


def choose_run(runs: Sequence[R], label: str | None) -> R:
    """The first seed of the model called `label` (default: the first model by name).

    Raises:
      ValueError: no run has that label; the message lists those there are.
    """
    labels = list(dict.fromkeys(one.entry.label for one in runs))
    for one in runs:
        if one.entry.label == (label or labels[0]):
            return one
    raise ValueError(
        f"--config.predict.model={label!r} is not one of this run's models: {', '.join(labels)}"
    )
