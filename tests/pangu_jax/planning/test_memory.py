"""Memory against hand counts and, for a small program, against XLA's own analysis."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pangu_jax.models import Decoder
from pangu_jax.models.loss import cross_entropy
from pangu_jax.models.presets import preset
from pangu_jax.parallel.layout import Layout
from pangu_jax.parallel.sharding import unbox
from pangu_jax.planning.execution import Execution, PlanError
from pangu_jax.planning.layer import layer_parameters, layer_work
from pangu_jax.planning.memory import memory_plan, rank_parameters, units_in_flight
from pangu_jax.planning.pipeline import pipeline_schedule

ULTRA = preset("ultra_135b")
PAPER = Layout(data=128, pipe=8, tensor=8, virtual_stages=6, microbatches=16)
# bfloat16 parameters, float32 copies and moments divided over data.
MIXED = Execution(param_dtype="bfloat16", master=True)


def test_arguments_of_the_paper_layout_by_hand():
    # All layers, embedding and head divided by 64, what the optimizer keeps by 8,192.
    alone = dataclasses.replace(MIXED, replicate_ends=False, lock_step=False)
    ranks = [memory_plan(ULTRA, PAPER, 4096, alone, rank=r).arguments for r in range(8)]
    count = ULTRA.num_parameters()
    assert np.mean(ranks) == pytest.approx(count * 2 / 64 + count * 12 / 8192, rel=1e-3)
    assert np.mean(ranks) == pytest.approx(4.38e9, rel=1e-3)


def test_arguments_with_ends_on_every_rank_by_hand():
    # 96 slots of layers on 8 ranks and both ends everywhere, as one program for all ranks has it:
    # 5.33 GB were found by compiling such a program.
    layers = 96 * layer_parameters(ULTRA) / 64
    ends = 2 * ULTRA.vocab_size * ULTRA.hidden_dim / 8
    expected = (layers + ends) * (2 + 12 / 128)
    got = memory_plan(ULTRA, PAPER, 4096, MIXED).arguments
    assert got == pytest.approx(expected, rel=0.01)
    assert got == pytest.approx(5.33e9, rel=0.015)


def test_parameters_of_the_ranks_sum_to_the_model():
    alone = Execution(replicate_ends=False, lock_step=False)
    total = sum(rank_parameters(ULTRA, PAPER, r, alone) for r in range(8)) * 8
    assert total == pytest.approx(ULTRA.num_parameters(), rel=1e-9)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_zero_stages(zero):
    plan = memory_plan(ULTRA, dataclasses.replace(PAPER, zero=zero), 4096, Execution(), rank=0)
    count = rank_parameters(ULTRA, PAPER, 0, Execution())
    assert plan.optimizer == pytest.approx(8 * count / (128 if zero >= 1 else 1))
    assert plan.gradients == pytest.approx(4 * count / (128 if zero >= 2 else 1))
    assert plan.parameters == pytest.approx(4 * count / (128 if zero == 3 else 1))


def test_units_in_flight():
    assert units_in_flight(PAPER) == 55  # (6 + 1) * 8 - 1
    assert [units_in_flight(PAPER, rank) for rank in (1, 7)] == [53, 41]
    assert units_in_flight(Layout(pipe=4, microbatches=4)) == 4  # never more than there are
    assert units_in_flight(Layout(microbatches=9)) == 1
    # Independent of the number of micro-batches.
    assert units_in_flight(dataclasses.replace(PAPER, microbatches=160)) == 55
    with pytest.raises(PlanError, match="rank=8"):
        units_in_flight(PAPER, 8)


@pytest.mark.parametrize(("pipe", "virtual", "count"), [(4, 3, 8), (4, 1, 4), (2, 3, 6), (3, 2, 3)])
def test_units_in_flight_are_those_of_the_schedule(pipe, virtual, count):
    layout = Layout(pipe=pipe, virtual_stages=virtual, microbatches=count)
    schedule = pipeline_schedule(layout)
    for rank in range(pipe):
        assert units_in_flight(layout, rank) == schedule.in_flight(rank)


def test_stash_of_inputs_by_hand():
    plan = memory_plan(ULTRA, PAPER, 4096, Execution(), rank=0)
    # 55 inputs in flight, one activation and one gradient on their way, one idle slot of each;
    # the sequence divided over tensor.
    assert plan.stash == (55 + 1 + 1 + 3) * 4096 * 12_288 * 2 / 8
    alone = Execution(lock_step=False)
    assert [memory_plan(ULTRA, PAPER, 4096, alone, rank=r).stash for r in (0, 7)] == [
        n * 4096 * 12_288 * 2 / 8 for n in (55, 41)
    ]
    whole = dataclasses.replace(PAPER, sequence_parallel=False)
    assert memory_plan(ULTRA, whole, 4096, Execution(), rank=0).stash == 8 * plan.stash


def test_remat_policies_keep_less_and_less():
    kept = [
        layer_work(ULTRA, PAPER, 4096, Execution()).kept_bytes(
            Execution().recomputed(dataclasses.replace(ULTRA, remat=policy))
        )
        for policy in ("none", "products", "dots", "attention", "nothing")
    ]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 5
    assert kept[-1] == 4096 * 12_288 * 2 / 8


def test_total_is_the_sum_and_the_fullest_rank_is_taken():
    plan = memory_plan(ULTRA, PAPER, 4096)
    assert plan.total == sum(plan.parts.values())
    assert plan.total == max(memory_plan(ULTRA, PAPER, 4096, rank=rank).total for rank in range(8))


def _step_memory(model, rows, length):
    """XLA's analysis of one training step on one device."""
    decoder, optimizer = Decoder(model), optax.adamw(1e-3)

    def loss(params, tokens):
        out = decoder.apply({"params": params}, tokens, method="run")
        sums = cross_entropy(out.hidden, out.head, tokens, chunk=model.loss_chunk)
        return sums.total / sums.weight

    def step(params, state, tokens):
        grads = jax.grad(loss)(params, tokens)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    tokens = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    params = jax.eval_shape(
        lambda key: unbox(decoder.init(key, jnp.zeros((1, 8), jnp.int32))["params"]),
        jax.random.key(0),
    )
    state = jax.eval_shape(optimizer.init, params)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, tokens).compile()
    return compiled.memory_analysis()


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "nothing"])
def test_against_xla_on_one_device(remat):
    # Float32 throughout, so that the CPU backend's promotion of bfloat16 plays no part.
    model = preset(
        "debug", num_layers=6, hidden_dim=96, mlp_dim=224, norm_scheme="pre_ln", remat=remat,
        loss_chunk=64,
    )  # fmt: skip
    rows, length = 8, 256
    found = _step_memory(model, rows, length)
    plan = memory_plan(model, Layout(microbatch_rows=rows), length)
    tokens = rows * length * 4
    assert found.argument_size_in_bytes == pytest.approx(plan.arguments + tokens, rel=0.01)
    assert found.temp_size_in_bytes == pytest.approx(plan.total - plan.arguments, rel=0.35)
