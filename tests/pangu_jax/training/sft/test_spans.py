"""Where answers stand, found from templates of several families; templates that are refused."""

import pytest

from pangu_jax.training.sft.builtin import CHATML
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.spans import render_spans
from tests.pangu_jax.training.sft.templates import (
    LLAMA3,
    MARKED,
    OPENS_THINKING,
    SMOLLM2,
    STRIPS_THINKING,
    TOOLS,
    chat,
    texts,
    tokenizer,
)

TWO = chat(("user", "one"), ("assistant", "eins"), ("user", "two"), ("assistant", " zwei "))


@pytest.mark.parametrize(
    "template, expected",
    [
        (SMOLLM2, ["eins<|im_end|>\n", " zwei <|im_end|>\n"]),
        (CHATML, ["eins<|im_end|>\n", " zwei <|im_end|>\n"]),
        (LLAMA3, ["eins<|im_end|>", "zwei<|im_end|>"]),
        (MARKED, ["eins<|im_end|>\n", " zwei <|im_end|>\n"]),
    ],
    ids=["smollm2", "chatml", "llama3", "marked"],
)
def test_answers_of_a_template(template, expected):
    loaded = tokenizer(template)
    (rendered,) = render_spans(loaded, TWO)
    assert texts(rendered) == expected
    (last,) = render_spans(loaded, TWO, "last_assistant")
    assert last.text == rendered.text and texts(last) == expected[1:]
    each = render_spans(loaded, TWO, "each_assistant")
    assert [texts(r) for r in each] == [[e] for e in expected]
    assert rendered.text.startswith(each[0].text)


def test_marks_and_differences_agree():
    assert render_spans(tokenizer(MARKED), TWO) == render_spans(tokenizer(CHATML), TWO)


def test_what_follows_the_last_answer_is_cut_off():
    more = chat(*TWO.messages, ("user", "three"))
    for template in (CHATML, MARKED):
        loaded = tokenizer(template)
        assert render_spans(loaded, more) == render_spans(loaded, TWO)


def test_two_answers_in_a_row_are_two_spans():
    twice = chat(("user", "q"), ("assistant", "a"), ("assistant", "b"))
    (rendered,) = render_spans(tokenizer(CHATML), twice)
    assert texts(rendered) == ["a<|im_end|>\n", "b<|im_end|>\n"]


def test_a_question_that_quotes_the_answer_is_not_learned():
    tricky = chat(
        ("user", "say <|im_start|>assistant\nyes<|im_end|>\n"), ("assistant", "yes"),
    )  # fmt: skip
    (rendered,) = render_spans(tokenizer(CHATML), tricky)
    assert rendered.spans[0][1] == len(rendered.text)
    assert texts(rendered) == ["yes<|im_end|>\n"]


THOUGHTS = chat(
    ("user", "one"), ("assistant", "<think>x</think>eins"),
    ("user", "two"), ("assistant", "<think>y</think>zwei"),
)  # fmt: skip


def test_a_template_that_rewrites_earlier_turns_is_refused_or_taken_turn_by_turn():
    loaded = tokenizer(STRIPS_THINKING)
    with pytest.raises(FineTuneError) as caught:
        render_spans(loaded, THOUGHTS)
    assert "test:1" in str(caught.value) and "each_assistant" in str(caught.value)
    (last,) = render_spans(loaded, THOUGHTS, "last_assistant")
    assert texts(last) == ["<think>y</think>zwei<|im_end|>\n"]
    assert "<think>x" not in last.text and "eins" in last.text
    first, second = render_spans(loaded, THOUGHTS, "each_assistant")
    assert texts(first) == ["<think>x</think>eins<|im_end|>\n"]
    assert second == last


def test_a_template_that_opens_a_turn_otherwise_is_refused():
    plain = chat(("user", "one"), ("assistant", "eins"))
    with pytest.raises(FineTuneError, match="message 1.*as it opens it.*chat_template"):
        render_spans(tokenizer(OPENS_THINKING), plain)


def test_tools_are_written_or_refused():
    schema = ({"name": "weather"},)
    call = {"type": "function", "function": {"name": "weather", "arguments": {"at": "Rome"}}}
    calling = chat(
        ("user", "hot?"), {"role": "assistant", "content": "", "tool_calls": [call]},
        ("tool", "30"), ("assistant", "Yes."), tools=schema,
    )  # fmt: skip
    (rendered,) = render_spans(tokenizer(TOOLS), calling)
    assert texts(rendered) == [
        '<call>{"name": "weather", "arguments": {"at": "Rome"}}</call><|im_end|>\n',
        "Yes.<|im_end|>\n",
    ]
    assert rendered.text.startswith('<|im_start|>system\n[{"name": "weather"}]')
    with pytest.raises(FineTuneError, match="test:1 has tools, which the chat template does not"):
        render_spans(tokenizer(CHATML), chat(*TWO.messages, tools=schema))
    with pytest.raises(FineTuneError, match="tool_calls, which the chat template does not"):
        render_spans(tokenizer(CHATML), chat(*calling.messages))


@pytest.mark.parametrize(
    "template, words",
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "test:1.*roles must alternate"),
        ("{% for m in messages %}", "test:1"),
        (MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", ""), None),
        ("{% if endgeneration %}{% endif %}{{ messages[0].content }}", "marks no answer"),
    ],
)
def test_templates_that_do_not_work(template, words):
    if words is None:
        assert texts(render_spans(tokenizer(template), TWO)[0])[0] == "eins<|im_end|>\n"
        return
    with pytest.raises(FineTuneError, match=words):
        render_spans(tokenizer(template), TWO)


def test_a_template_that_changes_a_marked_block_is_refused():
    template = MARKED.replace("{% for message", "{% filter upper %}{% for message").replace(
        "{% endfor %}", "{% endfor %}{% endfilter %}", 1
    )
    # Upper case leaves the marks where they are, so the spans are still right.
    (rendered,) = render_spans(tokenizer(template), TWO)
    assert texts(rendered)[0].startswith("EINS")
    doubled = MARKED.replace("{% generation %}", "{% set x %}{% generation %}").replace(
        "{% endgeneration %}", "{% endgeneration %}{% endset %}{{ x | replace('s', 's') | trim }}"
    )
    with pytest.raises(FineTuneError, match="changes the text of"):
        render_spans(tokenizer(doubled), TWO)
    with pytest.raises(FineTuneError, match="holds one of the characters"):
        render_spans(tokenizer(MARKED), chat(("user", "\ufdd0"), ("assistant", "a")))
