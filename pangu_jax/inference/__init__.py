"""Running a decoder: batches of requests, sampling, scoring, hidden states, serving."""

from pangu_jax.inference.errors import EngineBusy, RequestError, ServerClosed
from pangu_jax.inference.request import (
    Completion,
    Delta,
    Grammar,
    HiddenStatesAt,
    Request,
    SamplingParams,
    TokenLogprob,
)

__all__ = [
    "Completion",
    "Delta",
    "EngineBusy",
    "Grammar",
    "HiddenStatesAt",
    "Request",
    "RequestError",
    "SamplingParams",
    "ServerClosed",
    "TokenLogprob",
]
