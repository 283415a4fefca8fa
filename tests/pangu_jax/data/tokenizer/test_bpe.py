"""Byte-level BPE: any text comes back, exact sizes, special tokens, files."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from pangu_jax.data.tokenizer import (  # noqa: E402
    BpeConfig,
    TokenizerError,
    as_plain_text,
    build_tokenizer,
    bytes_per_token,
    load_tokenizer,
    save_tokenizer,
    tokenizer_hash,
    train_bpe,
    train_merges,
)
from pangu_jax.data.tokenizer.bpe import training_texts  # noqa: E402

TEXTS = [
    "the theme of this thesis is that the thing is there, then and now",
    "    def forward(self, x):\n        return self.layer(x) + 1234\n",
    "naïve café, 汉字和日本語, emoji 👩‍💻, tab\tend\r\n",
] * 3
CONFIG = BpeConfig(vocab_size=330)


@pytest.fixture(scope="module")
def tokenizer():
    return as_plain_text(train_bpe(TEXTS, CONFIG))


@given(st.text())
@example("汉" * 5000)
@example(" \n\t\u3000\x00\r\n" * 300)
@example("👩‍💻🏳️‍🌈 ½٣ 12345 é e\u0301 \ufeff\ufffd \U0010ffff")
@example("<|eod|><|unused0|>")
def test_any_unicode_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


@given(st.lists(st.sampled_from(["<|eod|>", "<|pad|>", "<|", "eod", "|>", " ", "x"]), max_size=8))
def test_special_tokens_in_a_text_are_plain_text(tokenizer, parts):
    text = "".join(parts)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert min(ids, default=99) >= len(CONFIG.special_tokens)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_ids_are_specials_then_bytes_then_learned(tokenizer):
    assert tokenizer.get_vocab_size() == 330
    assert [tokenizer.id_to_token(i) for i in range(4)] == list(CONFIG.special_tokens)
    assert all(len(tokenizer.id_to_token(i)) == 1 for i in range(4, 260))
    assert all(len(tokenizer.id_to_token(i)) > 1 for i in range(260, 330))


def test_digits_stay_single_or_merge():
    texts = ["within 2024 and 2024 and 2024 and 2024"] * 4
    single = train_bpe(texts, BpeConfig(vocab_size=265))
    runs = train_bpe(texts, BpeConfig(vocab_size=265, digits="runs"))
    assert single.encode("2024").tokens == ["2", "0", "2", "4"]
    assert len(runs.encode("2024").ids) < 4


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    save_tokenizer(tokenizer, path)
    loaded = load_tokenizer(path)
    assert tokenizer_hash(loaded) == tokenizer_hash(tokenizer)
    assert loaded.encode("<|eod|> the 汉").ids == tokenizer.encode("<|eod|> the 汉").ids


def test_training_twice_gives_the_same():
    assert train_merges(TEXTS, CONFIG) == train_merges(iter(TEXTS), CONFIG)


@given(
    st.lists(st.sampled_from(["字", "字" * 300, "a1_" * 99, "=", "-=" * 150, " \n" * 99, ".x "]))
)
def test_training_cuts_long_runs_only(parts):
    text = "".join(parts)
    pieces = list(training_texts([text]))
    assert "".join(pieces) == text
    run = re.compile(r"\w+|\s+|[^\w\s]+")
    assert all(len(found) <= 128 for piece in pieces for found in run.findall(piece))
    if max(map(len, run.findall(text)), default=0) <= 128:
        assert pieces == [text]


def test_text_without_spaces_trains():
    """As one word it would take minutes, ten times as much hours."""
    letters = np.random.default_rng(0).zipf(1.3, 100_000) % 2000
    text = "".join(chr(0x4E00 + letter) for letter in letters)
    tokenizer = train_bpe([text], BpeConfig(vocab_size=2000))
    assert bytes_per_token(tokenizer, [text]) > 3
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one string", "not as one string"),
        (["text", b"bytes"], "Text 1 is bytes"),
        (["a\ud800"], r"Text 0 has the lone surrogate '\\ud800' at character 1"),
    ],
)
def test_what_is_no_text_is_named(texts, message):
    with pytest.raises(TokenizerError, match=message):
        train_merges(texts, CONFIG)


def test_bytes_per_token_counts_bytes(tokenizer):
    texts = ["the thing", "汉字"]
    tokens = sum(len(tokenizer.encode(t).ids) for t in texts)
    assert bytes_per_token(tokenizer, texts) == (9 + 6) / tokens
    assert np.isnan(bytes_per_token(tokenizer, []))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 200}, "at least 260"),
        ({"eod_token": "<end>"}, "'<end>' is not among"),
        ({"special_tokens": ("<|eod|>", "<|eod|>")}, "repeat"),
        ({"digits": "pairs"}, "'pairs'"),
    ],
)
def test_unusable_settings_are_named(change, message):
    with pytest.raises(TokenizerError, match=message):
        BpeConfig(**change)


def test_too_little_text_and_no_text_are_errors():
    with pytest.raises(TokenizerError, match="fewer than"):
        train_bpe(["abab abab"], BpeConfig(vocab_size=4096))
    with pytest.raises(TokenizerError, match="no text"):
        train_bpe([], CONFIG)


def test_a_merge_needs_its_parts():
    with pytest.raises(TokenizerError, match="needs the token 'he'"):
        build_tokenizer(["the"], [("t", "he")], CONFIG)
    with pytest.raises(TokenizerError, match="twice"):
        build_tokenizer(["th", "th"], [("t", "h")], CONFIG)


def test_files_that_are_no_tokenizer_are_errors(tmp_path):
    with pytest.raises(TokenizerError, match="There is no tokenizer"):
        load_tokenizer(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(TokenizerError, match="not a tokenizer.json"):
        load_tokenizer(tmp_path / "bad.json")
