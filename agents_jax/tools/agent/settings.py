"""How the agent loop asks, and where it ends."""

from __future__ import annotations

import dataclasses
import math

from agents_jax.tools.agent.styles import FORMS, Style
from agents_jax.tools.calls import Form


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of a loop; the values are ours.

    style: 'native' or 'prompted', see styles.py; form: in which the prompted style wants calls.
    constrained: hold a required call of the prompted style to the offered tools by a pattern (see
      call_patterns.py); the model must take patterns. The native style does so wherever the server
      does.
    system: text of a system message before every task; '' for none.
    max_turns: turns of the model. max_calls: calls of tools per task. time_limit_s: seconds per
      task; a call of the model is cut off there, a running tool ends by its own timeout.
    max_repeats: how often a call may give what the same call gave before. max_unparsable: how often
      the model is told that its calls cannot be read.
    max_candidates: most tools offered; more are cut to those that BM25 finds nearest to the query.
    max_tokens, temperature, seed: of every answer.
    execute: run the calls; otherwise the task ends with the first turn that has any.
    """

    style: Style = "native"
    form: Form = "python"
    constrained: bool = False
    system: str = ""
    max_turns: int = 8
    max_calls: int = 16
    time_limit_s: float = 300.0
    max_repeats: int = 2
    max_unparsable: int = 1
    max_candidates: int = 16
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    execute: bool = True

    def __post_init__(self):
        if self.style not in ("native", "prompted"):
            raise ValueError(f"style={self.style!r} is unknown; allowed: native, prompted.")
        if self.form not in FORMS:
            raise ValueError(f"form={self.form!r} is unknown; allowed: {', '.join(FORMS)}.")
        if self.constrained and self.style != "prompted":
            raise ValueError(
                "constrained=True is for style='prompted'; in the native style the server decides."
            )
        least = {"max_turns": 1, "max_calls": 1, "max_candidates": 1, "max_tokens": 1}
        for name, low in (least | {"max_repeats": 0, "max_unparsable": 0}).items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}={getattr(self, name)} is not allowed; at least {low}.")
        if not 0 < self.time_limit_s < math.inf:
            raise ValueError(f"time_limit_s={self.time_limit_s} is not allowed; above 0.")
