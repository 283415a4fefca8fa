"""Domain-aware vocabularies: exact size, quotas, valid merges, no token that is never used."""

from __future__ import annotations

import collections
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from pangu_jax.data.tokenizer import (  # noqa: E402
    METHODS,
    BpeConfig,
    TokenizerError,
    VocabularyReport,
    as_plain_text,
    build_tokenizer,
    bytes_per_token,
    load_tokenizer,
    merge_vocabularies,
    quota_counts,
    save_tokenizer,
    train_bpe,
    train_domain_aware,
    vocabulary_report,
)
from pangu_jax.data.tokenizer.bpe import byte_alphabet, word_counts  # noqa: E402
from pangu_jax.data.tokenizer.joint import joint_vocabulary  # noqa: E402
from pangu_jax.data.tokenizer.merging import dead_tokens  # noqa: E402
from pangu_jax.data.tokenizer.resampling import _repeated  # noqa: E402

CONFIG = BpeConfig(vocab_size=420)
QUOTAS = {"english": 0.5, "code": 0.3, "chinese": 0.2}


def words(seed, letters, count):
    """Text of words drawn from a small dictionary of random letters."""
    rng = np.random.default_rng(seed)
    dictionary = ["".join(rng.choice(list(letters), rng.integers(2, 7))) for _ in range(150)]
    return [" ".join(rng.choice(dictionary, 40)) for _ in range(count)]


@pytest.fixture(scope="module")
def texts():
    return {
        "english": words(0, "abcdefgh", 60),
        "code": words(1, "efgh(){}=_", 25),
        "chinese": words(2, "天地人山水火木金土日", 6),
    }


@pytest.fixture(scope="module", params=["merged", "joint"])
def trained(request, texts):
    return train_domain_aware(texts, QUOTAS, CONFIG, method=request.param)


def test_size_and_quotas_are_met_exactly(trained):
    tokenizer, merged = trained
    assert tokenizer.get_vocab_size() == CONFIG.vocab_size
    learned = CONFIG.vocab_size - CONFIG.num_fixed
    assert len(merged.tokens) == len(set(merged.tokens)) == learned == 160
    assert {d: merged.owner.count(d) for d in QUOTAS} == {"english": 80, "code": 48, "chinese": 32}


def test_every_merge_is_of_tokens_that_exist_earlier(trained):
    _, merged = trained
    rank = {token: -1 for token in byte_alphabet()} | {t: i for i, t in enumerate(merged.tokens)}
    results = [rank[a + b] for a, b in merged.merges]
    for (left, right), result in zip(merged.merges, results, strict=True):
        assert rank[left] < result and rank[right] < result
    assert set(results) == set(range(len(merged.tokens)))
    assert len(set(merged.merges)) == len(merged.merges)


def test_no_token_is_dead(trained):
    _, merged = trained
    assert merged.dead == ()
    assert dead_tokens(merged.tokens, merged.merges, CONFIG) == []


def test_a_token_without_a_way_to_it_is_dead():
    # 'ab' + 'c' is never reached, because 'bc' is made first; and '\u0120' inside is no word.
    tokens = ["bc", "ab", "abc\u0120"]
    assert dead_tokens(tokens, [("b", "c"), ("a", "b")], CONFIG) == ["abc\u0120"]


def test_the_saved_file_is_standard_json_and_comes_back(trained, texts, tmp_path):
    tokenizer, merged = trained
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert model["type"] == "BPE" and len(model["vocab"]) == CONFIG.vocab_size
    assert len(model["merges"]) == len(merged.merges)
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    for text in [*(t[0] for t in texts.values()), "ünïcode 🎉 \x00 <|eod|>"]:
        ids = loaded.encode(text).ids
        assert ids == tokenizer.encode(text).ids
        assert loaded.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("method", METHODS)
def test_the_small_domain_gains_against_one_bpe(texts, method):
    """What the quotas are for; the big domain pays."""
    tokenizer, _ = train_domain_aware(texts, QUOTAS, CONFIG, method=method)
    together = train_bpe([t for d in sorted(texts) for t in texts[d]], CONFIG)
    assert bytes_per_token(tokenizer, texts["chinese"]) > bytes_per_token(
        together, texts["chinese"]
    )


def test_training_twice_gives_the_same(texts):
    for method in METHODS:
        first, second = (
            train_domain_aware(texts, QUOTAS, CONFIG, method=method)[1] for _ in range(2)
        )
        assert first == second


def counted_anew(texts, quotas, config):
    """The joint method as it is described: all pairs of all words counted before every merge."""
    targets = quota_counts(quotas, config.vocab_size - config.num_fixed)
    words = {d: [[list(w), n] for w, n in word_counts(t, config).items()] for d, t in texts.items()}
    owner, merges = {}, []
    while len(owner) < sum(targets.values()):
        owned = collections.Counter(owner.values())
        behind = [d for d in targets if owned[d] < targets[d]]
        domain = min(behind, key=lambda d: (owned[d] / targets[d], d))
        pairs = collections.Counter()
        for tokens, times in words[domain]:
            for pair in zip(tokens, tokens[1:], strict=False):
                pairs[pair] += times
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        owner.setdefault(left + right, domain)
        for word in (word for found in words.values() for word in found):
            at = 0
            while at + 1 < len(word[0]):
                if word[0][at : at + 2] == [left, right]:
                    word[0][at : at + 2] = [left + right]
                at += 1
    return tuple(owner), tuple(dict.fromkeys(merges)), tuple(owner.values())


@given(
    st.lists(st.text("ab ", min_size=2, max_size=30), min_size=1, max_size=5),
    st.lists(st.text("abc字", min_size=2, max_size=30), min_size=1, max_size=5),
)
def test_joint_counts_around_the_merges_only(first, second):
    texts = {"a": [*first, "ab ba aab"], "b": [*second, "abc字 bbaa 字字字字"]}
    config = BpeConfig(vocab_size=266, min_frequency=1)
    merged = joint_vocabulary(texts, {"a": 0.5, "b": 0.5}, config)
    expected = counted_anew(texts, {"a": 0.5, "b": 0.5}, config)
    assert (merged.tokens, merged.merges, merged.owner) == expected


def test_joint_learns_from_words_that_occur_once():
    """Without spaces a word is a clause, and hardly one occurs twice."""
    texts = {"chinese": ["水天地金人山甲", "火天地土人山乙", "木天地日人山丙"]}
    merged = joint_vocabulary(texts, {"chinese": 1.0}, BpeConfig(vocab_size=266))
    assert bytes_per_token(build_tokenizer(merged.tokens, merged.merges, CONFIG), ["天地"]) > 2


def test_resampled_is_one_bpe_over_text_with_the_quotas_of_bytes(texts):
    """Domains of 700 bytes each with quotas 1 : 2 : 3 make one, two and three copies."""
    texts = {d: [" ".join(t).encode()[:700].decode("utf-8", "ignore")] for d, t in texts.items()}
    texts = {d: [t + " " * (700 - len(t.encode()))] for d, (t,) in texts.items()}
    config = BpeConfig(vocab_size=300)
    quotas = {"english": 1 / 6, "code": 2 / 6, "chinese": 3 / 6}
    repeated = [*texts["english"], *2 * texts["code"], *3 * texts["chinese"]]
    for passed in (texts, {d: iter(t) for d, t in texts.items()}):
        tokenizer, about = train_domain_aware(passed, quotas, config, method="resampled")
        assert tokenizer.to_str() == as_plain_text(train_bpe(repeated, config)).to_str()
    report = vocabulary_report(about, quotas, config)
    assert VocabularyReport.from_json(report.to_json()) == report
    assert "| code | 33.3% | - | 0.00 | 0 | - | - | - |" in report.to_markdown()


def test_resampling_keeps_every_text_and_meets_the_quotas():
    texts = {"a": [f"{n:04}" * 3 for n in range(700)], "b": [f"{n:05}" for n in range(40)]}
    quotas = {"a": 0.6, "b": 0.4}
    found = list(_repeated({d: lambda t=t: t for d, t in texts.items()}, quotas))
    assert set(found) == {t for known in texts.values() for t in known}
    sizes = {d: sum(len(t) for t in found if t in set(known)) for d, known in texts.items()}
    assert sizes["a"] == 12 * 700
    assert sizes["b"] / sum(sizes.values()) == pytest.approx(0.4, abs=0.001)


def test_shared_tokens_are_owned_once():
    merges = {"a": [("x", "y"), ("xy", "z")], "b": [("x", "y"), ("p", "q")]}
    merged = merge_vocabularies(merges, {"a": 0.5, "b": 0.5}, BpeConfig(vocab_size=262))
    assert merged.tokens == ("xy", "pq") and merged.owner == ("a", "b")


def test_a_token_built_in_two_ways_keeps_both_merges():
    merges = {
        "a": [("t", "h"), ("th", "e")],
        "b": [("h", "e"), ("t", "he")],
    }
    merged = merge_vocabularies(merges, {"a": 0.67, "b": 0.33}, BpeConfig(vocab_size=263))
    assert set(merged.tokens) == {"th", "he", "the"}
    assert {("th", "e"), ("t", "he")} <= set(merged.merges)


def test_report_holds_shares_and_compression(trained, texts):
    tokenizer, merged = trained
    together = train_bpe([t for d in sorted(texts) for t in texts[d]], CONFIG)
    held = {"english": texts["english"][:5], "chinese": texts["chinese"][:2]}
    report = vocabulary_report(
        merged, QUOTAS, CONFIG, tokenizer=tokenizer, global_tokenizer=together, held_out=held
    )
    row = json.loads(report.to_json())["domains"]["chinese"]
    assert row["owned"] == 32
    assert row["bytes_per_token"] == bytes_per_token(tokenizer, held["chinese"])
    assert row["global_bytes_per_token"] == bytes_per_token(together, held["chinese"])
    assert row["used"] == len({i for t in held["chinese"] for i in tokenizer.encode(t).ids})
    table = report.to_markdown()
    assert "| code | 30.0% | 48 (30.0%) | 0.00 | 0 | - | - | - |" in table


@given(st.lists(st.integers(1, 100), min_size=1, max_size=6), st.integers(0, 1000))
def test_quota_counts_sum_and_stay_near(parts, total):
    quotas = {str(i): part / sum(parts) for i, part in enumerate(parts)}
    counts = quota_counts(quotas, total)
    assert sum(counts.values()) == total
    assert all(abs(counts[d] - share * total) < 1 + 1e-6 for d, share in quotas.items())


@pytest.mark.parametrize("method", METHODS)
def test_errors_name_domain_and_numbers(texts, method):
    with pytest.raises(TokenizerError, match="sum to 0.9"):
        train_domain_aware(
            texts, {"english": 0.5, "code": 0.3, "chinese": 0.1}, CONFIG, method=method
        )
    with pytest.raises(TokenizerError, match="must be the same"):
        train_domain_aware(texts, {"english": 1.0}, CONFIG, method=method)
    too_little = "Domain 'code' has text for only.*quota is 1422"
    if method == "resampled":  # no quotas of tokens that a domain could miss
        too_little = "fewer than vocab_size=5000"
    with pytest.raises(TokenizerError, match=too_little):
        train_domain_aware(texts, QUOTAS, BpeConfig(vocab_size=5000), method=method)
    with pytest.raises(TokenizerError, match="Domain 'code': There is no text"):
        train_domain_aware(texts | {"code": []}, QUOTAS, CONFIG, method=method)
    with pytest.raises(TokenizerError, match="above 0"):
        train_domain_aware(
            texts, {"english": 1.0, "code": 0.0, "chinese": 0.0}, CONFIG, method=method
        )


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_text_is_said(texts, method):
    for bad, message in ((7, "Text 1 is int, not str"), ("a\ud800", "lone surrogate .*d800")):
        with pytest.raises(TokenizerError, match=message):
            train_domain_aware(texts | {"code": ["x", bad]}, QUOTAS, CONFIG, method=method)


def test_an_unknown_method_is_an_error(texts):
    with pytest.raises(TokenizerError, match="'both'"):
        train_domain_aware(texts, QUOTAS, CONFIG, method="both")
