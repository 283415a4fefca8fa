"""MeCo: whether a tool is needed, read from a model's hidden states (arXiv 2502.12961)."""

from agents_jax.tools.meco.config import MecoConfig
from agents_jax.tools.meco.decision import DualThreshold, Threshold, fit_dual, fit_threshold
from agents_jax.tools.meco.errors import MecoError, ProbeMismatch
from agents_jax.tools.meco.probe import Probe, ProbeDecision
from agents_jax.tools.meco.reading import Reader, fit_labels, fit_pairs

__all__ = [
    "DualThreshold",
    "MecoConfig",
    "MecoError",
    "Probe",
    "ProbeDecision",
    "ProbeMismatch",
    "Reader",
    "Threshold",
    "fit_dual",
    "fit_labels",
    "fit_pairs",
    "fit_threshold",
]
