"""Every method on one data set, by rotation of disjoint roles.

Probes, controls and classifiers are fitted on the same examples, thresholds and layer on others,
and every example is tested once. Letters: N examples, C layers, D hidden width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from agents_jax.tools.meco.collect import Observations
from agents_jax.tools.meco.controls import CONTROLS, EMBEDDING_CONTROLS, fit_control
from agents_jax.tools.meco.decision import (
    DualThreshold,
    Orientation,
    Threshold,
    fit_dual,
    fit_threshold,
)
from agents_jax.tools.meco.evaluation import auroc, platt
from agents_jax.tools.meco.examples import Example, Roles
from agents_jax.tools.meco.reading import Reader, fit_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """How decisions come about.

    kind: 'constant' (always, never), 'naive', 'scores' (given in advance), 'control', 'contrast' (a
    reader fitted on meta-cognition pairs) or 'labels' (a probe fitted on labelled examples).
    source: name of the control, the scores, the reader, or the method of the probe.
    position, layers: where hidden states are read; layers () for all. rule: 'dual' thresholds by
    the model's own answer, or one.
    """

    name: str
    kind: str
    source: str = ""
    position: str = "first_token"
    layers: tuple[int, ...] = ()
    rule: str = "single"
    orientation: Orientation = "B"
    shuffled: bool = False


@dataclasses.dataclass(frozen=True)
class Rules:
    """How thresholds and layer are chosen; see config.MecoConfig."""

    min_count: int = 20
    layer_choice: str = "accuracy"


def standard_methods(
    readers: Sequence[str], *, primary_layers: tuple[int, ...], orientation: Orientation = "B",
    verbalised: bool = False, embeddings: bool = False,
) -> list[Method]:  # fmt: skip
    """All methods of a study. readers: names 'WORDING.METHOD'; the first wording is primary."""
    controls = CONTROLS + (EMBEDDING_CONTROLS if embeddings else ())
    first = readers[0].split(".")[0]
    other = "A" if orientation == "B" else "B"
    meco = {"kind": "contrast", "rule": "dual", "layers": primary_layers}
    pca = f"{first}.pca"
    out = [
        Method(name="always", kind="constant", source="always"),
        Method(name="never", kind="constant", source="never"),
        Method(name="naive", kind="naive"),
        Method(name="p_yes", kind="scores", source="p_yes"),
        Method(name="p_yes_variants", kind="scores", source="p_yes_variants"),
        *([Method(name="verbalised", kind="scores", source="verbalised")] if verbalised else []),
        *(Method(name=f"text:{name}", kind="control", source=name) for name in controls),
        Method(name="meco", source=pca, orientation=orientation, **meco),
        Method(name=f"meco ({other})", source=pca, orientation=other, **meco),
        Method(name="meco, any layer", source=pca, orientation=orientation,
               **{**meco, "layers": ()}),
        Method(name="meco, pre_token", source=pca, orientation=orientation, position="pre_token",
               **meco),
        Method(name="meco, mean difference", source=f"{first}.mean_difference",
               orientation=orientation, **meco),
        *(
            Method(name=f"meco, wording {name.split('.')[0]}", source=name, orientation=orientation,
                   **meco)
            for name in readers
            if name.endswith(".pca") and name != pca
        ),
        Method(name="random direction", source=f"{first}.random", orientation=orientation, **meco),
        Method(name="probe: logistic", kind="labels", source="logistic", position="pre_token"),
        Method(name="probe: mean difference", kind="labels", source="mean_difference",
               position="pre_token"),
        Method(name="probe: pca", kind="labels", source="pca", position="pre_token"),
        Method(name="probe: shuffled labels", kind="labels", source="logistic",
               position="pre_token", layers=primary_layers, shuffled=True),
    ]  # fmt: skip
    return [m for m in out if m.kind != "contrast" or m.source in readers]


@dataclasses.dataclass(eq=False)
class Outcome:
    """A method's decisions on the examples that were tested.

    decided: bool [N]; scores, probabilities: float64 [N], NaN where there are none; chosen: per
    rotation the layer, the rule and its accuracy in validation.
    """

    method: Method
    decided: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray
    chosen: list[dict]

    @property
    def validation_accuracy(self) -> float:
        """Mean over rotations of the accuracy in validation."""
        return float(np.mean([c["validation_accuracy"] for c in self.chosen]))


def run_methods(
    methods: Sequence[Method], examples: Sequence[Example], observed: Observations,
    readers: Mapping[str, Reader], given: Mapping[str, np.ndarray], rotations: Sequence[Roles], *,
    rules: Rules = Rules(), seed: int = 0,  # noqa: B008 (frozen)
) -> tuple[dict[str, Outcome], dict[str, dict[str, np.ndarray]]]:  # fmt: skip
    """Decisions of every method on the tested examples.

    Args:
      readers: fitted on contrast pairs, over all layers of `observed`. given: scores float64 [N] of
        kind 'scores'.

    Returns:
      Outcomes by method name, and for methods that read hidden states by layer: 'auroc' and
      'accuracy' (thresholds from validation), float64 [C], means over rotations.
    """
    needed = np.array([e.needed for e in examples], bool)
    count = len(examples)
    outcomes = {
        m.name: Outcome(m, np.zeros(count, bool), np.full(count, np.nan), np.full(count, np.nan),
                        [])
        for m in methods
    }  # fmt: skip
    by_layer: dict[str, list] = {}
    probes: dict[tuple, Reader] = {}
    for number, roles in enumerate(rotations):
        probes.clear()
        for method in methods:
            outcome = outcomes[method.name]
            if method.kind in ("constant", "naive"):
                decided = observed.says_yes if method.kind == "naive" else np.full(
                    count, method.source == "always"
                )  # fmt: skip
                outcome.decided[roles.test] = decided[roles.test]
                right = float(np.mean((decided == needed)[roles.validation]))
                outcome.chosen.append({"validation_accuracy": right})
                continue
            if method.kind in ("scores", "control"):
                table = _flat_scores(method, examples, given, roles)[:, None]
                allowed = [0]
            else:
                table = _layer_scores(method, observed, needed, readers, roles, probes, seed)
                wanted = method.layers or observed.layers
                allowed = [i for i, layer in enumerate(observed.layers) if layer in wanted]
                measured = _by_layer(method, table, observed, needed, roles, rules)
                by_layer.setdefault(method.name, []).append(measured)
            _decide(outcome, table, allowed, observed, needed, roles, rules)
            outcome.chosen[-1]["rotation"] = number
            if method.kind in ("contrast", "labels"):
                place = outcome.chosen[-1].pop("column")
                outcome.chosen[-1]["layer"] = observed.layers[place]
            else:
                outcome.chosen[-1].pop("column")
    layers = {
        name: {
            key: np.mean([entry[key] for entry in entries], axis=0) for key in ("auroc", "accuracy")
        }
        for name, entries in by_layer.items()
    }
    return outcomes, layers


def _flat_scores(method, examples, given, roles) -> np.ndarray:
    if method.kind == "scores":
        return np.asarray(given[method.source], np.float64)
    score = fit_control(method.source, [examples[i] for i in roles.fit])
    out = np.full(len(examples), np.nan)
    places = np.concatenate([roles.validation, roles.test])
    out[places] = score([examples[i] for i in places])
    return out


def _layer_scores(method, observed, needed, readers, roles, probes, seed) -> np.ndarray:
    states = observed.states(method.position)
    if method.kind == "contrast":
        return readers[method.source].score(states)
    key = (method.source, method.position, method.shuffled, method.layers)
    if key not in probes:
        labels = needed[roles.fit]
        if method.shuffled:
            labels = np.random.default_rng(seed).permutation(labels)
        if method.layers:  # others are not looked at
            keep = [i for i, layer in enumerate(observed.layers) if layer in method.layers]
            reader = fit_labels(states[roles.fit][:, keep], labels, method=method.source, seed=seed)
            scores = np.zeros(states.shape[:2])
            scores[:, keep] = reader.score(states[:, keep])
        else:
            reader = fit_labels(states[roles.fit], labels, method=method.source, seed=seed)
            scores = reader.score(states)
        probes[key] = scores
    return probes[key]


def fit_rule(
    method: Method, scores: np.ndarray, yes: np.ndarray, needed: np.ndarray, rules: Rules
) -> DualThreshold | Threshold:
    """The method's thresholds on validation examples."""
    if method.rule == "dual":
        return fit_dual(
            scores, yes, needed, orientation=method.orientation, min_count=rules.min_count
        )
    return fit_threshold(scores, needed)


def apply_rule(rule: DualThreshold | Threshold, scores: np.ndarray, yes: np.ndarray) -> np.ndarray:
    """Whether a tool is called, bool [N]."""
    if isinstance(rule, DualThreshold):
        return rule.decide(scores, yes)
    return rule.decide(scores)


def _by_layer(method, table, observed, needed, roles, rules) -> dict[str, np.ndarray]:
    yes = observed.says_yes
    areas, rights = [], []
    for column in range(table.shape[1]):
        scores = table[:, column]
        rule = fit_rule(
            method, scores[roles.validation], yes[roles.validation], needed[roles.validation], rules
        )
        decided = apply_rule(rule, scores[roles.test], yes[roles.test])
        areas.append(auroc(scores[roles.test], needed[roles.test]))
        rights.append(np.mean(decided == needed[roles.test]))
    return {"auroc": np.array(areas), "accuracy": np.array(rights)}


def _decide(outcome, table, allowed, observed, needed, roles, rules) -> None:
    """Chooses layer and thresholds in validation and decides about the tested examples."""
    method, yes = outcome.method, observed.says_yes
    best = None
    for column in allowed:
        scores = table[roles.validation, column]
        rule = fit_rule(method, scores, yes[roles.validation], needed[roles.validation], rules)
        area = auroc(scores, needed[roles.validation])
        value = (rule.validation_accuracy, area)
        if rules.layer_choice == "auroc":
            value = value[::-1]
        if best is None or value > best[0]:
            best = (value, column, rule)
    _, column, rule = best
    scores = table[:, column]
    outcome.decided[roles.test] = apply_rule(rule, scores[roles.test], yes[roles.test])
    outcome.scores[roles.test] = scores[roles.test]
    outcome.probabilities[roles.test] = _probabilities(method, scores, yes, needed, roles)
    thresholds = {
        name: float(value)
        for name, value in dataclasses.asdict(rule).items()
        if isinstance(value, float)
    }
    outcome.chosen.append({"column": column, **thresholds})


def _probabilities(method, scores, yes, needed, roles) -> np.ndarray:
    """Probabilities by a logistic curve; with dual thresholds one for each answer that is frequent
    enough, since the answer shifts the score.
    """
    out = np.empty(len(roles.test))
    fallback = platt(scores[roles.validation], needed[roles.validation])
    for answer in (True, False):
        test = yes[roles.test] == answer
        known = roles.validation[yes[roles.validation] == answer]
        enough = min(needed[known].sum(), (~needed[known]).sum()) >= 5 if len(known) else False
        curve = fallback
        if method.rule == "dual" and enough:
            curve = platt(scores[known], needed[known])
        if test.any():
            out[test] = curve(scores[roles.test][test])
    return out
