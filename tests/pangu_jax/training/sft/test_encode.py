"""Tokens of examples: exactly the answers are learned; long ones are counted, never lost."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pangu_jax.training.sft.builtin import CHATML, built_in_pairs
from pangu_jax.training.sft.encode import Encoder, _exact_offsets
from pangu_jax.training.sft.errors import FineTuneError
from pangu_jax.training.sft.records import Chat, parse_chat
from tests.pangu_jax.training.sft.templates import LLAMA3, MARKED, SMOLLM2, chat, tokenizer

ANSWER = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


def encode(template, *chats, **options):
    loaded = tokenizer(template)
    encoder = Encoder(loaded, **{"max_tokens": 10_000, **options})
    return loaded, encoder.encode(chats), encoder.report


def learned(loaded, example):
    (sequence,) = example.sequences
    return loaded.tokenizer.decode(
        sequence.tokens[sequence.learn].tolist(), skip_special_tokens=False
    )


@pytest.mark.parametrize("template", [CHATML, SMOLLM2, MARKED])
@given(turns=st.lists(st.tuples(ANSWER, ANSWER), min_size=1, max_size=3))
def test_exactly_the_answers_and_their_ends_are_learned(template, turns):
    messages = [pair for q, a in turns for pair in (("user", q), ("assistant", a))]
    loaded, (example,), report = encode(template, chat(*messages))
    assert learned(loaded, example) == "".join(f"{a}<|im_end|>" for _, a in turns)
    # Bytes never lie across an edge, and what comes before the first answer is not learned.
    assert report.cut_across == 0
    assert report.learned == example.labels <= report.tokens == example.size


@given(answer=ANSWER)
def test_a_trimmed_answer_has_nothing_behind_its_end(answer):
    loaded, (example,), _ = encode(LLAMA3, chat(("user", "q"), ("assistant", answer)))
    assert learned(loaded, example).endswith("<|im_end|>")
    assert example.sequences[0].learn[-1]


def test_a_token_across_the_edge_of_an_answer_is_counted_and_not_learned():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from pangu_jax.weights import LoadedTokenizer

    loaded = tokenizer(CHATML)
    vocabulary = loaded.tokenizer.get_vocab(with_added_tokens=False)
    merged = models.BPE({**vocabulary, "ĊĊ": len(vocabulary)}, [("Ċ", "Ċ")])
    bpe = Tokenizer(merged)
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    encoder = Encoder(LoadedTokenizer(bpe, loaded.special), max_tokens=1000)
    (example,) = encoder.encode([chat(("user", "q"), ("assistant", "\na"))])
    (sequence,) = example.sequences
    assert bpe.decode(sequence.tokens[sequence.learn].tolist(), skip_special_tokens=False) == (
        "a<|im_end|>"
    )
    assert encoder.report.cut_across == 1
    assert any("edge of an answer" in line for line in encoder.report.lines())


def test_offsets_include_the_blanks_that_a_post_processor_trims():
    from tokenizers import processors

    loaded = tokenizer(CHATML)
    loaded.tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    text = "a  b\n"
    trimmed = loaded.tokenizer.encode(text).offsets
    exact = _exact_offsets(loaded).encode(text).offsets
    assert exact == [(i, i + 1) for i in range(len(text))]
    assert trimmed != exact
    # The caller's own tokenizer is left alone.
    assert loaded.tokenizer.encode(text).offsets == trimmed


def test_raw_text_learns_the_completion_and_the_end():
    raw = parse_chat({"prompt": "1+1=", "completion": "2\n"}, "f:1", raw=True)
    loaded, (example,), _ = encode(None, raw)
    assert learned(loaded, example) == "2\n<|im_end|>"


def test_pairs_share_their_prompt():
    loaded, examples, report = encode(CHATML, *built_in_pairs()[:3])
    for example in examples:
        better, worse = example.sequences
        start = int(np.flatnonzero(better.learn)[0])
        np.testing.assert_array_equal(better.tokens[:start], worse.tokens[:start])
        assert not worse.learn[:start].any()
    assert report.read == report.kept == 3


LONG = chat(("user", "q" * 30), ("assistant", "a" * 50))
SHORT = chat(("user", "q"), ("assistant", "a"))


def test_long_examples_are_dropped_and_counted():
    _, examples, report = encode(CHATML, SHORT, LONG, max_tokens=80)
    assert len(examples) == report.kept == 1 and report.read == 2
    assert report.dropped == {"with more than 80 tokens": 1}
    assert any("left out: 1 with more than 80 tokens" in line for line in report.lines())


def test_long_examples_are_shortened_and_counted():
    loaded, examples, report = encode(CHATML, SHORT, LONG, max_tokens=80, too_long="truncate")
    assert [e.size for e in examples] == [examples[0].size, 80]
    assert set(learned(loaded, examples[1])) == {"a"}
    assert report.truncated == 1 and report.kept == 2


def test_nothing_is_learned_from_a_prompt_alone():
    _, examples, report = encode(CHATML, SHORT, LONG, max_tokens=40, too_long="truncate")
    assert len(examples) == 1
    assert report.dropped == {"whose answer begins behind 40 tokens": 1}


def test_long_pairs_get_half_the_room_each():
    pair = built_in_pairs()[0]
    size = encode(CHATML, pair)[1][0].size
    _, (example,), report = encode(CHATML, pair, max_tokens=size - 4, too_long="truncate")
    assert example.size <= size - 4 and report.truncated == 1
    assert all(s.learn.any() for s in example.sequences)


def test_long_examples_can_be_refused():
    with pytest.raises(FineTuneError, match=r"test:1 has 1\d\d tokens.*seq_len=80.*too_long"):
        encode(CHATML, LONG, max_tokens=80, too_long="error")


def test_no_example_left_is_an_error_that_says_why():
    with pytest.raises(FineTuneError, match="No example is left.*more than 80 tokens"):
        encode(CHATML, LONG, max_tokens=80)
    with pytest.raises(FineTuneError, match="No example is left"):
        encode(CHATML)


def test_empty_answers_are_counted():
    empty = Chat(messages=({"role": "user", "content": "q"}, {"role": "assistant", "content": ""}))
    assert encode(CHATML, empty)[2].empty_answers == 1
