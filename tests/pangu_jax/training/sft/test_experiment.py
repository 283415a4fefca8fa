"""Runs end to end on a tiny model: resume, LoRA, preferences, distillation, export, mistakes."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.pangu.sft import sft_config
from pangu_jax.models.decoder import Decoder
from pangu_jax.models.lora import bind
from pangu_jax.training.metrics_writer import read_metrics
from pangu_jax.training.sft import FineTuneError, experiment, prepare
from pangu_jax.training.sft.builtin import built_in_chats, built_in_pairs, tiny_model
from pangu_jax.training.sft.config import SftConfig
from pangu_jax.training.sft.distillation import DistillConfig
from pangu_jax.training.sft.encode import Encoder
from pangu_jax.training.sft.objective import make_loss, sequence_log_probs
from pangu_jax.training.sft.packing import fill_row, row_shape
from pangu_jax.training.sft.preference import DpoConfig
from pangu_jax.training.sft.tuning import Tuning
from pangu_jax.weights import load_weights
from pangu_jax.weights.peft import import_peft

CHATS = built_in_chats()[:24]
TOKENS = jnp.array([[5, 9, 40, 3]], jnp.int32)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Four rows cannot be divided over the eight devices of the tests."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
    monkeypatch.setattr(experiment, "make_mesh", lambda config: mesh)


def settings(steps=6, **changes):
    config = sft_config("tiny")
    train = dataclasses.replace(
        config.train, steps=steps, log_every=2, eval_every=3, checkpoint_every=2, progress="none"
    )
    return dataclasses.replace(config, train=train, **changes)


def quiet(line):
    pass


def train(config, workdir, examples=CHATS, **more):
    return experiment.train(config, workdir, examples=examples, say=quiet, **more)


def values(workdir):
    return [
        (r["kind"], r["step"], r["values"]) for r in read_metrics(workdir / "metrics.jsonl")
    ]  # fmt: skip


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("tune", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, tune):
    lora = dataclasses.replace(sft_config("tiny").lora, dropout=0.2)
    config = settings(tune=tune, lora=lora)
    whole = train(config, tmp_path / "whole")
    assert whole.report["held_out_best"]["loss"] < whole.report["held_out_before"]["loss"]

    def interrupt(model, step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    stopped = train(config, tmp_path / "parts", evaluate=interrupt)
    assert stopped.exit_code == 128 + signal.SIGTERM and stopped.export is None
    resumed = train(config, tmp_path / "parts")
    assert_same(whole.fit.state.params, resumed.fit.state.params)
    assert values(tmp_path / "whole") == values(tmp_path / "parts")
    assert resumed.export.is_dir()
    # A finished run does nothing more, and exports the same again.
    again = train(config, tmp_path / "parts")
    assert_same(again.fit.state.params, resumed.fit.state.params)


def test_lora_trains_and_keeps_the_adapter_alone(tmp_path):
    config = settings(tune="lora")
    base = tiny_model()
    before = jax.tree.map(np.array, base.params)
    result = train(config, tmp_path / "run", model=base)
    assert_same(base.params, before)
    trained = result.fit.state.params
    assert sum(x.size for x in jax.tree.leaves(trained)) == result.report["trained_parameters"]
    assert result.report["trained_parameters"] < result.report["parameters"] / 2
    # Exported, read back and bound, it is the model that was evaluated last or best.
    adapter = import_peft(result.export, base.config)
    step, best = experiment._Task.prepare(config, CHATS, None, base).best(tmp_path / "run")
    assert step == result.report["best_step"]
    assert_same(adapter.params, best)
    tuned = Tuning(base.config, config.lora).variables(best, base.params)
    read = {"params": base.params, "lora": bind([adapter])}
    np.testing.assert_allclose(
        Decoder(base.config).apply(read, TOKENS), Decoder(base.config).apply(tuned, TOKENS),
        atol=1e-6,
    )  # fmt: skip


def test_full_tuning_exports_a_model_that_others_read(tmp_path):
    base = tiny_model()
    before = jax.tree.map(np.array, base.params)
    result = train(settings(), tmp_path / "run", model=base)
    assert_same(base.params, before)
    back = load_weights(result.export)
    assert back.tokenizer.special.chat_template == base.tokenizer.special.chat_template
    _, best = experiment._Task.prepare(settings(), CHATS, None, base).best(tmp_path / "run")
    assert_same(back.params, best)
    # Its report says what was there before, and the plot is a picture.
    assert (tmp_path / "run" / "report" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "run" / "report" / "report.json").read_text()) == result.report


def test_further_evaluation_sees_the_tuned_model_and_chooses_the_best(tmp_path):
    seen = {}

    def evaluate(model, step):
        logits = Decoder(model.config).apply(model.variables, TOKENS)
        seen[step] = np.asarray(logits)
        assert model.adapter.base_fingerprint and model.tokenizer.tokenizer.get_vocab_size()
        return {"exact_match": float(-step)}

    config = settings(tune="lora")
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, best_metric="exact_match", best_mode="max")
    )
    result = train(config, tmp_path, evaluate=evaluate)
    assert sorted(seen) == [0, 3, 6]
    base = tiny_model()
    np.testing.assert_allclose(seen[0], Decoder(base.config).apply({"params": base.params}, TOKENS))
    assert np.abs(seen[6] - seen[0]).max() > 1e-3
    assert result.report["best_step"] == 3
    assert result.report["held_out_before"]["exact_match"] == 0


@pytest.mark.parametrize("tune", ["full", pytest.param("lora", marks=pytest.mark.slow)])
def test_preferences_with_the_reference_in_the_step_or_cached(tmp_path, tune):
    pairs = built_in_pairs()[:16]
    runs = {}
    for reference in ("step", "cached"):
        config = settings(objective="dpo", tune=tune, dpo=DpoConfig(reference=reference))
        optimizer = dataclasses.replace(config.train.optimizer, learning_rate=1e-3)
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, optimizer=optimizer)
        )
        # Evaluated on what it is trained on: six steps teach a random model nothing general.
        runs[reference] = train(config, tmp_path / reference, pairs, held_out=pairs)
    before = runs["cached"].report["held_out_before"]
    np.testing.assert_allclose(before["loss"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(before["reward_margin"], 0, atol=1e-4)
    last = values(tmp_path / "cached")[-1][2]
    assert last["loss"] < np.log(2) and last["reward_margin"] > 0
    for a, b in zip(values(tmp_path / "step"), values(tmp_path / "cached"), strict=True):
        assert a[:2] == b[:2]
        # Where policy and reference are equal but for rounding, the sign of a margin means nothing.
        for name in a[2].keys() - {"reward_accuracy"}:
            np.testing.assert_allclose(a[2][name], b[2][name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_distillation_moves_towards_the_teacher(tmp_path):
    teacher = train(settings(), tmp_path / "teacher").export
    config = settings(
        objective="distill", distill=DistillConfig(teacher=str(teacher), forward=0.5)
    )  # fmt: skip
    report = train(config, tmp_path / "student").report
    for name in ("forward_kl", "reverse_kl"):
        assert report["held_out_best"][name] < report["held_out_before"][name]


def test_sequence_log_probs_equal_those_of_the_logits():
    model = tiny_model()
    examples = Encoder(model.tokenizer, max_tokens=200).encode(built_in_pairs()[:3])
    shape = row_shape(examples, 200)
    row = {name: x[None] for name, x in fill_row(examples[:2], shape).items()}
    found = jax.jit(lambda b: sequence_log_probs(model.config, {"params": model.params}, b, 8))(row)
    sequences = [s for e in examples[:2] for s in e.sequences]
    for value, sequence in zip(np.asarray(found)[0], sequences, strict=False):
        logits = Decoder(model.config).apply({"params": model.params}, sequence.tokens[None])[0]
        each = jax.nn.log_softmax(logits)[np.arange(len(sequence.tokens) - 1), sequence.tokens[1:]]
        np.testing.assert_allclose(value, np.sum(each * sequence.learn[1:]), rtol=1e-4)


def test_no_weight_gradient_of_a_frozen_base_is_computed():
    """Of the base's products only those with activations remain in the compiled program."""
    model = tiny_model()
    config = dataclasses.replace(sft_config("tiny"), tune="lora")
    examples = Encoder(model.tokenizer, max_tokens=128).encode(CHATS)
    row = fill_row(examples[:2], row_shape(examples, 128))
    batch = {name: x[None] for name, x in row.items()}
    shapes = {}
    for lora in (None, config.lora):
        tuning = Tuning(model.config, lora)
        loss = make_loss(config, tuning)
        params = jax.eval_shape(lambda k, t=tuning: jax.tree.map(lambda x: x, t.init(k)),
                                jax.random.key(0))  # fmt: skip
        params = experiment.unbox(params)
        program = jax.jit(
            jax.grad(lambda p, b, f, loss=loss: loss(p, b, None, f).total)
        ).lower(params, batch, {"base": model.params}).compile()  # fmt: skip
        text = program.as_text()
        shapes[lora is None] = {
            line.split("= ")[1].split("{")[0] for line in text.splitlines() if " dot(" in line
        }
    # (D, F) and (F, D): gradients of the MLP's kernels; (D, V) or (V, D): of the head.
    d, f, v = model.config.hidden_dim, model.config.mlp_dim, model.config.vocab_size
    of_weights = {f"f32[{a},{b}]" for a, b in ((d, f), (f, d), (d, v), (v, d))}
    assert of_weights & shapes[True]
    assert not of_weights & shapes[False]


def test_epochs_say_how_many_steps(tmp_path):
    config = settings(epochs=2.0)
    task = experiment._Task.prepare(config, CHATS, None, None)
    rows = task.examples.rows_of_epoch(config.train.seed)
    assert task.config.train.steps == round(2 * rows / 4) != config.train.steps


@pytest.mark.parametrize(
    "examples, changes, words",
    [
        (None, {}, "data.train names no examples"),
        (CHATS[:1], {}, "1 example.* cannot be divided"),
        ([{"messages": []}] * 2, {}, r"data.train\[0\].*empty"),
        (built_in_pairs()[:4], {}, "Pair; --config.objective=sft takes Chats"),
        (CHATS, {"objective": "dpo"}, "Chat; --config.objective=dpo takes Pairs"),
        (CHATS, {"objective": "distill"}, "needs --config.distill.teacher"),
        (CHATS, {"seq_len": 8}, "No example is left"),
        (CHATS, {"base": "/nowhere"}, "no file or directory /nowhere"),
        (CHATS, {"chat_template": "/nowhere"}, "no file /nowhere.*chat_template"),
    ],
)
def test_mistakes(tmp_path, examples, changes, words):
    template = changes.pop("chat_template", None)
    config = settings(**changes)
    data = dataclasses.replace(config.data, train=None, chat_template=template)
    with pytest.raises(ValueError, match=words):
        train(dataclasses.replace(config, data=data), tmp_path, examples)


def test_a_teacher_with_other_tokens_is_refused():
    model = tiny_model()
    vocabulary = dataclasses.replace(model.config, vocab_size=model.config.vocab_size + 1)
    with pytest.raises(FineTuneError, match="259 and 260"):
        prepare.check_vocabulary(model, model._replace(config=vocabulary))


def test_other_examples_or_another_base_do_not_continue_a_run(tmp_path):
    config = settings(steps=2)
    train(config, tmp_path)
    longer = settings(steps=4)
    with pytest.raises(FineTuneError, match="examples of this run"):
        train(longer, tmp_path, CHATS[:-1])
    with pytest.raises(FineTuneError, match="base model of this run"):
        train(longer, tmp_path, model=tiny_model(seed=1))
    assert train(longer, tmp_path).report["steps"] == 4


@pytest.mark.parametrize(
    "values, words",
    [
        ({"seq_len": 1}, "seq_len=1"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"epochs": 0.0}, "epochs=0.0"),
        ({"loss_chunk": -1}, "loss_chunk=-1"),
        ({"remat": "some"}, "remat='some'"),
    ],
)
def test_settings_out_of_range(values, words):
    with pytest.raises(ValueError, match=words):
        SftConfig(**values)
