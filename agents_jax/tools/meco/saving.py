"""Probes of a study, fitted on all of a set, as files."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.tools.meco.collect import StateStore
from agents_jax.tools.meco.config import MecoConfig
from agents_jax.tools.meco.contrast import Wording
from agents_jax.tools.meco.examples import assign_folds
from agents_jax.tools.meco.methods import Rules, fit_rule
from agents_jax.tools.meco.probe import Probe
from agents_jax.tools.meco.reading import Reader, fit_labels
from agents_jax.tools.meco.study import SetStudy, final_methods

_SETS = ("relevance_matched", "relevance", "swap", "metatool_matched", "metatool")
_FILES = {"meco": "meco.npz", "probe: logistic": "logistic.npz"}


def save_probes(
    folder: pathlib.Path, studies: Mapping[str, SetStudy],
    readers: Mapping[int, Mapping[str, Reader]], store: StateStore, model: LanguageModel,
    config: MecoConfig, wordings: Mapping[str, Wording],
) -> list[pathlib.Path]:  # fmt: skip
    """Writes meco.npz (unsupervised direction) and logistic.npz (supervised) for the first set at
    hand whose question names tools; thresholds and layer come from one fold of it, or for MeCo,
    which fits no direction there, from all of it.
    """
    name = next((n for n in _SETS if n in studies), None)
    if name is None:
        return []
    study, seed = studies[name], config.seeds[0]
    observed, needed = study.observed, study.data.labels
    yes = observed.says_yes
    rules = Rules(config.min_count, config.layer_choice)
    held = assign_folds(study.data.examples, config.folds, seed) == 0
    written = []
    for method in final_methods(config, list(readers[seed]), observed.layers):
        states = observed.states(method.position)
        if method.kind == "contrast":
            reader, chooses = readers[seed][method.source], np.ones(len(needed), bool)
        else:
            reader = fit_labels(states[~held], needed[~held], method=method.source, seed=seed)
            chooses = held
        reader = reader.standardised(states[chooses])
        scores = reader.score(states)
        wanted = method.layers or observed.layers
        best = None
        for column, layer in enumerate(observed.layers):
            if layer not in wanted:
                continue
            rule = fit_rule(
                method, scores[chooses, column], yes[chooses], needed[chooses], rules
            )  # fmt: skip
            if best is None or rule.validation_accuracy > best[0]:
                best = (rule.validation_accuracy, column, rule)
        _, column, rule = best
        wording = wordings[method.source.split(".")[0]] if method.kind == "contrast" else None
        probe = Probe(
            direction=reader.directions[column], center=reader.centers[column],
            layer=observed.layers[column], position=method.position,
            offset=float(reader.offset[column]), scale=float(reader.scale[column]), rule=rule,
            template=study.data.examples[0].template,
            instructions=() if wording is None else (wording.strong, wording.weak),
            model=model.name, reference=store.reference,
            about=f"{method.name}, fitted on {name} ({len(needed)} examples)",
        )  # fmt: skip
        path = folder / _FILES[method.name]
        probe.save(path)
        written.append(path)
    return written
