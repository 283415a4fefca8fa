"""Knowledge tracing: the models of the field on one set of students, beside the floors.

    python launch.py --config=configs/recsys/tracing.py                    # simulated students
    python launch.py --config=configs/recsys/tracing.py:csv --config.data.path=answers.csv \
        --config.data.columns.student=user --config.data.columns.question=item \
        --config.data.columns.concepts=skill --config.data.columns.response=correct
    python launch.py --mode=predict --workdir=runs/tracing-simulated       # simulate answers

`assist2009` reads AKT's files of ASSISTments 2009 with question ids, `ednet` PEBG's file of EdNet;
give the folder or file by --config.data.path. Other kinds: see docs/tracing_data.md.
"""

from configs.recsys import _tracing as base
from pangu_jax.config.catalogue import Variant

FAST = ("question_mean", "logistic", "dkt", "simplekt")
PYKT = ("dkt", "dkvmn", "sakt", "akt")

VARIANTS = {
    "simulated": Variant(
        "4 models on simulated students",
        "3 min 7 s",
        "AUC logistic .775, simpleKT .742, DKT .718",
    ),
    "assist2009": Variant(
        "DKT, DKVMN, SAKT, AKT on ASSISTments 2009, 3 seeds",
        "45 min a seed on busy cores",
        "AUC .746, .739, .716, .781 (seed 0)",
    ),
    "ednet": Variant("the same on EdNet", "not measured", "docs/knowledge_tracing.md"),
    "all": Variant("all models on simulated students", "not measured", "not measured"),
    "csv": Variant("4 models on a CSV file", "depends on the log", "your numbers"),
    "debug": Variant("5 models, tiny, 120 students", "33 s", "runs through"),
}


def get_config(variant: str = "simulated"):
    if variant == "simulated":
        return base.experiment("simulated", {name: base.entry(name) for name in FAST}, epochs=30)
    if variant == "csv":
        return base.experiment("csv", {name: base.entry(name) for name in FAST})
    if variant in ("assist2009", "ednet"):
        data = {"assist2009": "assist2009_windows"}.get(variant, variant)
        models = {name: base.entry(name) for name in PYKT}
        models["akt"]["learning_rate"] = 3e-4
        return base.experiment(data, models, seeds=(0, 1, 2))
    if variant == "all":
        models = {name: base.entry(name) for name in base.ALL}
        return base.experiment("simulated", models, epochs=30)
    if variant == "debug":
        return base.debug(base.tiny_models(("question_mean", "logistic", "dkt", "akt", "advkt")))
    raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
