"""Cleaning: each filter by its name, planted duplicates and no others, scores, counts."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_jax.data.text import (
    CleanReport,
    DedupConfig,
    Deduplicator,
    Document,
    FilterConfig,
    TextDataError,
    clean,
    heuristic_difficulty,
    heuristic_quality,
)
from pangu_jax.data.text.dedup import normalised, shingle_hashes
from pangu_jax.data.text.filters import FILTERS, broken_rule, filters_for

DICTIONARY = [
    f"{a}{b}{c}" for a in ("ka", "lo", "mi") for b in ("na", "re", "tu", "so") for c in "aeiou"
]


def prose(seed, words=300):
    """Lines of ten random words, ended like sentences."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(DICTIONARY, words)
    lines = [" ".join(chosen[i : i + 10]) for i in range(0, words, 10)]
    return ".\n".join(lines) + ".\n"


def changed(text, seed, share):
    """The text with a run of its words put in another's place."""
    words = text.split(" ")
    count = int(share * len(words))
    rng = np.random.default_rng(seed)
    at = int(rng.integers(0, len(words) - count))
    words[at : at + count] = [f"new{i}" for i in range(count)]
    return " ".join(words)


def document(text, domain="english", name="x"):
    return Document(text, domain, "made", name)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (prose(0), None),
        ("too short", "short"),
        (prose(0) * 20, "long"),
        ("12345 67890 " * 20, "alpha"),
        ("wordish #$%&* " * 20, "symbols"),
        ("\n".join("abcdefghijk"[:4] for _ in range(40)), "line_length"),
        ("the same line over and over again\n" * 10, "repeated_lines"),
        ("\n".join("https://example.org/files/" + c * 9 for c in "abcdefgh"), "word_length"),
        (" ".join(["one two three four"] * 30), "repeated_words"),
        ("\n".join(" ".join(["na"] * n) for n in range(5, 25)), "repeated_words"),
    ],
)
def test_each_rule(text, rule):
    assert broken_rule(document(text), FilterConfig(max_chars=20_000)) == rule


def test_few_words():
    rng = np.random.default_rng(0)
    text = ".\n".join(" ".join(rng.choice(["aaaa", "bbbb", "cccc"], 12)) for _ in range(40))
    assert broken_rule(document(text), FilterConfig()) == "few_words"


def test_filters_by_domain():
    assert filters_for("code").max_mean_line == 300
    assert filters_for("law") == FilterConfig()
    assert filters_for("code", {"code": FilterConfig(min_chars=7)}).min_chars == 7


def test_exact_duplicates_up_to_space_case_and_form():
    seen = Deduplicator(DedupConfig(near_threshold=1.0)).seen
    assert seen("Hello  World\n") is None
    assert seen("hello world") == "exact"
    assert seen("ﬁne") is None and seen("FINE") == "exact"
    assert normalised(" Ａ\tb ") == "a b"


def test_planted_near_duplicates_are_removed_and_nothing_else():
    pytest.importorskip("datasketch")
    originals = [prose(seed) for seed in range(40)]
    copies = {i: changed(originals[i], i, 0.04) for i in range(0, 40, 4)}  # similarity about 0.9
    relatives = {i: changed(originals[i], i, 0.18) for i in range(1, 40, 4)}  # about 0.67
    stream = [document(t, name=f"o{i}") for i, t in enumerate(originals)]
    stream += [document(t, name=f"c{i}") for i, t in copies.items()]
    stream += [document(t, name=f"r{i}") for i, t in relatives.items()]
    report = CleanReport()
    kept = {s.document.id for s in clean(stream, report=report)}
    assert kept == {d.id for d in stream} - {f"c{i}" for i in copies}
    assert report.removed["english"] == {"near": 10}
    exact_only = clean(stream, dedup=DedupConfig(near_threshold=1.0))
    assert len(list(exact_only)) == len(stream)


def test_signatures_estimate_the_similarity_of_shingles():
    pytest.importorskip("datasketch")
    index = Deduplicator(DedupConfig(near_threshold=0.9))
    a, b = prose(1), changed(prose(1), 0, 0.2)
    index.seen(a)
    index.seen(b)
    x, y = (set(shingle_hashes(normalised(t), 5).tolist()) for t in (a, b))
    true = len(x & y) / len(x | y)
    estimate = index._signatures[0].jaccard(index._signatures[1])
    assert 0.4 < true < 0.8 and abs(estimate - true) < 4 * np.sqrt(true * (1 - true) / 128)


def test_shingles_of_short_text_and_text_without_words():
    assert len(shingle_hashes("one two", 5)) == 1
    assert len(shingle_hashes("!!!", 5)) == 1
    assert len(shingle_hashes("a b c d e f", 5)) == 2
    assert not set(shingle_hashes("a b c d e", 5)) & set(shingle_hashes("e d c b a", 5))


def test_counts_add_up():
    stream = [
        document(prose(0)), document(prose(0)), document("x"), document(prose(1), domain="math"),
    ]  # fmt: skip
    report = CleanReport()
    kept = list(clean(stream, report=report))
    table = report.to_dict()
    assert table["english"] == {
        "read": 3, "kept": 1, "read_bytes": 2 * len(prose(0)) + 1, "kept_bytes": len(prose(0)),
        "removed": {"exact": 1, "short": 1},
    }  # fmt: skip
    assert table["math"]["kept"] == 1 and len(kept) == 2
    assert "exact 1, short 1" in report.to_markdown()


def test_scores_order_plain_cases():
    good = document(prose(3))
    dirty = document(prose(3).replace("a", "\ufffd"))
    repeated = document((prose(3, 20) + "\n") * 15)
    assert heuristic_quality(good) > heuristic_quality(dirty)
    assert heuristic_quality(good) > heuristic_quality(repeated)
    easy = document("the cat sat on the mat. " * 30)
    hard = document(" ".join(f"{w}{i}ization" for i, w in enumerate(DICTIONARY * 20)))
    assert heuristic_difficulty(easy) < heuristic_difficulty(hard)
    for doc in (
        good,
        dirty,
        repeated,
        easy,
        hard,
        document("!!!"),
        document("汉" * 500, "chinese"),
    ):
        assert 0 <= heuristic_quality(doc) <= 1 and 0 <= heuristic_difficulty(doc) <= 1


def test_scorers_are_pluggable_and_checked():
    (kept,) = clean([document(prose(0))], quality=lambda d: 0.25, difficulty=lambda d: 1)
    assert (kept.quality, kept.difficulty) == (0.25, 1.0)
    with pytest.raises(TextDataError, match="quality scorer gave 7.0 for made/x"):
        list(clean([document(prose(0))], quality=lambda d: 7))


def test_settings_that_cannot_be():
    with pytest.raises(TextDataError, match="no length over"):
        FilterConfig(min_chars=10, max_chars=5)
    with pytest.raises(TextDataError, match="share in 0..1"):
        FilterConfig(max_symbols=2)
    with pytest.raises(TextDataError, match="num_permutations"):
        DedupConfig(num_permutations=4)
    assert len(set(FILTERS)) == 9
