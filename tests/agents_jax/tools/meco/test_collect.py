"""Hidden states and first tokens: places, layers, what is kept on disk."""

import dataclasses

import numpy as np
import pytest
from meco_made import LAYERS, WIDTH, example, example_set, model, states_of

from agents_jax.llm import BatchError, CallError, Choice, MissingCapability, Token
from agents_jax.tools.meco import MecoError
from agents_jax.tools.meco.answers import answer_logprobs
from agents_jax.tools.meco.collect import StateStore
from agents_jax.tools.meco.contrast import RESPONSES, WORDINGS, Wording, make_pairs, truncations
from agents_jax.tools.meco.identity import depth_of, same_model
from agents_jax.tools.meco.prompts import messages

CHATML = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_second_run_asks_nothing(tmp_path):
    data = example_set(40)
    first = model()
    observed = StateStore(first, tmp_path, LAYERS).observe(data.examples)
    assert observed.first_token.shape == observed.pre_token.shape == (40, 3, WIDTH)
    np.testing.assert_array_equal(observed.says_yes, [i % 3 != 0 for i in range(40)])
    second = model()
    again = StateStore(second, tmp_path, LAYERS).observe(data.examples[::-1])
    for name in ("logprobs", "first_token", "pre_token"):
        np.testing.assert_array_equal(getattr(again, name), getattr(observed, name)[::-1])
    assert len(second.asked) == 1  # the sentence that tells models apart


def test_what_was_read_before_a_failure_is_kept(tmp_path):
    data = example_set(70)

    def fails(request):
        if "number 69" in (request.prompt or request.messages[-1]["content"]):
            return CallError("server", "gone")
        return states_of(request)

    with pytest.raises(BatchError):
        StateStore(model(hidden=fails), tmp_path, LAYERS).observe(data.examples)
    whole = model()
    StateStore(whole, tmp_path, LAYERS).observe(data.examples)
    asked = {r.messages[-1]["content"] for r in whole.asked if r.messages}
    assert 0 < len(asked) < 70


def test_the_generated_answer_is_appended_and_both_places_are_told_apart(tmp_path):
    asked = model()
    observed = StateStore(asked, tmp_path, LAYERS).observe(example_set(4).examples)
    requests = [r for r in asked.asked if r.kind == "hidden_states" and r.messages]
    said = {r.messages[-1]["content"]: r.continuation for r in requests}
    for one, yes in zip(example_set(4).examples, observed.says_yes, strict=True):
        assert said[messages(one)[-1]["content"]] == ("Yes" if yes else "No")
    assert all(r.positions == (-1, -2) and r.normed for r in requests)


def test_a_folder_of_another_model_or_other_layers_is_refused(tmp_path):
    StateStore(model(), tmp_path, LAYERS)
    other = model(hidden=lambda r: states_of(r) + 1.0, name="other")
    with pytest.raises(MecoError, match="of 'made'.*not of 'other'"):
        StateStore(other, tmp_path, LAYERS)
    with pytest.raises(MecoError, match="layers"):
        StateStore(model(), tmp_path, (-2, -1))
    with pytest.raises(MecoError, match="different negative numbers"):
        StateStore(model(), tmp_path / "new", (0, -1))


def test_damaged_files_are_named(tmp_path):
    store = StateStore(model(), tmp_path, LAYERS)
    store.observe(example_set(4).examples)
    (file,) = tmp_path.glob("states-*.npz")
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(MecoError, match="is damaged.*delete it"):
        StateStore(model(), tmp_path, LAYERS)
    file.unlink()
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(MecoError, match="model.json is damaged"):
        StateStore(model(), tmp_path, LAYERS)


def test_pickled_arrays_are_refused(tmp_path):
    StateStore(model(), tmp_path, LAYERS)
    np.savez(tmp_path / "states-bad.npz", keys=np.array([{"a": 1}], dtype=object))
    with pytest.raises(MecoError, match="is damaged"):
        StateStore(model(), tmp_path, LAYERS)


def test_an_endpoint_has_no_hidden_states(tmp_path):
    remote = model(capabilities=("generate", "chat", "score", "logprobs"))
    with pytest.raises(MissingCapability, match="hidden_states.*MeCo reads hidden states.*local"):
        StateStore(remote, tmp_path, LAYERS)
    with pytest.raises(MecoError, match="does not say how many layers.*--config.layers"):
        depth_of(model())


def test_answers_among_the_likeliest_tokens_are_not_scored_again():
    top = (("Yes", -1.0), ("The", -1.2), (" yes", -3.0), ("No", -2.0))

    def answer(request):
        number = int(request.messages[-1]["content"].split("number ")[1].split()[0])
        kept = top if number == 0 else top[:2]
        return Choice("Yes", logprobs=(Token("Yes", -1.0, kept),))

    asked = model(answers=answer, scores={"Yes": -9.0, "No": -5.0})
    chats = [messages(e) for e in example_set(2).examples]
    plain, summed = answer_logprobs(asked, chats)
    # The second lacks No: it alone is scored, and keeps what it knows of Yes.
    np.testing.assert_allclose(plain, [[-1.0, -2.0], [-1.0, -5.0]])
    np.testing.assert_allclose(summed[0], [np.logaddexp(-1.0, -3.0), -2.0])
    assert [r.kind for r in asked.asked].count("score") == 1


def test_reference_states_tell_weights_apart_and_not_roundings():
    rng = np.random.default_rng(0)
    one = rng.standard_normal(50).astype(np.float32)
    assert same_model(one, one * (1 + 1e-3 * rng.standard_normal(50)).astype(np.float32))
    assert not same_model(one, rng.standard_normal(50).astype(np.float32))
    assert not same_model(one, one[:-1])


def test_pairs_share_question_and_response_and_differ_in_the_instruction():
    wording = WORDINGS["pretend"]
    pairs = make_pairs(example_set(6).examples, wording, layers=LAYERS, seed=1)
    for one, pair in zip(example_set(6).examples, pairs, strict=True):
        strong, weak = (r.messages[-1]["content"] for r in (pair.strong, pair.weak))
        assert strong.replace(wording.strong, wording.weak) == weak != strong
        assert pair.strong.continuation == pair.weak.continuation
        assert pair.strong.continuation in RESPONSES[one.needed]
        assert one.query in strong
    with pytest.raises(MecoError, match="two different texts"):
        Wording("same", "same")


def test_truncations_are_the_states_of_the_first_tokens():
    rng = np.random.default_rng(0)
    strong = [rng.standard_normal((2, length, 3)) for length in (5, 2)]
    weak = [rng.standard_normal((2, length, 3)) for length in (5, 2)]
    positive, negative, owner = truncations(strong, weak, 3)
    assert owner.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(positive[2], strong[0][:, 2])
    np.testing.assert_array_equal(negative[4], weak[1][:, 1])
    with pytest.raises(MecoError, match="contrast pair 0"):
        truncations(strong, [weak[0][:, :3], weak[1]], 3)


@pytest.fixture(scope="module")
def local():
    from tiny_model import tiny_model

    from agents_jax.llm.local import LocalModel
    from pangu_jax.inference.config import EngineConfig
    from pangu_jax.inference.engine import Engine

    tiny = tiny_model()
    special = dataclasses.replace(tiny.tokenizer.special, chat_template=CHATML)
    loaded = tiny._replace(tokenizer=tiny.tokenizer._replace(special=special))
    config = EngineConfig(context_length=512, max_rows=2, page_size=32, prefill_tokens=64)
    with LocalModel(Engine(loaded, config, model_name="tiny")) as model:
        yield tiny, model


def test_on_a_real_engine_places_and_layers_are_those_of_the_model(local, tmp_path):
    """Three tokens make up 'Yes' here: the first of them and the one before it count."""
    from pangu_jax.inference.hidden_states import hidden_states
    from pangu_jax.inference.weights import prepare_weights

    tiny, real = local
    data = example_set(3).examples
    depth = depth_of(real)
    assert depth == tiny.config.num_layers
    observed = StateStore(real, tmp_path, range(-depth, 0)).observe(data)
    weights = prepare_weights(tiny.config, tiny.params, "float32")
    for index, one in enumerate(data):
        text = "".join(f"<{m['role']}>{m['content']}\n" for m in messages(one)) + "<assistant>"
        answer = "Yes" if observed.says_yes[index] else "No"
        ids = tiny.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        more = tiny.tokenizer.tokenizer.encode(answer, add_special_tokens=False).ids
        # Layer l of the engine is after l blocks; the last one passes the final norm.
        states = hidden_states(
            tiny.config, weights, [ids + more], layers=range(1, depth + 1),
            positions=(len(ids), len(ids) - 1), normed=True,
        )[0]  # fmt: skip
        np.testing.assert_allclose(observed.first_token[index], states[:, 0], atol=2e-4)
        np.testing.assert_allclose(observed.pre_token[index], states[:, 1], atol=2e-4)
        assert observed.tokens[index] == len(ids) + len(more)


def test_log_probabilities_are_those_of_the_reference(local):
    from tiny_model import log_probabilities

    tiny, real = local
    chat = messages(example(5, True))
    text = "".join(f"<{m['role']}>{m['content']}\n" for m in chat) + "<assistant>"
    (found,), _ = answer_logprobs(real, [chat])
    for value, answer in zip(found, ("Yes", "No"), strict=True):
        ids = tiny.tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        more = tiny.tokenizer.tokenizer.encode(answer, add_special_tokens=False).ids
        table = log_probabilities(ids + more, tiny)
        expected = sum(table[len(ids) - 1 + i, token] for i, token in enumerate(more))
        assert value == pytest.approx(expected, abs=1e-3)
