"""The evaluation on the simulator's batches, with its exact predictor and a model of the field."""

import importlib

import jax
import numpy as np
import pytest

from recsys_jax.tracing import data as tracing_data
from recsys_jax.tracing.evaluation import floors, leaks, protocols
from recsys_jax.tracing.evaluation.bootstrap import compare
from recsys_jax.tracing.evaluation.evaluator import evaluate
from recsys_jax.tracing.evaluation.protocols import SINGLE_STEP, Protocol
from recsys_jax.tracing.evaluation.student import StudentSimulator, roller_of, simulate
from recsys_jax.tracing.models import registry

PROTOCOLS = [SINGLE_STEP, Protocol(0.0, "threshold"), Protocol(0.5, "threshold")]


@pytest.fixture(scope="module")
def data():
    return tracing_data.load(
        {"simulator": {"num_students": 200, "num_questions": 30, "seed": 3},
         "clean": {"max_length": 40}}
    )  # fmt: skip


def test_floors_lie_below_the_exact_predictor(data):
    train = [b.batch for b in data.evaluation_batches("train", batch_size=64)]
    test = list(data.evaluation_batches("test", batch_size=16))
    leaks.check_disjoint_students(
        {part: getattr(data.splits, part) for part in ("train", "valid", "test")}
    )
    ceiling = floors.bayes_ceiling(data.simulation.world, data.log.question_ids)
    leaks.check_causality(ceiling.logits, test[0].batch)
    best = evaluate(ceiling, test, PROTOCOLS, num_resamples=200)
    for name, floor in floors.make_floors(floors.fit_rates(train)).items():
        found = evaluate(floor, test, PROTOCOLS, num_resamples=200)
        for protocol in PROTOCOLS:
            a, b = best[protocol.name].overall, found[protocol.name].overall
            assert a.num_students == len(data.splits.test)
            difference = compare(a, b, "log-loss").difference
            # True in expectation; on these students it may be off by noise alone.
            assert difference.low < 0, (name, protocol.name)
    single, free = best["single-step"].overall, best["open loop, threshold"].overall
    assert single.values["log-loss"] < free.values["log-loss"]


def test_a_model_of_the_field_through_every_protocol(data):
    spec = registry.model_spec("dkt")
    model = spec.module(
        spec.config_class(), int(data.log.question.max()), int(data.log.concepts.values.max())
    )
    (item,) = list(data.evaluation_batches("test", batch_size=64))[:1]
    batch = jax.tree.map(lambda x: x[:6], item.batch)
    variables = model.init(jax.random.key(0), batch)
    predictor = protocols.predictor_of(model, variables)
    leaks.check_causality(predictor.logits, batch)
    leaks.check_padding(predictor.logits, batch)
    observed = np.broadcast_to(np.arange(batch.mask.shape[1]) < 5, batch.mask.shape)
    for feedback in predictor.feedback:
        leaks.check_open_loop(predictor.rollout, batch, observed, feedback=feedback)
    chosen = protocols.standard_protocols(prefixes=(0.5,), feedback=predictor.feedback, rollouts=2)
    found = evaluate(predictor, [(item.students[:6], batch)], chosen, num_resamples=5)
    assert list(found) == [p.name for p in chosen]
    # What comes right after the prefix does not depend on what is fed back later.
    first = {
        name: rows.where(rows.horizon == 1).probability
        for name, rows in protocols.collect(
            predictor, [(item.students[:6], batch)], chosen, jax.random.key(1)
        ).items()
        if name.startswith("prefix")
    }
    for name, p in first.items():
        np.testing.assert_allclose(p, first["prefix 0.5, single-step"], atol=1e-5, err_msg=name)

    # The environment and the list of questions give the same student.
    concepts = np.zeros((int(data.log.question.max()) + 1, batch.concepts.shape[-1]), np.int32)
    concepts[batch.questions[batch.mask]] = batch.concepts[batch.mask]
    asked = [int(q) for q in batch.questions[0, :6]]
    student = StudentSimulator(predictor.logits, concepts, max_steps=8, answer="threshold")
    steps = [student.step(q) for q in asked]
    listed = simulate(roller_of(model, variables), [asked], concepts, feedback="threshold")
    np.testing.assert_allclose(listed.probability[0], [p for _, p in steps], atol=1e-5)


def test_every_name_is_reached_from_the_package():
    """A function must not be hidden by a module of its name, whatever was imported before."""
    from recsys_jax.tracing import evaluation

    for name in evaluation.__all__:
        module = importlib.import_module(f"recsys_jax.tracing.evaluation.{evaluation._HOME[name]}")
        assert getattr(evaluation, name) is getattr(module, name)
    with pytest.raises(AttributeError):
        evaluation.nothing  # noqa: B018
