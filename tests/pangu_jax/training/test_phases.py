"""The token-based schedule against the numbers of the report, and its invariants."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.training.phases import PANGU_ULTRA, Phase, PhaseError, PhaseSchedule, Rate

T = 1e12


@pytest.mark.parametrize(
    ("tokens", "seq_len", "rows", "base", "rate"),
    [
        (1.2 * T - 1, 4096, 1024, 1e4, None),
        (1.2 * T, 4096, 1536, 1e4, None),
        (1.9 * T - 1, 4096, 1536, 1e4, None),
        (1.9 * T, 4096, 2048, 1e4, None),
        (7.4 * T, 4096, 2048, 1e4, 1e-5),
        (12.0 * T - 1, 4096, 2048, 1e4, 1e-5),
        (12.0 * T, 8192, 1536, 1e5, 1e-5),
        (12.8 * T, 32_768, 384, 1.6e6, 7.5e-6),
        (13.1 * T, 131_072, 96, 2.56e7, 7.5e-6),
    ],
)
def test_pangu_ultra_at_the_borders(tokens, seq_len, rows, base, rate):
    phase = PANGU_ULTRA.phase_at_tokens(tokens)
    assert (phase.seq_len, phase.batch_rows, phase.rope_base) == (seq_len, rows, base)
    if rate is not None:
        assert math.isclose(PANGU_ULTRA.rate_at_tokens(tokens), rate, rel_tol=1e-12)


def test_pangu_ultra_learning_rate_by_the_formula_of_the_specification():
    warm = 4000 * 1024 * 4096
    assert PANGU_ULTRA.warmup_tokens == warm and math.isclose(warm, 16.8e9, rel_tol=2e-3)
    assert PANGU_ULTRA.learning_rate(0) == 0.0
    assert math.isclose(PANGU_ULTRA.learning_rate(1000), 0.25e-4)
    assert math.isclose(PANGU_ULTRA.learning_rate(4000), 1e-4)
    for tokens in (0.5 * T, 1.9 * T, 5 * T, 7.4 * T - 1):
        want = 1e-5 + 0.5 * 9e-5 * (1 + math.cos(math.pi * (tokens - warm) / (7.4 * T - warm)))
        assert math.isclose(PANGU_ULTRA.rate_at_tokens(tokens), want, rel_tol=1e-12)
    for tokens in (12.0 * T, 12.4 * T, 12.8 * T - 1):
        want = 7.5e-6 + 0.5 * 2.5e-6 * (1 + math.cos(math.pi * (tokens - 12 * T) / (0.8 * T)))
        assert math.isclose(PANGU_ULTRA.rate_at_tokens(tokens), want, rel_tol=1e-12)


def test_pangu_ultra_steps_and_tokens():
    steps = [phase.steps for phase in PANGU_ULTRA.phases]
    # The specification's table, to one step of rounding.
    np.testing.assert_allclose(steps[:5], [286_102, 111_262, 655_651, 548_363, 63_578], atol=1)
    assert abs(steps[5] + steps[6] - 31_800) < 20
    assert math.isclose(PANGU_ULTRA.total_tokens, 13.2 * T, rel_tol=1e-5)
    starts = PANGU_ULTRA.starts()
    for index, (start, end) in enumerate(zip(starts, starts[1:], strict=False)):
        assert PANGU_ULTRA.phase_at(start) == PANGU_ULTRA.phase_at(end - 1) == index


def test_optax_schedule_equals_the_definition():
    schedule = jax.jit(PANGU_ULTRA.as_optax())
    borders = np.array(PANGU_ULTRA.starts()[:-1])
    rng = np.random.default_rng(0)
    steps = np.concatenate(
        [[0, 1, 3999, 4000, 4001], borders, borders[1:] - 1, rng.integers(0, 1_680_000, 50)]
    )
    got = np.array([schedule(jnp.int32(s)) for s in steps])
    want = np.array([PANGU_ULTRA.learning_rate(int(s)) for s in steps])
    np.testing.assert_allclose(got, want, rtol=2e-5)


def test_rescaled_keeps_shares_ratios_and_ends():
    small = PANGU_ULTRA.rescaled(
        1e6, seq_len=64, batch_rows=64, learning_rate=1e-2, warmup_fraction=0.05
    )
    assert [phase.seq_len for phase in small.phases] == [64, 64, 64, 64, 128, 512, 2048]
    assert [phase.batch_rows for phase in small.phases] == [64, 96, 128, 128, 96, 24, 6]
    shares = np.array([phase.tokens for phase in small.phases]) / 1e6
    want = np.array([phase.tokens for phase in PANGU_ULTRA.phases]) / (13.2 * T)
    np.testing.assert_allclose(shares, want)
    assert small.warmup_steps == round(0.05 * small.total_steps)
    assert math.isclose(max(small.learning_rate(s) for s in range(small.total_steps)), 1e-2)
    assert math.isclose(small.learning_rate(small.total_steps - 1), 7.5e-4)


def test_mistakes_are_named():
    phase = Phase(name="a", tokens=10, seq_len=2, batch_rows=1)
    with pytest.raises(PhaseError, match="seq_len=0"):
        Phase(name="a", tokens=10, seq_len=0, batch_rows=1)
    with pytest.raises(PhaseError, match="names must differ"):
        PhaseSchedule(phases=(phase, phase), rates=(Rate(until=20, end=1.0),))
    with pytest.raises(PhaseError, match="ascend"):
        rates = (Rate(until=20, end=1.0), Rate(until=10, end=1.0))
        PhaseSchedule(phases=(phase,), rates=rates)
    with pytest.raises(PhaseError, match="needs a start"):
        Rate(until=20, end=1.0, kind="cosine")
    with pytest.raises(PhaseError, match="warmup_steps=9"):
        PhaseSchedule(phases=(phase,), rates=(Rate(until=10, end=1.0),), warmup_steps=9)
