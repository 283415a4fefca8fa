"""The cost model against published runs: one set of efficiencies for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pangu_jax.planning.cost import Prediction, predict
from pangu_jax.planning.execution import Efficiencies
from pangu_jax.planning.published import Published, published_runs

# Values that leave_one_out tries for `matmul`.
_GRID = tuple(round(0.50 + 0.04 * i, 2) for i in range(12))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A published run, and what is predicted for it."""

    run: Published
    prediction: Prediction

    @property
    def error(self) -> float:
        """Predicted minus published MFU."""
        return self.prediction.mfu - self.run.mfu

    @property
    def relative_error(self) -> float:
        return self.prediction.mfu / self.run.mfu - 1


def compare(
    efficiencies: Efficiencies | None = None,
    runs: Sequence[Published] | None = None,
    *,
    play: bool = True,
) -> list[Comparison]:
    """Predictions for all published runs; `play` as in `predict`."""
    return [
        Comparison(
            run=run,
            prediction=predict(
                run.model,
                run.layout,
                run.topology,
                run.seq_len,
                run.execution,
                efficiencies,
                play=play,
            ),  # fmt: skip
        )
        for run in (published_runs() if runs is None else runs)
    ]


def mean_absolute_error(comparisons: Sequence[Comparison]) -> float:
    """Mean of |predicted - published| MFU, as a fraction (0.05 is five points)."""
    return sum(abs(c.error) for c in comparisons) / len(comparisons)


def leave_one_out(
    efficiencies: Efficiencies | None = None, runs: Sequence[Published] | None = None
) -> tuple[float, tuple[float, ...]]:
    """What fitting the one most important constant to the published runs would give.

    For each run, `matmul` is chosen to minimise the mean absolute error on the others, and the run
    is then predicted with it.

    Returns:
      (mean absolute error of those predictions, the chosen values). That the error is not much
      below the unfitted one says that fitting would buy little.
    """
    base = efficiencies or Efficiencies()
    runs = published_runs() if runs is None else runs
    by_value = {
        value: [
            abs(c.error) for c in compare(dataclasses.replace(base, matmul=value), runs, play=False)
        ]
        for value in _GRID
    }
    errors, chosen = [], []
    for index in range(len(runs)):
        best = min(_GRID, key=lambda value: sum(by_value[value]) - by_value[value][index])
        chosen.append(best)
        errors.append(by_value[best][index])
    return sum(errors) / len(errors), tuple(chosen)
