"""One data set, all methods, several seeds; and thresholds carried to another set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agents_jax.tools.meco import evaluation
from agents_jax.tools.meco.collect import Observations
from agents_jax.tools.meco.config import MecoConfig
from agents_jax.tools.meco.contrast import truncations
from agents_jax.tools.meco.examples import (
    ExampleSet,
    Roles,
    assign_folds,
    components,
    fingerprint_of,
    rotations,
)
from agents_jax.tools.meco.methods import Method, Outcome, Rules, run_methods, standard_methods
from agents_jax.tools.meco.reading import Reader, fit_pairs

States = Sequence[tuple[np.ndarray, np.ndarray]]  # per contrast query: [C, T, D] below T+ and T-


def contrast_readers(states: Mapping[str, States], max_tokens: int, seed: int) -> dict[str, Reader]:
    """Readers 'WORDING.METHOD' fitted on all pairs of each wording; by all methods of the first."""
    readers = {}
    for number, (wording, found) in enumerate(states.items()):
        positive, negative, _ = truncations(
            [one for one, _ in found], [other for _, other in found], max_tokens
        )
        for method in ("pca", "mean_difference", "random")[: 3 if number == 0 else 1]:
            readers[f"{wording}.{method}"] = fit_pairs(positive, negative, method=method, seed=seed)
    return readers


def held_out_pair_accuracy(states: States, max_tokens: int, seed: int) -> np.ndarray:
    """How often T+ scores above T- on queries that the reader was not fitted on, float64 [C].

    It says whether the reader tells the instructions apart (the paper's Figure 3), nothing about
    need of tools.
    """
    half = len(states) // 2
    parts = []
    for fit, test in ((states[:half], states[half:]), (states[half:], states[:half])):
        positive, negative, _ = truncations(
            [one for one, _ in fit], [other for _, other in fit], max_tokens
        )
        reader = fit_pairs(positive, negative, seed=seed)
        positive, negative, _ = truncations(
            [one for one, _ in test], [other for _, other in test], max_tokens
        )
        parts.append((reader.score(positive) > reader.score(negative)).mean(axis=0))
    return np.mean(parts, axis=0)


@dataclasses.dataclass(frozen=True, eq=False)
class SetStudy:
    """What was found on one set.

    outcomes, folds: of the first seed. results: by method. by_layer: by method 'auroc' and
    'accuracy', float64 [C], means over seeds and rotations. report: plain values.
    """

    data: ExampleSet
    observed: Observations
    outcomes: dict[str, Outcome]
    folds: np.ndarray
    results: dict[str, evaluation.Result]
    by_layer: dict[str, dict[str, np.ndarray]]
    report: dict[str, Any]


def study_set(
    data: ExampleSet, observed: Observations, readers: Mapping[int, Mapping[str, Reader]],
    given: Mapping[str, np.ndarray], config: MecoConfig,
) -> SetStudy:  # fmt: skip
    """All methods on one set. readers: by seed. given: scores float64 [N] by name."""
    examples, needed = data.examples, data.labels
    methods = standard_methods(
        list(readers[config.seeds[0]]), primary_layers=_primary(config, observed.layers),
        orientation=config.orientation, verbalised="verbalised" in given,
        embeddings=config.embeddings,
    )  # fmt: skip
    groups = components(examples)
    over_seeds: dict[str, list[tuple[float, float]]] = {}
    curves: dict[str, list[dict[str, np.ndarray]]] = {}
    first: tuple[dict[str, Outcome], np.ndarray] | None = None
    for seed in config.seeds:
        folds = assign_folds(examples, config.folds, seed)
        outcomes, layers = run_methods(
            methods, examples, observed, readers[seed], given, rotations(folds),
            rules=Rules(config.min_count, config.layer_choice), seed=seed,
        )  # fmt: skip
        first = first or (outcomes, folds)
        for name, outcome in outcomes.items():
            over_seeds.setdefault(name, []).append(
                (
                    float(np.mean(outcome.decided == needed)),
                    evaluation.fold_auroc(outcome.scores, needed, folds)
                    if np.isfinite(outcome.scores).all()
                    else math.nan,
                )
            )
        for name, found in layers.items():
            curves.setdefault(name, []).append(found)
    outcomes, folds = first
    results = {
        name: _result(outcome, observed, needed, folds, groups, over_seeds[name], config)
        for name, outcome in outcomes.items()
    }
    report = {
        "about": data.about,
        "examples": len(data),
        "needed": int(needed.sum()),
        "independent_groups": int(groups.max()) + 1,
        "fingerprint": fingerprint_of(examples),
        "says_yes": float(observed.says_yes.mean()),
        "methods": {name: result.to_dict() for name, result in results.items()},
        "tests": _tests(outcomes, needed),
    }
    by_layer = {
        name: {key: np.mean([c[key] for c in found], axis=0) for key in ("auroc", "accuracy")}
        for name, found in curves.items()
    }
    return SetStudy(data, observed, outcomes, folds, results, by_layer, report)


def _primary(config: MecoConfig, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers MeCo may choose among that were collected; all where none was."""
    return tuple(layer for layer in config.primary_layers if layer in layers)


def _result(
    outcome: Outcome, observed: Observations, needed: np.ndarray, folds: np.ndarray,
    groups: np.ndarray, over_seeds: Sequence[tuple[float, float]], config: MecoConfig,
) -> evaluation.Result:  # fmt: skip
    right = outcome.decided == needed
    scored = bool(np.isfinite(outcome.scores).all())
    chances = outcome.probabilities
    options = {"draws": config.bootstrap, "seed": config.seeds[0]}
    area, interval = math.nan, (math.nan, math.nan)
    if scored:
        area = evaluation.fold_auroc(outcome.scores, needed, folds)
        interval = evaluation.bootstrap(
            lambda at: evaluation.fold_auroc(outcome.scores[at], needed[at], folds[at]),
            groups, **options,
        )  # fmt: skip
    accuracies = [accuracy for accuracy, _ in over_seeds]
    areas = [value for _, value in over_seeds]
    return evaluation.Result(
        method=outcome.method.name,
        accuracy=float(right.mean()),
        accuracy_interval=evaluation.bootstrap(lambda at: right[at].mean(), groups, **options),
        auroc=area,
        auroc_interval=interval,
        brier=evaluation.brier(chances, needed) if scored else math.nan,
        ece=evaluation.calibration_error(chances, needed) if scored else math.nan,
        confusion=evaluation.confusion(outcome.decided, needed),
        flips=evaluation.flips(observed.says_yes, outcome.decided, needed)
        if outcome.method.rule == "dual"
        else None,
        details={
            "accuracy_by_seed": accuracies,
            "auroc_by_seed": areas,
            "validation_accuracy": outcome.validation_accuracy,
            "chosen": outcome.chosen,
        },
    )


def _tests(outcomes: Mapping[str, Outcome], needed: np.ndarray) -> dict[str, Any]:
    """Paired tests of MeCo and the supervised probe against P(Yes) and the best control.

    The best is chosen by its accuracy in validation.
    """
    controls = [name for name in outcomes if name.startswith("text:")]
    best = max(controls, key=lambda name: outcomes[name].validation_accuracy)
    right = {name: outcome.decided == needed for name, outcome in outcomes.items()}
    found: dict[str, Any] = {"best_control": best}
    for name in ("meco", "meco, pre_token", "probe: logistic"):
        for other in ("naive", "p_yes", best):
            if name in right:
                found[f"{name} against {other}"] = evaluation.mcnemar(right[name], right[other])
    return found


def carry_over(
    source: SetStudy, target: ExampleSet, observed: Observations, readers: Mapping[str, Reader],
    config: MecoConfig, *, source_places: Sequence[int] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Probes, thresholds and layer of one set used on another: accuracy and AUROC by method.

    Args:
      observed: of the target. source_places: a part of the source; None for all of it.
    """
    part = source.data if source_places is None else source.data.only(source_places)
    places = np.arange(len(source.data)) if source_places is None else np.asarray(source_places)
    known = source.observed.take(places)
    folds = assign_folds(part.examples, config.folds, config.seeds[0])
    size = len(part)
    # Two folds choose thresholds and layer, the others fit; the target is only tested.
    roles = Roles(
        np.flatnonzero(folds > 1), np.flatnonzero(folds <= 1),
        np.arange(size, size + len(target)),
    )  # fmt: skip
    both = known.joined(observed)
    examples = (*part.examples, *target.examples)
    methods = [
        m
        for m in standard_methods(
            list(readers), primary_layers=_primary(config, both.layers),
            orientation=config.orientation,
        )
        if m.name in _CARRIED
    ]  # fmt: skip
    outcomes, _ = run_methods(
        methods, examples, both, readers, _given(both), [roles],
        rules=Rules(config.min_count, config.layer_choice), seed=config.seeds[0],
    )  # fmt: skip
    needed = target.labels
    out: dict[str, Any] = {
        "from": part.name, "to": target.name, "fitted_on": size, "examples": len(target),
        "needed": int(needed.sum()), "methods": {},
    }  # fmt: skip
    groups = components(target.examples)
    for name, outcome in outcomes.items():
        right = outcome.decided[size:] == needed
        scores = outcome.scores[size:]
        out["methods"][name] = {
            "accuracy": float(right.mean()),
            "accuracy_interval": list(
                evaluation.bootstrap(
                    lambda at, right=right: right[at].mean(), groups, draws=config.bootstrap,
                    seed=config.seeds[0],
                )
            ),
            "auroc": evaluation.auroc(scores, needed) if np.isfinite(scores).all() else None,
        }  # fmt: skip
    return out


_CARRIED = ("naive", "p_yes", "text:overlap", "text:combined", "meco", "meco, pre_token",
            "probe: logistic")  # fmt: skip


def _given(observed: Observations) -> dict[str, np.ndarray]:
    """Scores that need no fit: log-odds of Yes, of the plain answers and summed over variants."""
    return {
        "p_yes": observed.yes_margin,
        "p_yes_variants": observed.summed[:, 0] - observed.summed[:, 1],
    }


def given_scores(observed: Observations, **more: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of kind 'scores' for `study_set`."""
    return {**_given(observed), **more}


def final_methods(
    config: MecoConfig, readers: Sequence[str], layers: Sequence[int]
) -> list[Method]:
    """The methods of which probes are saved."""
    return [
        m
        for m in standard_methods(
            readers, primary_layers=_primary(config, layers), orientation=config.orientation
        )
        if m.name in ("meco", "probe: logistic")
    ]  # fmt: skip
