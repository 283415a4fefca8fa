"""Prompt and continuation as tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents_jax.llm import InvalidRequest
from agents_jax.llm.tokens import continuation_ids


@pytest.fixture(scope="module")
def byte_level():
    from tiny_model import make_tokenizer

    return make_tokenizer().tokenizer


@pytest.fixture(scope="module")
def sentence_piece():
    """A space is put before every text, as SentencePiece does; 'A'+'n' and '▁'+'Y' are merged."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    letters = ["▁", *"AYNansweror:.\n"]
    vocab = {t: i for i, t in enumerate([*dict.fromkeys(letters), "An", "▁Y"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("A", "n"), ("▁", "Y")]))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    return tokenizer


texts = st.text("thin aZ!\né€", min_size=1, max_size=12)


@given(texts, texts)
def test_the_prompts_tokens_never_change_and_nothing_is_lost(byte_level, prompt, continuation):
    before, after, method = continuation_ids(byte_level, prompt, continuation, special=True)
    assert before == byte_level.encode(prompt).ids
    assert byte_level.decode(before + after, skip_special_tokens=False) == prompt + continuation
    whole = byte_level.encode(prompt + continuation).ids
    assert method == ("joint" if whole[: len(before)] == before else "separate")
    assert method == "separate" or before + after == whole


def test_a_merge_over_the_boundary_is_undone(byte_level):
    before, after, method = continuation_ids(byte_level, "wi", "n", special=True)
    assert method == "joint" or len(after) == 1
    before, after, method = continuation_ids(byte_level, "at", "he", special=True)
    assert method == "separate" and before == byte_level.encode("at").ids
    assert after == byte_level.encode("he").ids


def test_no_space_is_put_before_a_continuation(sentence_piece):
    tokens = sentence_piece.id_to_token
    before, after, method = continuation_ids(sentence_piece, "answer: ", "Yes", special=True)
    # Joint, '▁Y' would swallow the prompt's last token; alone, a space would be put before.
    assert method == "separate"
    assert [tokens(i) for i in after][0] == "Y"
    before, after, method = continuation_ids(sentence_piece, "answer:", " Yes", special=True)
    assert method == "joint" and [tokens(i) for i in after][0] == "▁Y"


def test_a_prompt_without_tokens_is_refused(byte_level):
    with pytest.raises(InvalidRequest, match="no token"):
        continuation_ids(byte_level, "", "a", special=True)
