"""A run as a sequence of phases: everything that changes with the number of consumed tokens.

A phase has one batch shape, one RoPE base and one data mix. Learning rates are segments over the
tokens of the whole run and may span several phases. Source: Pangu Ultra (arXiv 2504.07866),
sections 3.1.3 and 3.2; that the cosine runs over tokens, and that a phase ends with the first step
that reaches its border, is our choice (the paper does not say).
"""

from __future__ import annotations

import bisect
import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np


class PhaseError(ValueError):
    """Phases or learning-rate segments that do not fit together; the text names them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training with one batch shape.

    tokens: how many the phase consumes, rounded up to whole steps.
    seq_len: tokens of a row. batch_rows: rows of the global batch.
    rope_base: of the rotary embedding.
    mixture: name of the data mix (a key of the experiment's mixtures).
    """

    name: str
    tokens: float
    seq_len: int
    batch_rows: int
    rope_base: float = 10_000.0
    mixture: str = "general"

    def __post_init__(self):
        for field in ("tokens", "seq_len", "batch_rows", "rope_base"):
            if not getattr(self, field) > 0:
                raise PhaseError(f"phase {self.name!r}: {field}={getattr(self, field)} must be > 0")

    @property
    def tokens_per_step(self) -> int:
        return self.seq_len * self.batch_rows

    @property
    def steps(self) -> int:
        return math.ceil(self.tokens / self.tokens_per_step)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """Learning rate up to `until` consumed tokens, from where the segment before ended.

    kind: 'constant' (at `end`) or 'cosine' from `start` to `end`.
    """

    until: float
    end: float
    start: float | None = None  # cosine only
    kind: Literal["constant", "cosine"] = "constant"

    def __post_init__(self):
        if self.kind not in ("constant", "cosine"):
            raise PhaseError(f"rate kind={self.kind!r} is not one of constant, cosine")
        if self.kind == "cosine" and self.start is None:
            raise PhaseError(f"the cosine rate until {self.until:g} tokens needs a start")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseSchedule:
    """Phases one after the other, and the learning rate over them.

    phases: at least one. rates: ascending in `until`; the last one holds to the end.
    warmup_steps: linear rise from 0 to the rate, which a cosine beginning at 0 waits for: it runs
      from the end of the warm-up to its `until`.
    """

    phases: tuple[Phase, ...]
    rates: tuple[Rate, ...]
    warmup_steps: int = 0

    def __post_init__(self):
        if not self.phases or not self.rates:
            raise PhaseError("a schedule needs at least one phase and one learning rate")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise PhaseError(f"phase names must differ: {', '.join(names)}")
        untils = [rate.until for rate in self.rates]
        if any(b <= a for a, b in zip(untils, untils[1:], strict=False)):
            raise PhaseError(f"rates must ascend in 'until', got {untils}")
        if not 0 <= self.warmup_steps <= self.total_steps:
            raise PhaseError(
                f"warmup_steps={self.warmup_steps} must lie in 0..{self.total_steps} (all steps)"
            )

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def total_tokens(self) -> int:
        return self.tokens_at(self.total_steps)

    def starts(self) -> list[int]:
        """First step of every phase, and the number of steps of the run."""
        return [0, *np.cumsum([phase.steps for phase in self.phases]).tolist()]

    def phase_at(self, step: int) -> int:
        """Index of the phase that does step `step` (0-based); the last one beyond the end."""
        return min(bisect.bisect_right(self.starts(), step) - 1, len(self.phases) - 1)

    def phase_at_tokens(self, tokens: float) -> Phase:
        """The phase that continues a run which has consumed `tokens`, by the nominal borders."""
        borders = np.cumsum([phase.tokens for phase in self.phases])
        index = int(np.searchsorted(borders, tokens, side="right"))
        return self.phases[min(index, len(self.phases) - 1)]

    def tokens_at(self, step: int) -> int:
        """Tokens consumed before step `step`, exact."""
        total = 0
        for phase, start in zip(self.phases, self.starts(), strict=False):
            total += min(max(step - start, 0), phase.steps) * phase.tokens_per_step
        return total

    @property
    def warmup_tokens(self) -> int:
        return self.tokens_at(self.warmup_steps)

    def rate_at_tokens(self, tokens: float) -> float:
        """Learning rate after the warm-up, as a function of consumed tokens (float64)."""
        begin = self.warmup_tokens
        for rate in self.rates:
            if tokens < rate.until or rate is self.rates[-1]:
                if rate.kind == "constant":
                    return rate.end
                share = min(max((tokens - begin) / (rate.until - begin), 0.0), 1.0)
                return rate.end + 0.5 * (rate.start - rate.end) * (1 + math.cos(math.pi * share))
            begin = max(begin, rate.until)
        raise AssertionError  # the last rate returns

    def learning_rate(self, step: int) -> float:
        """Learning rate of step `step` (0-based), float64; the definition of `as_optax`."""
        if step < self.warmup_steps:
            return self.rate_at_tokens(self.warmup_tokens) * step / self.warmup_steps
        return self.rate_at_tokens(self.tokens_at(step))

    def as_optax(self) -> Callable[[jax.Array], jax.Array]:
        """step int32 -> learning rate float32, for optax; float32 arithmetic on the tokens."""
        starts = self.starts()[:-1]
        before = np.asarray([self.tokens_at(s) for s in starts], np.float32)
        per_step = np.asarray([phase.tokens_per_step for phase in self.phases], np.float32)
        begins = [self.warmup_tokens]
        for rate in self.rates[:-1]:
            begins.append(max(begins[-1], rate.until))
        peak = self.rate_at_tokens(self.warmup_tokens)

        def schedule(step):
            step = jnp.asarray(step)
            index = jnp.clip(jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1, 0)
            done = (step - jnp.asarray(starts)[index]).astype(jnp.float32)
            tokens = jnp.asarray(before)[index] + done * jnp.asarray(per_step)[index]
            value = jnp.float32(0)
            for rate, begin in reversed(list(zip(self.rates, begins, strict=True))):
                if rate.kind == "constant":
                    here = jnp.float32(rate.end)
                else:
                    share = jnp.clip((tokens - float(begin)) / float(rate.until - begin), 0.0, 1.0)
                    cosine = 1 + jnp.cos(jnp.pi * share)
                    here = rate.end + 0.5 * (rate.start - rate.end) * cosine
                last = rate is self.rates[-1]
                value = here if last else jnp.where(tokens < rate.until, here, value)
            if not self.warmup_steps:
                return value
            return jnp.where(step < self.warmup_steps, peak * step / self.warmup_steps, value)

        return schedule

    def rescaled(self, tokens: float, *, seq_len: int | None = None, batch_rows: int | None = None,
                 learning_rate: float | None = None, warmup_fraction: float | None = None,
                 ) -> PhaseSchedule:  # fmt: skip
        """The same run in small: all borders scaled so that the phases sum to `tokens`.

        Args:
          seq_len, batch_rows: of the first phase; those of the others keep their ratio to it
            (rounded, at least 1).
          learning_rate: the peak; all rates keep their ratio to it.
          warmup_fraction: of the steps; None scales the warm-up with the tokens.
        """
        first = self.phases[0]
        shrink = tokens / sum(phase.tokens for phase in self.phases)
        length = (seq_len or first.seq_len) / first.seq_len
        rows = (batch_rows or first.batch_rows) / first.batch_rows
        peak = max(max(rate.end, rate.start or 0.0) for rate in self.rates)
        factor = 1.0 if learning_rate is None else learning_rate / peak
        phases = tuple(
            dataclasses.replace(
                phase,
                tokens=phase.tokens * shrink,
                seq_len=max(1, round(phase.seq_len * length)),
                batch_rows=max(1, round(phase.batch_rows * rows)),
            )
            for phase in self.phases
        )
        rates = tuple(
            dataclasses.replace(
                rate,
                until=rate.until * shrink,
                end=rate.end * factor,
                start=None if rate.start is None else rate.start * factor,
            )
            for rate in self.rates
        )
        draft = PhaseSchedule(phases=phases, rates=rates)
        share = self.warmup_steps / self.total_steps if warmup_fraction is None else warmup_fraction
        return dataclasses.replace(draft, warmup_steps=round(share * draft.total_steps))


_T = 1e12
# Specification 3.4. How the last 0.4 T tokens split over the two long-context phases is not
# stated; half and half is a guess, as is that they are the annealing phase.
PANGU_ULTRA = PhaseSchedule(
    phases=(
        Phase(name="general_1", tokens=1.2 * _T, seq_len=4096, batch_rows=1024),
        Phase(name="general_2", tokens=0.7 * _T, seq_len=4096, batch_rows=1536),
        Phase(name="general_3", tokens=5.5 * _T, seq_len=4096, batch_rows=2048),
        Phase(name="general_4", tokens=4.6 * _T, seq_len=4096, batch_rows=2048),
        Phase(name="reasoning", tokens=0.8 * _T, seq_len=8192, batch_rows=1536, rope_base=1e5,
              mixture="reasoning"),
        Phase(name="long_32k", tokens=0.2 * _T, seq_len=32_768, batch_rows=384, rope_base=1.6e6,
              mixture="annealing"),
        Phase(name="long_128k", tokens=0.2 * _T, seq_len=131_072, batch_rows=96, rope_base=2.56e7,
              mixture="annealing"),
    ),
    rates=(
        Rate(until=7.4 * _T, kind="cosine", start=1e-4, end=1e-5),
        Rate(until=12.0 * _T, end=1e-5),
        Rate(until=12.8 * _T, kind="cosine", start=1e-5, end=7.5e-6),
        Rate(until=13.2 * _T, end=7.5e-6),
    ),
    warmup_steps=4000,
)  # fmt: skip
