"""The corpus of a round: what A1 is, what is learned, and how many examples are of which kind."""

import pytest

from agents_jax.tools.bfcl.prompts import REFUSAL, prompt_messages
from agents_jax.tools.toolace_r.refinement_data import (
    RefinementDataConfig,
    build_corpus,
)
from pangu_jax.training.sft.builtin import tiny_tokenizer
from pangu_jax.training.sft.encode import Encoder
from pangu_jax.training.sft.records import parse_chat
from tests.agents_jax.tools.toolace_r.test_selection import item

N = 12
ITEMS = [item(n) for n in range(1, N + 1)]
RIGHT = {i.id: f"[f{n}(a={n})]" for n, i in enumerate(ITEMS, 1)}


def answers(wrong=2, right=6):
    return {
        i.id: (*["[f0(a=0)]"] * (wrong // 2), *["no call"] * (wrong - wrong // 2),
               *[RIGHT[i.id]] * right)
        for i in ITEMS
    }  # fmt: skip


def corpus(first=None, round_number=1, items=ITEMS, **settings):
    first = answers() if first is None else first
    return build_corpus(items, first, RefinementDataConfig(**settings), round_number=round_number)


def test_the_form_of_the_examples():
    made = corpus()
    assert made.num_direct == N and len(made.chats) == 2 * N
    for one, chat in zip(ITEMS, made.chats, strict=False):
        assert chat["messages"] == [
            *prompt_messages(one), {"role": "assistant", "content": RIGHT[one.id]},
        ]  # fmt: skip
    for example, chat in zip(made.refinements, made.chats[N:], strict=True):
        *prompt, first, instruction, target = chat["messages"]
        assert prompt == prompt_messages(next(i for i in ITEMS if i.id == example.id))
        assert first == {"role": "assistant", "content": example.first_answer}
        assert instruction == {"role": "user", "content": RefinementDataConfig().instruction}
        assert target == {"role": "assistant", "content": RIGHT[example.id]}
    assert {e.id for e in made.refinements} == set(RIGHT)  # once each before any comes twice


def test_nothing_is_learned_from_the_first_answer():
    """Through the very encoder that tuning uses: only A and its end mark are targets."""
    tokenizer = tiny_tokenizer()
    made = corpus(per_direct=1.0)
    encoder = Encoder(tokenizer, train_on="last_assistant", max_tokens=4096, too_long="error")
    examples = encoder.encode([parse_chat(c, "here") for c in made.chats])
    assert len(examples) == len(made.chats)
    for chat, example in zip(made.chats, examples, strict=True):
        ((tokens, learn),) = example.sequences
        learned = tokenizer.tokenizer.decode(tokens[learn].tolist(), skip_special_tokens=False)
        assert learned == chat["messages"][-1]["content"] + "<|im_end|>"
    whole = Encoder(tokenizer, train_on="all_assistant", max_tokens=4096, too_long="error")
    of_all = whole.encode([parse_chat(made.chats[-1], "here")])[0]
    assert of_all.labels > examples[-1].labels  # so the choice is what keeps A1 out


@pytest.mark.parametrize("per_direct", [0.0, 0.5, 1.0, 2.5])
def test_the_number_of_refinement_examples(per_direct):
    made = corpus(per_direct=per_direct)
    assert len(made.refinements) == round(per_direct * N) == len(made.chats) - N
    counts = made.counts()
    assert counts["same"] + counts["equivalent"] + counts["wrong"] == counts["refinement"]
    # No item is used more often than any other by more than once.
    uses = [sum(e.id == i.id for e in made.refinements) for i in ITEMS]
    assert max(uses) - min(uses) <= 1


def test_wrong_first_answers_are_at_least_the_share_asked_for():
    free = sum(e.wrong for e in corpus(wrong_share=None, per_direct=4.0).refinements)
    assert 4 <= free <= 20  # a quarter of 48 by the samples
    for share in (0.5, 0.75, 1.0):
        made = corpus(wrong_share=share, per_direct=4.0)
        assert sum(e.wrong for e in made.refinements) >= share * 48
    low = corpus(wrong_share=0.0, per_direct=4.0)
    assert sum(e.wrong for e in low.refinements) == free  # more than the share is not taken back
    some = answers(wrong=0, right=4) | {ITEMS[0].id: ("no call",) * 4}
    made = corpus(some, wrong_share=1.0)  # as far as the samples go
    assert sum(e.wrong for e in made.refinements) == 1


def test_without_right_first_answers():
    made = corpus(keep_correct=False)
    assert all(e.wrong for e in made.refinements) and len(made.refinements) == N
    some = answers(wrong=0, right=4) | {ITEMS[0].id: ("no call",) * 4}
    made = corpus(some, keep_correct=False, per_direct=3.0)
    assert [e.id for e in made.refinements] == [ITEMS[0].id]
    assert corpus(answers(wrong=0), keep_correct=False).refinements == ()


def test_kinds_and_targets():
    first = {i.id: (RIGHT[i.id].replace("[", " [").replace("=", " = "),) for i in ITEMS}
    made = corpus(first)
    assert {e.kind for e in made.refinements} == {"same"}
    assert all(e.target == RIGHT[e.id] for e in made.refinements)


def test_another_right_answer_stays_as_it_is():
    from agents_jax.tools.bfcl.data import make_item

    function = {
        "name": "f", "description": "",
        "parameters": {"type": "dict", "properties": {"s": {"type": "string"}}, "required": ["s"]},
    }  # fmt: skip
    entry = {"id": "x_1", "question": [[{"role": "user", "content": "?"}]], "function": [function]}
    one = make_item(entry, "simple_python", [{"f": {"s": ["Berlin", "Berlin, Germany"]}}])
    first = {one.id: ('[f(s="Berlin, Germany")]',)}
    (example,) = corpus(first, items=[one]).refinements
    assert (example.kind, example.target) == ("equivalent", first[one.id][0])
    (example,) = corpus(first, items=[one], correct_target="gold").refinements
    assert (example.kind, example.target) == ("equivalent", '[f(s="Berlin")]')
    (example,) = corpus({one.id: ("[f(s='Rome')]",)}, items=[one]).refinements
    assert (example.kind, example.target) == ("wrong", '[f(s="Berlin")]')


def test_refusals():
    none = item(3, "irrelevance")
    for text, kind in ((REFUSAL, "same"), ("I cannot help.", "equivalent"), ("[f3(a=1)]", "wrong")):
        (example,) = corpus({none.id: (text,)}, items=[none]).refinements
        assert (example.kind, example.target) == (kind, REFUSAL)


def test_draws_are_repeated_by_seed_and_changed_by_round():
    assert corpus() == corpus()
    assert corpus(seed=1) != corpus()
    assert corpus(round_number=2) != corpus()


@pytest.mark.parametrize(
    ("field", "value"),
    [("per_direct", -1.0), ("wrong_share", 1.5), ("first_answer", "best"), ("correct_target", "x")],
)
def test_settings_that_do_not_work_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        RefinementDataConfig(**{field: value})
