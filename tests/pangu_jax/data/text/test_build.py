"""From files to batches: the whole way, going on after an interruption, refusing another corpus."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("datasketch")

from pangu_jax.config.resolve import resolve  # noqa: E402
from pangu_jax.data.text import (  # noqa: E402
    CorpusConfig,
    Mixture,
    TextDataError,
    TextShards,
    build_corpus,
    read_cleaned,
    text_batches,
)
from pangu_jax.data.text import build as module  # noqa: E402
from pangu_jax.data.tokenizer import load_tokenizer  # noqa: E402


@pytest.fixture
def config(tmp_path):
    """Two domains of random words, a duplicate, an empty file; as a nested mapping, resolved."""
    rng = np.random.default_rng(0)
    for domain, letters in (("english", "abcdefgh"), ("code", "stuvwxyz")):
        (tmp_path / domain).mkdir()
        words = ["".join(rng.choice(list(letters), rng.integers(2, 7))) for _ in range(150)]
        for i in range(20):
            text = ".\n".join(" ".join(rng.choice(words, 9)) for _ in range(8))
            (tmp_path / domain / f"{i:02d}.txt").write_text(text)
    (tmp_path / "english" / "copy.txt").write_text((tmp_path / "english" / "00.txt").read_text())
    (tmp_path / "english" / "empty.txt").write_text(" \n")
    sources = [
        {"kind": "folder", "path": str(tmp_path / d), "domain": d} for d in ("english", "code")
    ]
    return {
        "sources": sources,
        "quotas": {"english": 0.5, "code": 0.5},
        "bpe": {"vocab_size": 400},
        "shards": {"held_out": 0.3, "shard_tokens": 500},
    }


def test_from_files_to_batches(config, tmp_path):
    lines = []
    folder = build_corpus(resolve(CorpusConfig, config), tmp_path / "corpus", report=lines.append)
    assert any("the user's own data" in line for line in lines)
    counts = json.loads((folder / "clean.json").read_text())
    assert counts["english"]["kept"] == counts["code"]["kept"] == 20
    assert counts["english"]["removed"] == {"exact": 1}
    report = json.loads((folder / "vocabulary.json").read_text())
    assert report["domains"]["code"]["owned"] == 70 and report["dead"] == 0
    assert report["domains"]["code"]["bytes_per_token"] > 1
    shards = TextShards(folder / "train", verify=True)
    held = TextShards(folder / "held_out")
    assert len(shards) + len(held) == 40 and 4 <= len(held) <= 20
    # The text can be read back from the batches, documents apart.
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    texts = {s.document.text for s in read_cleaned(folder)}
    mixture = Mixture({"english": 0.5, "code": 0.5})
    batch = next(iter(text_batches(shards, mixture, seq_len=2000, batch_rows=2)))
    row = batch["tokens"][0][batch["segment_ids"][0] == 1]
    assert row[-1] == shards.eod_id == tokenizer.token_to_id("<|eod|>")
    assert tokenizer.decode(row[:-1].tolist()) in texts


def test_a_second_run_reads_nothing_and_another_corpus_is_refused(config, tmp_path, monkeypatch):
    folder = build_corpus(resolve(CorpusConfig, config), tmp_path / "corpus")
    monkeypatch.setattr(module, "read_sources", lambda *a, **k: pytest.fail("read again"))
    monkeypatch.setattr(module, "train_domain_aware", lambda *a, **k: pytest.fail("trained again"))
    assert build_corpus(resolve(CorpusConfig, config), folder) == folder
    with pytest.raises(TextDataError, match="other settings"):
        build_corpus(resolve(CorpusConfig, config | {"method": "joint"}), folder)


def test_the_comparison_of_vocabularies_may_come_later(config, tmp_path, monkeypatch):
    """It changes no token, so it is no other corpus and reads and trains nothing anew."""
    folder = build_corpus(resolve(CorpusConfig, config | {"compare": False}), tmp_path / "corpus")
    report = json.loads((folder / "vocabulary.json").read_text())
    assert report["domains"]["code"]["global_bytes_per_token"] is None
    before = {f: (folder / f).read_bytes() for f in ("tokenizer.json", "cleaned.jsonl")}
    monkeypatch.setattr(module, "read_sources", lambda *a, **k: pytest.fail("read again"))
    monkeypatch.setattr(module, "train_domain_aware", lambda *a, **k: pytest.fail("trained again"))
    build_corpus(resolve(CorpusConfig, config), folder)
    assert before == {f: (folder / f).read_bytes() for f in before}
    report = json.loads((folder / "vocabulary.json").read_text())
    assert report["domains"]["code"]["owned"] == 70
    assert report["domains"]["code"]["global_bytes_per_token"] > 1
    assert "one BPE" in (folder / "vocabulary.md").read_text()
    # Once is enough, also when it is switched off again.
    monkeypatch.setattr(module, "train_bpe", lambda *a, **k: pytest.fail("compared again"))
    build_corpus(resolve(CorpusConfig, config), folder)
    build_corpus(resolve(CorpusConfig, config | {"compare": False}), folder)


def test_the_vocabulary_may_be_trained_on_a_part(config, tmp_path, monkeypatch):
    """About so many bytes of each domain, never held-out ones; shards hold all text."""
    seen = {}
    train = module.train_domain_aware

    def watched(texts, *args, **kwargs):
        seen.update({domain: list(read()) for domain, read in texts.items()})
        return train(texts, *args, **kwargs)

    monkeypatch.setattr(module, "train_domain_aware", watched)
    settings = config | {"bpe": {"vocab_size": 300}}
    build_corpus(resolve(CorpusConfig, settings), tmp_path / "whole")
    whole = dict(seen)
    limit = sum(map(len, whole["code"])) // 2
    part = resolve(CorpusConfig, settings | {"vocabulary_bytes": limit})
    folder = build_corpus(part, tmp_path / "part")
    for domain, texts in seen.items():
        assert set(texts) < set(whole[domain])
        assert 0.2 < sum(map(len, texts)) / limit < 1.8
    assert len(TextShards(folder / "train")) == len(TextShards(tmp_path / "whole" / "train"))
    with pytest.raises(TextDataError, match="other settings"):
        build_corpus(resolve(CorpusConfig, settings), folder)
    # A folder of before there was the setting is one with all text.
    noted = json.loads((tmp_path / "whole" / "corpus.json").read_text())
    del noted["vocabulary_bytes"]
    (tmp_path / "whole" / "corpus.json").write_text(json.dumps(noted))
    build_corpus(resolve(CorpusConfig, settings), tmp_path / "whole")
    with pytest.raises(ValueError, match="vocabulary_bytes must be at least 0"):
        resolve(CorpusConfig, settings | {"vocabulary_bytes": -1})


def test_an_interrupted_build_goes_on(config, tmp_path, monkeypatch):
    config = resolve(CorpusConfig, config)
    whole = build_corpus(config, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        patch.setattr(module, "train_domain_aware", stop)
        build_corpus(config, tmp_path / "cut")
    monkeypatch.setattr(module, "read_sources", lambda *a, **k: pytest.fail("read again"))
    cut = build_corpus(config, tmp_path / "cut")
    for split in ("train", "held_out"):
        a, b = (json.loads((f / split / "manifest.json").read_text()) for f in (whole, cut))
        assert a == b


def test_one_bpe_or_a_given_tokenizer(config, tmp_path):
    one = build_corpus(resolve(CorpusConfig, config | {"quotas": {}}), tmp_path / "one")
    assert not (one / "vocabulary.json").exists()
    given = config | {"tokenizer": str(one / "tokenizer.json")}
    two = build_corpus(resolve(CorpusConfig, given), tmp_path / "two")
    a, b = (json.loads((f / "train" / "manifest.json").read_text()) for f in (one, two))
    assert a["documents_sha256"] == b["documents_sha256"]
    assert a["tokenizer_sha256"] == b["tokenizer_sha256"]


def test_nothing_left_is_an_error_and_keeps_nothing(config, tmp_path):
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.txt").write_text(" \n")
    for text, message in ((" \n", "none was read"), ("too short", "english: short 1")):
        (tmp_path / "none" / "a.txt").write_text(text)
        source = config["sources"][0] | {"path": str(tmp_path / "none")}
        wanted = resolve(CorpusConfig, config | {"sources": [source], "quotas": {"english": 1.0}})
        with pytest.raises(TextDataError, match=f"No document is left of 1 source.*{message}"):
            build_corpus(wanted, tmp_path / "corpus")
    (tmp_path / "none" / "a.txt").unlink()
    for file in (tmp_path / "english").iterdir():
        (tmp_path / "none" / file.name).write_text(file.read_text())
    assert len(TextShards(build_corpus(wanted, tmp_path / "corpus") / "train"))


def test_a_missing_package_is_said_before_anything_is_read(config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TextDataError, match=r"tokenizers: run pip install -e '\.\[text\]'"):
        build_corpus(resolve(CorpusConfig, config), tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_settings_that_cannot_be(config):
    with pytest.raises(ValueError, match="at least one source"):
        resolve(CorpusConfig, config | {"sources": []})
    with pytest.raises(ValueError, match="must be the same"):
        resolve(CorpusConfig, config | {"shards": {"eod_token": "<end>"}})
    with pytest.raises(ValueError, match="method must be one of .*resampled, got 'jiont'"):
        resolve(CorpusConfig, config | {"method": "jiont"})
    with pytest.raises(ValueError, match="sum to 1.1"):
        resolve(CorpusConfig, config | {"quotas": {"english": 0.6, "code": 0.5}})


def test_a_resampled_vocabulary(config, tmp_path):
    wanted = resolve(CorpusConfig, config | {"method": "resampled"})
    report = json.loads((build_corpus(wanted, tmp_path / "corpus") / "vocabulary.json").read_text())
    assert {row["owned"] for row in report["domains"].values()} == {None}
    assert report["domains"]["code"]["bytes_per_token"] > 1
