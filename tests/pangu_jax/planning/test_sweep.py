"""Sweeps over layouts and the ablation."""

import dataclasses

import pytest

from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout, check_layout
from pangu_jax.parallel.topology import topology
from pangu_jax.planning.ablation import ablation, fastest_that_fits, program_steps
from pangu_jax.planning.cost import predict
from pangu_jax.planning.execution import MEGATRON_STACK, PARTS, Execution, PlanError
from pangu_jax.planning.sweep import SweepConfig, candidates, sweep

ULTRA = preset("ultra_135b")
ASCEND = topology("ascend_8192")
PAPER = Layout(data=128, pipe=8, tensor=8, virtual_stages=6, microbatches=16, overlap=True)
SMALL = SweepConfig(
    pipe=(1, 4), tensor=(1, 8), context=(1, 2), virtual_stages=(1, 3), remat=("none", "nothing"),
    microbatch_rows=(1,), overlap=(False,), top=4,
)  # fmt: skip


def test_entries_fit_are_allowed_and_ordered():
    model, where = preset("llama3_8b"), topology("h100_64")
    found = sweep(model, where, seq_len=8192, batch_rows=128, config=SMALL)
    assert 1 <= len(found.entries) <= 4 and found.tried > found.too_large
    seconds = [entry.prediction.seconds for entry in found.entries]
    assert seconds == sorted(seconds)
    for entry in found.entries:
        layout = entry.prediction.layout
        assert layout.batch_rows == 128 and layout.devices == 64
        check_layout(layout, model, seq_len=8192, batch_rows=128, topology=where)
        assert entry.prediction.memory.total <= 0.9 * where.memory_bytes
        again = predict(dataclasses.replace(model, remat=entry.remat), layout, where, 8192)
        assert again.seconds == entry.prediction.seconds


def test_the_best_is_the_best_of_all_candidates():
    model, where = preset("llama3_8b"), topology("h100_64")
    config = dataclasses.replace(SMALL, top=100)
    found = sweep(model, where, seq_len=8192, batch_rows=128, config=config)
    fitting, tried = [], 0
    for layout in candidates(model, where, 8192, 128, Layout(), config):
        every = [
            predict(dataclasses.replace(model, remat=remat), layout, where, 8192)
            for remat in config.remat
        ]
        fits = [p.memory.total <= 0.9 * where.memory_bytes for p in every]
        fitting += [p.seconds for p, fit in zip(every, fits, strict=True) if fit]
        tried += 1 if fits[0] else 2
        # Repeating less is never slower, so the first policy that fits is the best.
        assert every[0].seconds <= every[1].seconds
    assert found.entries[0].prediction.seconds == min(fitting)
    assert found.tried == tried
    assert found.entries[-1].prediction.seconds <= max(fitting)


def test_candidates_are_whole_layouts():
    layouts = list(candidates(ULTRA, ASCEND, 4096, 2048, PAPER, SweepConfig(max_pipe=8)))
    assert len(set(layouts)) == len(layouts) > 100
    for layout in layouts:
        assert layout.devices == 8192 and layout.batch_rows == 2048
        assert not (layout.zero == 3 and layout.pipe > 1)
        assert not (layout.overlap and layout.tensor == 1)
    assert any(
        (x.data, x.pipe, x.tensor, x.virtual_stages, x.microbatches) == (128, 8, 8, 6, 16)
        for x in layouts
    )


def test_what_never_fits_is_said():
    with pytest.raises(PlanError, match="No layout fits"):
        sweep(ULTRA, topology("h100_8"), seq_len=4096, batch_rows=8, config=SMALL)
    with pytest.raises(PlanError, match="room"):
        SweepConfig(room=0.0)


@pytest.fixture(scope="module")
def steps():
    long = Layout(data=8, pipe=8, context=16, tensor=8, virtual_stages=6, microbatches=12,
                  overlap=True)  # fmt: skip
    return ablation(ULTRA, ASCEND, {"4K": (4096, PAPER), "128K": (131_072, long)})


def test_each_optimization_of_the_ablation_helps(steps):
    for phase in ("4K", "128K"):
        mfu = [step.predictions[phase].mfu for step in steps]
        assert mfu == sorted(mfu)
    # Balanced context ranks can only help where there are context ranks.
    assert steps[-1].predictions["4K"].mfu == steps[-2].predictions["4K"].mfu
    assert steps[-1].predictions["128K"].mfu > 1.1 * steps[-2].predictions["128K"].mfu


def test_ablation_starts_and_ends_near_the_paper(steps):
    # 43 % and over 52 %, with nothing fitted; the second row is the paper's starting point.
    assert steps[1].predictions["4K"].mfu == pytest.approx(0.43, abs=0.06)
    assert steps[-1].predictions["4K"].mfu == pytest.approx(0.52, abs=0.06)
    assert steps[-1].predictions["4K"].fits and steps[-1].recomputed["4K"] in [(), ("pointwise",)]
    assert steps[0].predictions["4K"].layout.virtual_stages == 1
    assert not steps[0].predictions["128K"].fits  # S x S scores


def test_fastest_that_fits_takes_the_leanest_where_nothing_fits():
    again, found = fastest_that_fits(ULTRA, PAPER, ASCEND, 4096, MEGATRON_STACK)
    assert found.fits and again == ()
    huge = dataclasses.replace(PAPER, microbatch_rows=64)
    again, found = fastest_that_fits(ULTRA, huge, ASCEND, 4096, MEGATRON_STACK)
    assert not found.fits and again == PARTS


def test_changes_to_the_program_add_up():
    model = dataclasses.replace(ULTRA, remat="none")
    plain = dataclasses.replace(PAPER, overlap=False)
    found = program_steps(model, ASCEND, {"4K": (4096, plain)}, Execution())
    mfu = [step.predictions["4K"].mfu for step in found]
    assert mfu == sorted(mfu) and len(set(mfu)) == len(mfu)
    assert found[0].predictions["4K"].seconds == predict(model, plain, ASCEND, 4096).seconds


def test_rings_of_neighbours_suit_a_switch_and_not_a_full_mesh():
    for where, helps in ((topology("h100_8192"), True), (ASCEND, False)):
        plain = predict(ULTRA, dataclasses.replace(PAPER, overlap=False), where, 4096)
        rings = predict(ULTRA, PAPER, where, 4096)
        direct = predict(ULTRA, PAPER, where, 4096, Execution(exchange="direct"))
        assert (rings.seconds < plain.seconds) == helps
        assert direct.seconds < plain.seconds
