"""Evaluation of knowledge tracing: protocols, metrics with intervals, floors, leak checks, report.

The names below are loaded on first use, so importing the package costs nothing.
"""

import importlib

_NAMES = {
    "bootstrap": ("Scores", "compare", "over_seeds", "score"),
    "evaluator": ("Evaluation", "ProtocolResult", "evaluate", "score_protocol"),
    "floors": ("Rates", "bayes_ceiling", "fit_rates", "make_floors"),
    "leaks": (
        "LeakError",
        "check_causality",
        "check_chance",
        "check_disjoint_students",
        "check_no_expanded_duplicates",
        "check_open_loop",
        "check_padding",
        "check_train_only",
        "expanded_duplicates",
        "shuffle_responses",
    ),
    "marginals": ("Collapse", "Marginals", "collapse", "response_marginals"),
    "metrics": ("METRICS", "Reliability", "auc", "point_metrics", "reliability"),
    "protocols": (
        "BUCKETS",
        "Predictor",
        "Protocol",
        "SINGLE_STEP",
        "collect",
        "collect_given",
        "parse_protocol",
        "predictor_of",
        "protocol_masks",
        "standard_protocols",
    ),
    "report": ("TracingReport", "write_report"),
    "rows": ("RowAccumulator", "Rows"),
    "summary": ("SparsityPoint", "TracingEntry", "tables"),
    "student": ("Simulation", "StudentSimulator", "StudentState", "simulate"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
