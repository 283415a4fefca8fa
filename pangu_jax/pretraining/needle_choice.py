"""The choice of a RoPE base by the needle test, perplexity deciding between equals.

Pangu Ultra (arXiv 2504.07866, section 3.2) compares bases at the target length in a needle test
and takes the best. The candidates, the statistics and the rule between equals are ours.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pangu_jax.models import DecoderConfig
from pangu_jax.pretraining import needle
from pangu_jax.pretraining.config import NeedleConfig
from pangu_jax.pretraining.needle import Documents, Encode, NeedleError, Row
from pangu_jax.pretraining.needle_score import Scores, score_rows
from pangu_jax.pretraining.objective import with_rope_base

LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One base at one length. Arrays by question; those of controls stand apart.

    exact: bool, greedy decoding says the value. choice: bool, the right value is more probable
      than every other. margin: its log-probability less that of the best other. depths: nominal.
    nll, counted: (controls, buckets), of the contexts without needles.
    """

    base: float
    length: int
    depths: np.ndarray
    exact: np.ndarray
    choice: np.ndarray
    margin: np.ndarray
    control_exact: np.ndarray
    control_choice: np.ndarray
    control_margin: np.ndarray
    nll: np.ndarray
    counted: np.ndarray

    def perplexity(self) -> np.ndarray:
        """By bucket of positions, (buckets,)."""
        return np.exp(self.nll.sum(0) / np.maximum(self.counted.sum(0), 1))

    def last_quarter(self) -> np.ndarray:
        """Mean negative log-likelihood in the last quarter of each control, (controls,)."""
        first = self.nll.shape[1] * 3 // 4
        return self.nll[:, first:].sum(1) / np.maximum(self.counted[:, first:].sum(1), 1)

    def last_quarter_perplexity(self) -> float:
        first = self.nll.shape[1] * 3 // 4
        mean = self.nll[:, first:].sum() / max(self.counted[:, first:].sum(), 1)
        return math.exp(min(mean, 700.0))


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the test came to.

    base: chosen for `target`. clear: whether it differs from every other beyond noise.
    verdict: the reason in words. outcomes: by (length, base), of all lengths and bases.
    """

    base: float
    target: int
    clear: bool
    verdict: str
    outcomes: list[Outcome]

    def at(self, length: int) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.length == length]


def default_bases(base: float, length: int, target: int) -> tuple[float, ...]:
    """Candidates for going from `length` to `target`: base * (target / length)^2, a quarter and
    four times it, and the old base; ascending.

    The square is what the report's bases follow (1e5 at 8K, 1.6e6 at 32K, 2.56e7 at 128K).
    """
    centre = base * (target / length) ** 2
    return tuple(sorted({base, centre / 4, centre, centre * 4}))


def outcome_of(base: float, length: int, rows: Sequence[Row], scores: Scores) -> Outcome:
    """Turns the scores of rows into right and wrong answers."""
    right = np.stack([row.right for row in rows])[..., None]
    own = np.take_along_axis(scores.log_probs, right, -1)[..., 0]
    others = scores.log_probs.copy()
    np.put_along_axis(others, right, -np.inf, -1)
    margin = own - others.max(-1)
    exact = np.take_along_axis(scores.greedy, right, -1)[..., 0]
    control = np.array([row.control for row in rows])
    if not np.isfinite(scores.log_probs).all() or not np.isfinite(scores.nll).all():
        raise NeedleError(
            f"The model gives no finite numbers at length {length} with base {base:g}; the "
            "checkpoint is damaged, or overflows in its compute type (model.dtype)."
        )

    def both(x):
        return x[~control].reshape(-1), x[control].reshape(-1)

    (exact, control_exact), (margin, control_margin) = both(exact), both(margin)
    depths, _ = both(np.stack([row.depths for row in rows]))
    return Outcome(
        base, length, depths, exact, margin > 0, margin, control_exact, control_margin > 0,
        control_margin, scores.nll[control], scores.counted[control],
    )  # fmt: skip


def interval(hits: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, which takes the questions as independent."""
    from scipy.stats import binomtest

    found = binomtest(hits, count).proportion_ci(1 - LEVEL, method="wilson")
    return float(found.low), float(found.high)


def beats(a: Outcome, b: Outcome, level: float) -> bool:
    """Whether `a` answers the same questions better than `b` beyond noise, by greedy answers or by
    choice, and `b` is not better by the other: exact sign tests on the questions that only one of
    them gets right."""
    from scipy.stats import binomtest

    better = worse = False
    for x, y in ((a.exact, b.exact), (a.choice, b.choice)):
        only_a, only_b = int((x & ~y).sum()), int((y & ~x).sum())
        # Two tests, exact and choice, share the level.
        if only_a + only_b and binomtest(only_a, only_a + only_b).pvalue < level / 2:
            better, worse = better or only_a > only_b, worse or only_a < only_b
    return better and not worse


def perplexity_differs(a: Outcome, b: Outcome, level: float) -> bool:
    """Paired t test on the last quarters of the same texts; False for fewer than two texts."""
    from scipy.stats import ttest_1samp

    difference = a.last_quarter() - b.last_quarter()
    if len(difference) < 2 or np.ptp(difference) == 0:
        return False
    return bool(ttest_1samp(difference, 0).pvalue < level)


def choose(outcomes: Sequence[Outcome]) -> tuple[float, bool, str]:
    """(base, whether it is clear, why) of outcomes at one length.

    Leader is who answers most questions exactly, then by choice. Bases that it does not beat
    beyond noise are its equals; the one with the lowest perplexity in the last quarter of
    the contexts wins. All pairs share the level of 5 % (Bonferroni).
    """
    pairs = max(math.comb(len(outcomes), 2), 1)
    level = LEVEL / pairs
    leader = max(
        outcomes, key=lambda o: (o.exact.sum(), o.choice.sum(), -o.last_quarter_perplexity())
    )
    equals = [o for o in outcomes if o is leader or not beats(leader, o, level)]
    best = min(equals, key=lambda o: o.last_quarter_perplexity())
    unsure = [o for o in equals if o is not best and not perplexity_differs(best, o, level)]
    behind = [f"{o.base:g}" for o in outcomes if o not in equals]
    named = ", ".join(f"{o.base:g}" for o in unsure)
    if len(outcomes) == 1:
        return best.base, False, f"Only one base, {best.base:g}, was tried: nothing to choose."
    if len(equals) == 1:
        text = f"Base {best.base:g} answers the needle questions best, beyond noise."
        return best.base, True, text
    if behind:
        start = f"The needle test rules out {', '.join(behind)} and does not separate the rest; "
    else:
        start = "No base differs from the leader beyond noise in the needle test; "
    ppl = f"base {best.base:g} has the lowest perplexity in the last quarter of the contexts"
    if not unsure:
        return best.base, True, f"{start}{ppl}, beyond noise."
    if len(unsure) == len(outcomes) - 1:
        start = "No base differs beyond noise, neither in the needle test nor in perplexity: "
    text = (
        f"{start}{ppl}, but not beyond noise against {named}. More haystacks "
        "(--config.needle.haystacks) or a better trained checkpoint could tell."
    )
    return best.base, False, text


def choose_rope_base(
    config: DecoderConfig, params: Any, documents: Documents, encode: Encode,
    settings: NeedleConfig, *, trained_length: int, trained_base: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:  # fmt: skip
    """Tries every base at every length and chooses one for the longest.

    The same rows are given to every base. The model reads them as one document from position 0.
    Each (base, length) is compiled once; nothing is trained.

    Args:
      config, params: a decoder; its rotary base is replaced.
      documents: held-out text. encode: text to ids, see `needle.encoder`.
      trained_length, trained_base: of the checkpoint, for `default_bases` and default lengths;
        trained_base None: the config's.

    Raises:
      NeedleError: lengths, bases or text that do not fit; see `needle.make_rows`.
    """
    trained_base = trained_base or config.rope_base
    lengths = settings.lengths or tuple(trained_length * times for times in (1, 2, 4))
    too_long = [length for length in lengths if length > settings.max_length]
    if too_long:
        raise NeedleError(
            f"length {too_long[0]} is above --config.needle.max_length={settings.max_length}; "
            "give --config.needle.lengths, or raise the limit."
        )
    lengths = sorted(set(lengths))
    bases = settings.bases or default_bases(trained_base, trained_length, lengths[-1])
    if any(not base > 0 for base in bases):
        raise NeedleError(f"bases={tuple(bases)} must be positive: they are RoPE bases.")
    # All rows before any run: a length that cannot be made is said at once.
    rows = {length: needle.make_rows(documents, encode, settings, length) for length in lengths}
    outcomes = []
    for length, base in itertools.product(lengths, sorted(set(bases))):
        scores = score_rows(
            with_rope_base(config, base), params, rows[length],
            batch_rows=settings.batch_rows, buckets=settings.buckets,
        )  # fmt: skip
        outcome = outcome_of(base, length, rows[length], scores)
        outcomes.append(outcome)
        say(
            f"  length {length:,}, base {base:g}: {outcome.exact.sum()} of {len(outcome.exact)} "
            f"exact (control {outcome.control_exact.sum()} of {len(outcome.control_exact)}), "
            f"choice {outcome.choice.mean():.2f} (control {outcome.control_choice.mean():.2f}), "
            f"perplexity of the last quarter {outcome.last_quarter_perplexity():.4g}"
        )
    base, clear, verdict = choose([o for o in outcomes if o.length == lengths[-1]])
    return Choice(base, lengths[-1], clear, verdict, outcomes)


def needle_for_weights(
    path: str | os.PathLike, texts: Sequence[str], settings: NeedleConfig, *,
    trained_length: int, dtype: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:  # fmt: skip
    """The needle test of imported weights, in text of your own.

    Args:
      path: as in `pangu_jax.weights.load_weights`: a .gguf file, a directory, or 'smollm2'.
      texts: what haystacks are made of; the weights should not have been trained on it.

    Raises:
      NeedleError: weights without a tokenizer, and what `choose_rope_base` raises.
    """
    from pangu_jax.weights import load_weights

    config, params, tokenizer = load_weights(path, dtype=dtype)
    if tokenizer is None:
        raise NeedleError(f"{path} has no tokenizer; the needle test needs one to write needles.")
    encode = needle.encoder(tokenizer.tokenizer)
    documents = needle.documents_from_ids([encode(text) for text in texts])
    return choose_rope_base(
        config, params, documents, encode, settings, trained_length=trained_length, say=say
    )
