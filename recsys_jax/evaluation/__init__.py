"""Full-catalogue evaluation of recommenders: ranking, metrics, intervals, reports, predictions.

The names below are loaded on first use, so importing the package costs nothing.
"""

import importlib

_NAMES = {
    "evaluator": ("EvaluationError", "EvaluationResult", "Evaluator", "UserLists", "evaluate"),
    "intervals": (
        "Comparison",
        "Interval",
        "SeedSummary",
        "aggregate_seeds",
        "bootstrap_means",
        "compare_models",
        "holm",
        "mean_interval",
        "paired_test",
    ),
    "metrics": (
        "coverage",
        "gini",
        "multi_target_metrics",
        "popularity_percentile",
        "rank_metrics",
        "ranks_from_topk",
        "recommendation_counts",
    ),
    "predictions": ("PredictionError", "write_predictions"),
    "ranking": ("NOT_RANKED", "Ranking", "rank_targets_and_topk"),
    "report": ("RecommendationExample", "Report", "print_table", "write_report"),
    "sharded": ("pad_rows", "rank_targets_and_topk_sharded"),
    "summary": ("ModelEntry", "ModelSummary", "ReportError", "read_curves", "summarise"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
