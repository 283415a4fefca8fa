"""Small shards of documents whose tokens say where they are from."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_jax.data.text import Document, Scored, ShardConfig, TextShards, write_shards


class NumberTokenizer:
    """Stands in for a tokenizer: text is numbers with spaces between, token ids are the numbers."""

    def __init__(self, vocab_size: int = 100_000):
        self.vocab_size = vocab_size

    def token_to_id(self, token):
        return 0 if token == "<|eod|>" else None

    def get_vocab_size(self):
        return self.vocab_size

    def to_str(self, pretty=False):
        return f"numbers {self.vocab_size}"

    def encode_batch_fast(self, texts, add_special_tokens):
        class Encoding:
            def __init__(self, ids):
                self.ids = ids

        return [Encoding([int(word) for word in text.split()]) for text in texts]


def number_documents(lengths: dict[str, list[int]]) -> list[Scored]:
    """One document per length, with token ids that occur nowhere else; by domain."""
    documents, at = [], 1
    for domain, sizes in lengths.items():
        for number, size in enumerate(sizes):
            text = " ".join(map(str, range(at, at + size)))
            at += size
            document = Document(text, domain, "made", f"{domain}-{number}")
            documents.append(Scored(document, (number % 10) / 10, number / max(len(sizes), 1)))
    return documents


@pytest.fixture
def make_shards(tmp_path):
    """Call with {domain: lengths}; gives opened train shards, nothing held out."""

    def make(lengths, shard_tokens=200, name="shards"):
        folder = write_shards(
            number_documents(lengths),
            NumberTokenizer(),
            tmp_path / name,
            corpus=str(lengths),
            config=ShardConfig(held_out=0.0, shard_tokens=shard_tokens),
        )
        return TextShards(folder / "train")

    return make


@pytest.fixture(scope="session")
def mixed_lengths():
    rng = np.random.default_rng(0)
    return {
        "english": rng.integers(1, 40, 60).tolist(),
        "code": rng.integers(1, 90, 30).tolist(),
        "math": rng.integers(1, 12, 25).tolist(),
    }
