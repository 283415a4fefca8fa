"""All protocols of one model on one set of students, scored. Letters: B students of a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from recsys_jax.tracing.evaluation.bootstrap import NUM_RESAMPLES, Scores, score
from recsys_jax.tracing.evaluation.marginals import (
    Collapse,
    Marginals,
    collapse,
    response_marginals,
)
from recsys_jax.tracing.evaluation.metrics import NUM_BINS, Reliability, reliability
from recsys_jax.tracing.evaluation.protocols import (
    BUCKETS,
    Predictor,
    Protocol,
    collect,
    standard_protocols,
)
from recsys_jax.tracing.evaluation.rows import Rows


@dataclasses.dataclass(frozen=True)
class ProtocolResult:
    """One model under one protocol.

    overall: all scored steps. buckets: (first, last horizon) -> the steps in it, empty ones left
    out. reliability: calibration. collapse: whether the answers look like students' answers.
    positions: rates of right answers by step; by question see `marginals.response_marginals`.
    """

    protocol: Protocol
    overall: Scores
    buckets: dict[tuple[int, int], Scores]
    reliability: Reliability
    collapse: Collapse
    positions: Marginals


Evaluation = dict[str, ProtocolResult]


def evaluate(
    predictor: Predictor,
    data: Iterable[Any],
    protocols: Sequence[Protocol] | None = None,
    *,
    key: jax.Array | None = None,
    buckets: Sequence[tuple[int, int]] = BUCKETS,
    num_resamples: int = NUM_RESAMPLES,
    num_bins: int = NUM_BINS,
    seed: int = 0,
) -> Evaluation:
    """Protocol name -> result of a model on students and their batches.

    Args:
      data: (students int [B], batch) pairs or what `evaluation_batches` of the data yields.
      protocols: None takes `standard_protocols` with the kinds of feedback the model knows.
      key: for sampled feedback; None is jax.random.key(seed).
      seed: of the bootstrap; the same for all models that are to be compared.
    Raises:
      ValueError: no scored step under some protocol; see also `collect`.
    """
    if protocols is None:
        feedback = predictor.feedback if predictor.rollout is not None else ()
        protocols = standard_protocols(feedback=feedback)
    key = jax.random.key(seed) if key is None else key
    rows = collect(predictor, data, protocols, key)
    return {
        p.name: score_protocol(
            p, rows[p.name], buckets=buckets, num_resamples=num_resamples, num_bins=num_bins,
            seed=seed,
        )
        for p in protocols
    }  # fmt: skip


def score_protocol(
    protocol: Protocol,
    rows: Rows,
    *,
    buckets: Sequence[tuple[int, int]] = BUCKETS,
    num_resamples: int = NUM_RESAMPLES,
    num_bins: int = NUM_BINS,
    seed: int = 0,
) -> ProtocolResult:
    """The result of one protocol from its rows.

    Raises ValueError when there are none.
    """
    if not len(rows):
        raise ValueError(
            f"Protocol {protocol.name!r} scores no step of these students: each of them needs at "
            "least two answers for it, and there must be one such student."
        )
    options = {"num_resamples": num_resamples, "seed": seed, "num_bins": num_bins}
    parts = {bucket: rows.bucket(*bucket) for bucket in buckets}
    return ProtocolResult(
        protocol,
        score(rows, **options),
        {bucket: score(part, **options) for bucket, part in parts.items() if len(part)},
        reliability(rows, num_bins),
        collapse(rows),
        response_marginals(rows, "position", num_resamples=min(num_resamples, 300), seed=seed),
    )
