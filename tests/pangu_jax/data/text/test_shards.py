"""Shards on disk: what goes in comes out, splits by hash, resumption, damage."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pangu_jax.data.text import (
    Document,
    Scored,
    ShardConfig,
    TextDataError,
    TextShards,
    is_held_out,
    write_shards,
)
from pangu_jax.data.text.records import Record, decode_record, encode_record, token_dtype

from .conftest import NumberTokenizer, number_documents

LENGTHS = {"english": [5, 30, 1, 12] * 5, "code": [50, 3] * 4}


def contents(shards):
    """(domain, name, tokens, quality, difficulty) of every document."""
    return [
        (shards.domains[r.domain], r.name, r.tokens.tolist(), r.quality, r.difficulty)
        for r in shards.records(range(len(shards)))
    ]


def expected(documents):
    return [
        (s.document.domain, f"{s.document.source}/{s.document.id}",
         [int(w) for w in s.document.text.split()],
         float(np.float32(s.quality)), float(np.float32(s.difficulty)))
        for s in documents
    ]  # fmt: skip


@pytest.mark.parametrize("vocab_size", [50_000, 100_000])
def test_documents_come_back(tmp_path, vocab_size):
    documents = number_documents(LENGTHS)
    folder = write_shards(
        documents, NumberTokenizer(vocab_size), tmp_path, config=ShardConfig(held_out=0.0)
    )
    shards = TextShards(folder / "train", verify=True)
    assert contents(shards) == expected(documents)
    assert shards.eod_id == 0 and shards.vocab_size == vocab_size
    manifest = json.loads((folder / "train" / "manifest.json").read_text())
    size = sum(len(s.document.text) for s in documents if s.document.domain == "code")
    assert manifest["counts"]["code"] == {
        "documents": 8, "tokens": sum(LENGTHS["code"]), "bytes": size,
    }  # fmt: skip
    assert len(TextShards(folder / "held_out")) == 0


def test_record_bytes_and_cut_records():
    dtype = token_dtype(65_536)
    record = Record(np.array([1, 65_535]), 3, 0.5, 0.25, "ä" * 600)
    raw = encode_record(record, dtype)
    back = decode_record(raw, dtype)
    assert back.tokens.tolist() == [1, 65_535] and back.name == "ä" * 500
    with pytest.raises(ValueError, match="expected"):
        decode_record(raw[:-1], dtype)
    assert token_dtype(65_537).itemsize == 4


def test_held_out_is_by_text_and_the_splits_are_disjoint(tmp_path):
    documents = number_documents({"english": [4] * 200})
    folder = write_shards(
        documents, NumberTokenizer(), tmp_path / "a", config=ShardConfig(held_out=0.2)
    )
    train, held = contents(TextShards(folder / "train")), contents(TextShards(folder / "held_out"))
    assert sorted(train + held) == sorted(expected(documents))
    assert 20 <= len(held) <= 60
    # Another order and other neighbours put no document into the other split.
    other = write_shards(
        documents[::-2], NumberTokenizer(), tmp_path / "b", config=ShardConfig(held_out=0.2)
    )
    assert set(map(str, contents(TextShards(other / "held_out")))) <= set(map(str, held))
    assert is_held_out("x", 0.999999999) and not is_held_out("x", 0.0)


def test_an_interrupted_run_goes_on(tmp_path):
    documents = number_documents(LENGTHS)
    config = ShardConfig(held_out=0.2, shard_tokens=60)
    whole = write_shards(documents, NumberTokenizer(), tmp_path / "whole", config=config)
    tokenised = []

    class Counting(NumberTokenizer):
        def encode_batch_fast(self, texts, add_special_tokens):
            tokenised.extend(texts)
            return super().encode_batch_fast(texts, add_special_tokens)

    def stops_after(count):
        yield from documents[:count]
        raise KeyboardInterrupt

    import pangu_jax.data.text.shards as module

    folder = tmp_path / "cut"
    for count in (9, 17):
        # A batch is what is tokenised at a time; small, so that the interruption comes between.
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, "_BATCH", 4)
            write_shards(stops_after(count), Counting(), folder, config=config)
        assert not (folder / "train" / "manifest.json").exists()
        with pytest.raises(TextDataError, match="no finished shards"):
            TextShards(folder / "train")
    done = json.loads((folder / "progress.json").read_text())["consumed"]
    assert 0 < done <= 17
    tokenised.clear()
    write_shards(documents, Counting(), folder, config=config)
    assert tokenised == [s.document.text for s in documents[done:]]
    for split in ("train", "held_out"):
        a, b = (json.loads((f / split / "manifest.json").read_text()) for f in (whole, folder))
        assert a == b
        assert contents(TextShards(whole / split)) == contents(
            TextShards(folder / split, verify=True)
        )


def test_resuming_with_other_documents_is_refused(tmp_path):
    documents = number_documents(LENGTHS)
    config = ShardConfig(shard_tokens=60)

    def cut():
        yield from documents[:20]
        raise KeyboardInterrupt

    import pangu_jax.data.text.shards as module

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_BATCH", 4)
        write_shards(cut(), NumberTokenizer(), tmp_path, config=config)
    with pytest.raises(TextDataError, match="not those of the interrupted run"):
        write_shards(documents[1:], NumberTokenizer(), tmp_path, config=config)


def test_a_finished_folder_is_left_alone_and_a_foreign_one_refused(tmp_path):
    documents = number_documents({"english": [3]})
    write_shards(documents, NumberTokenizer(), tmp_path, corpus="a")

    def nothing():
        raise AssertionError("read again")
        yield

    write_shards(nothing(), NumberTokenizer(), tmp_path, corpus="a")
    with pytest.raises(TextDataError, match="another corpus, tokenizer or setting"):
        write_shards(documents, NumberTokenizer(), tmp_path, corpus="b")
    with pytest.raises(TextDataError, match="another corpus, tokenizer or setting"):
        write_shards(documents, NumberTokenizer(7), tmp_path, corpus="a")
    more = number_documents({"english": [3, 4]})
    folder = write_shards(more, NumberTokenizer(), tmp_path, corpus="b", overwrite=True)
    both = sum(len(TextShards(folder / split)) for split in ("train", "held_out"))
    assert both == 2


def test_several_folders_are_one_corpus(tmp_path, make_shards):
    a = make_shards({"english": [2, 3], "code": [4]}, name="a")
    make_shards({"math": [1], "code": [6, 7]}, name="b")
    both = TextShards(tmp_path / "a" / "train", tmp_path / "b" / "train")
    assert both.domains == ["english", "code", "math"]
    assert both.documents_of("code").tolist() == [2, 4, 5]
    assert both.index["length"][both.documents_of("code")].tolist() == [4, 6, 7]
    assert len(a) == 3
    write_shards(number_documents({"code": [1]}), NumberTokenizer(9), tmp_path / "c")
    with pytest.raises(TextDataError, match="another tokenizer"):
        TextShards(tmp_path / "a" / "train", tmp_path / "c" / "train")


def test_damage_is_found(make_shards, tmp_path):
    make_shards({"english": [40] * 4}, shard_tokens=100)
    folder = tmp_path / "shards" / "train"
    victim = folder / "shard-00001.array_record"
    raw = bytearray(victim.read_bytes())
    with pytest.raises(TextDataError, match="Did you mean .*train"):
        TextShards(tmp_path / "shards")
    raw[len(raw) // 2] ^= 1
    victim.write_bytes(raw)
    with pytest.raises(TextDataError, match="shard-00001.*SHA-256"):
        TextShards(folder, verify=True)
    victim.write_bytes(raw[:-1])
    with pytest.raises(TextDataError, match="shard-00001.*missing or does not have"):
        TextShards(folder)
    victim.unlink()
    with pytest.raises(TextDataError, match="shard-00001.*missing"):
        TextShards(folder)


def test_a_domain_that_is_not_there_is_named(make_shards):
    with pytest.raises(TextDataError, match="'englich'.*known are english.*Did you mean 'english'"):
        make_shards({"english": [3]}).documents_of("englich")


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(TextDataError, match="held_out"):
        ShardConfig(held_out=1.0)
    with pytest.raises(TextDataError, match="no token '<end>'"):
        write_shards([], NumberTokenizer(), tmp_path, config=ShardConfig(eod_token="<end>"))


def test_with_a_real_tokenizer_a_document_cannot_end_itself(tmp_path):
    pytest.importorskip("tokenizers")
    from pangu_jax.data.tokenizer import BpeConfig, load_tokenizer, train_bpe

    texts = ["plain text and more text", "before <|eod|> after"]
    tokenizer = train_bpe(texts, BpeConfig(vocab_size=264))
    documents = [Scored(Document(t, "english", "made", str(i)), 1, 0) for i, t in enumerate(texts)]
    folder = write_shards(documents, tokenizer, tmp_path, config=ShardConfig(held_out=0.0))
    shards, loaded = TextShards(folder / "train"), load_tokenizer(folder / "tokenizer.json")
    for record, text in zip(shards.records([0, 1]), texts, strict=True):
        assert shards.eod_id not in record.tokens
        assert loaded.decode(record.tokens.tolist(), skip_special_tokens=False) == text
