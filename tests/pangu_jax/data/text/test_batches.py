"""Packed batches: labels, segments, positions, shares, resumption, any number of processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pangu_jax.data.text import (
    NO_LABEL,
    Mixture,
    PackingConfig,
    TextDataError,
    consumed_tokens,
    text_batches,
)
from pangu_jax.training.prefetch import iterator_state

MIX = Mixture({"english": 0.5, "code": 0.3, "math": 0.2}, quality_power=1.0, curriculum=("math",))
PACKINGS = [PackingConfig(), PackingConfig("whole"), PackingConfig("whole", "truncate")]


def take(dataset, count):
    iterator = iter(dataset)
    return [next(iterator) for _ in range(count)]


def same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def documents_by_token(shards):
    """Token id -> (document, place); the ids of `number_documents` occur once."""
    return {
        token: (number, place)
        for number, record in enumerate(shards.records(range(len(shards))))
        for place, token in enumerate(record.tokens.tolist())
    }


@pytest.fixture
def shards(make_shards, mixed_lengths):
    return make_shards(mixed_lengths)


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda p: f"{p.rows}-{p.long_documents}")
@given(seed=st.integers(0, 1000), seq_len=st.integers(2, 60))
@settings(max_examples=10)
def test_labels_stay_in_their_document(shards_once, packing, seed, seq_len):
    where = documents_by_token(shards_once)
    lengths = shards_once.index["length"]
    for batch in take(
        text_batches(
            shards_once, MIX, seq_len=seq_len, batch_rows=4, seed=seed, packing=packing
        ), 3
    ):  # fmt: skip
        for r in range(4):
            row = {name: batch[name][r] for name in batch}
            segments = row["segment_ids"]
            used = segments > 0
            # Padding, if any, is at the end and says nothing.
            assert np.all(np.diff(used.astype(int)) <= 0)
            assert np.all(row["labels"][~used] == NO_LABEL) and not np.any(row["tokens"][~used])
            assert segments.max() == len(np.unique(segments[used]))
            for s in range(1, segments.max() + 1):
                cells = np.flatnonzero(segments == s)
                assert np.all(np.diff(cells) == 1)
                assert row["positions"][cells].tolist() == list(range(len(cells)))
                tokens, labels = row["tokens"][cells].tolist(), row["labels"][cells].tolist()
                assert labels[:-1] == tokens[1:]
                text = [t for t in tokens if t != shards_once.eod_id]
                if not text:  # the end of a document whose text ended with the row before
                    assert tokens == [shards_once.eod_id] and labels == [NO_LABEL]
                    continue
                numbers, places = zip(*(where[t] for t in text), strict=True)
                assert len(set(numbers)) == 1  # one segment, one document
                assert places == tuple(range(places[0], places[0] + len(places)))
                domain = shards_once.domains[shards_once.index["domain"][numbers[0]]]
                assert shards_once.domains[row["domains"]] == domain
                if tokens[-1] == shards_once.eod_id:
                    assert labels[-1] == NO_LABEL and places[-1] == lengths[numbers[0]] - 1
                elif places[-1] == lengths[numbers[0]] - 1:
                    assert labels[-1] == shards_once.eod_id
                else:  # cut: the label is the token that follows in the document all the same
                    assert where[labels[-1]] == (numbers[0], places[-1] + 1)


@pytest.fixture(scope="module")
def shards_once(tmp_path_factory, mixed_lengths):
    from pangu_jax.data.text import ShardConfig, TextShards, write_shards

    from .conftest import NumberTokenizer, number_documents

    folder = write_shards(
        number_documents(mixed_lengths), NumberTokenizer(), tmp_path_factory.mktemp("shards"),
        config=ShardConfig(held_out=0.0, shard_tokens=300),
    )  # fmt: skip
    return TextShards(folder / "train")


@pytest.mark.parametrize("rows", ["concat", "whole"])
def test_no_token_is_lost_when_long_documents_are_split(shards_once, rows):
    mixture = Mixture({"code": 1.0})
    total = int(shards_once.index["length"][shards_once.documents_of("code")].sum())
    batches = take(
        text_batches(
            shards_once, mixture, seq_len=16, batch_rows=1, packing=PackingConfig(rows)
        ), 3 * total // 16
    )  # fmt: skip
    tokens = np.concatenate([b["tokens"][b["segment_ids"] > 0] for b in batches])
    labels = np.concatenate([b["labels"][b["segment_ids"] > 0] for b in batches])
    epoch = tokens[: total + 30]  # 30 documents, each with its end
    assert np.sum(epoch == shards_once.eod_id) == 30
    assert len(set(epoch.tolist())) == total + 1
    # Every token but a document's first is a label once an epoch.
    assert np.sum(labels[: total + 30] == NO_LABEL) == 30
    assert len(set(labels[: total + 30].tolist())) == total - 30 + 2


def test_shares_of_tokens_converge_to_the_weights(shards_once):
    mixture = Mixture({"english": 0.54, "code": 0.29, "math": 0.17})
    batches = take(text_batches(shards_once, mixture, seq_len=32, batch_rows=10), 60)
    domains = np.concatenate([b["domains"] for b in batches])
    for domain, weight in mixture.weights.items():
        share = np.mean(domains == shards_once.domains.index(domain))
        assert abs(share - weight) < 2 / 600
    first = batches[0]["domains"]
    assert len(set(first.tolist())) == 3  # interleaved, not one after the other


def test_a_weight_of_zero_leaves_a_domain_out(shards_once):
    mixture = Mixture({"english": 1.0, "code": 0.0})
    (batch,) = take(text_batches(shards_once, mixture, seq_len=8, batch_rows=50), 1)
    assert set(batch["domains"].tolist()) == {shards_once.domains.index("english")}


def test_the_same_seed_gives_the_same_stream_and_another_another(shards_once):
    a, b, c = (
        take(text_batches(shards_once, MIX, seq_len=32, batch_rows=4, seed=s), 3) for s in (1, 1, 2)
    )
    for x, y in zip(a, b, strict=True):
        same(x, y)
    assert any(np.any(x["tokens"] != y["tokens"]) for x, y in zip(a, c, strict=True))


@pytest.mark.parametrize("packing", PACKINGS[:2], ids=lambda p: p.rows)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_together_make_the_one_global_batch(shards_once, packing, processes):
    options = dict(seq_len=24, batch_rows=8, seed=3, packing=packing)
    whole = take(text_batches(shards_once, MIX, **options), 6)
    parts = [
        take(
            text_batches(
                shards_once, MIX, process_index=i, process_count=processes, **options
            ), 6
        )
        for i in range(processes)
    ]  # fmt: skip
    for step, batch in enumerate(whole):
        joined = {name: np.concatenate([part[step][name] for part in parts]) for name in batch}
        assert all(len(part[step]["tokens"]) == 8 // processes for part in parts)
        same(joined, batch)


SHUFFLED = PackingConfig(shuffle_rows=5)


@pytest.mark.parametrize("packing", [*PACKINGS[:2], SHUFFLED], ids=str)
@pytest.mark.parametrize("threads", [0, 2])
def test_resumption_is_exact_at_every_batch(shards_once, packing, threads):
    def dataset():
        return text_batches(
            shards_once, MIX, seq_len=24, batch_rows=4, packing=packing, num_threads=threads,
            process_index=1, process_count=2,
        )  # fmt: skip

    iterator, batches, states = iter(dataset()), [], []
    for _ in range(40):  # several epochs of the small domains
        batches.append(next(iterator))
        states.append(json.loads(json.dumps(iterator_state(iterator))))
    for stop in (0, 7, 30):
        resumed = iter(dataset())
        resumed.set_state(states[stop])
        for batch in batches[stop + 1 : stop + 6]:
            same(next(resumed), batch)


def test_dispatch_stacks_batches(shards_once):
    single = take(text_batches(shards_once, MIX, seq_len=8, batch_rows=2), 6)
    stacked = take(text_batches(shards_once, MIX, seq_len=8, batch_rows=2, dispatch=3), 2)
    assert stacked[0]["tokens"].shape == (3, 2, 8) and stacked[0]["domains"].shape == (3, 2)
    for i, batch in enumerate(single):
        same({name: value[i % 3] for name, value in stacked[i // 3].items()}, batch)


def test_rows_change_places_within_their_window_only(shards_once):
    one = Mixture({"english": 1.0})

    def rows(packing, count):
        batches = text_batches(shards_once, one, seq_len=16, batch_rows=1, seed=5, packing=packing)
        return [tuple(batch["tokens"][0].tolist()) for batch in take(batches, count)]

    plain, shuffled = rows(PackingConfig(), 15), rows(SHUFFLED, 15)
    assert plain != shuffled
    for begin in range(0, 15, 5):
        window = slice(begin, begin + 5)
        assert sorted(plain[window]) == sorted(shuffled[window])
    # The next phase begins behind the last window begun.
    assert consumed_tokens(one, seq_len=16, batch_rows=1, num_batches=11, shuffle_rows=5) == {
        "english": 15 * 16
    }


def test_a_phase_goes_on_where_the_one_before_stopped(shards_once):
    """Sequence length, batch and weights change; no token is read twice or left out."""
    one = Mixture({"english": 0.6, "code": 0.4})
    two = Mixture({"english": 0.25, "code": 0.75})
    first = take(text_batches(shards_once, one, seq_len=16, batch_rows=4, seed=5), 7)
    start = consumed_tokens(one, seq_len=16, batch_rows=4, num_batches=7)
    assert sum(start.values()) == 7 * 4 * 16
    second = take(text_batches(shards_once, two, seq_len=40, batch_rows=2, seed=5, start=start), 5)
    after = consumed_tokens(two, seq_len=40, batch_rows=2, num_batches=5, start=start)
    for domain in ("english", "code"):
        code = shards_once.domains.index(domain)
        read = [b["tokens"][b["domains"] == code].reshape(-1) for b in first + second]
        (stream,) = take(
            text_batches(
                shards_once, Mixture({domain: 1.0}), seq_len=after[domain], batch_rows=1, seed=5
            ), 1
        )  # fmt: skip
        assert np.concatenate(read).tolist() == stream["tokens"][0].tolist()


def test_curriculum_rows_get_harder_within_an_epoch(shards_once):
    mixture = Mixture({"math": 1.0}, curriculum=("math",), curriculum_noise=0.0)
    documents = shards_once.documents_of("math")
    tokens = int(shards_once.index["length"][documents].sum()) + len(documents)
    (batch,) = take(text_batches(shards_once, mixture, seq_len=tokens, batch_rows=1), 1)
    where = documents_by_token(shards_once)
    seen = [where[t][0] for t in batch["tokens"][0].tolist() if t != shards_once.eod_id]
    assert np.all(np.diff(shards_once.index["difficulty"][seen]) >= 0)


def test_truncated_documents_keep_their_beginning(make_shards):
    shards = make_shards({"code": [10, 3]})
    packing = PackingConfig("whole", "truncate")
    (batch,) = take(
        text_batches(shards, Mixture({"code": 1.0}), seq_len=6, batch_rows=2, packing=packing), 1
    )
    rows = sorted(batch["tokens"].tolist())
    assert rows == [[1, 2, 3, 4, 5, 6], [11, 12, 13, 0, 0, 0]]


def test_a_process_reads_only_documents_of_its_own_rows(make_shards, monkeypatch):
    shards = make_shards({"english": [7] * 64})
    read = []
    original = type(shards).records
    monkeypatch.setattr(
        type(shards), "records",
        lambda self, documents: (read.extend(map(int, documents)), original(self, documents))[1],
    )  # fmt: skip
    mixture = Mixture({"english": 1.0})
    take(text_batches(shards, mixture, seq_len=8, batch_rows=8, process_count=4), 2)
    assert len(read) == 4  # 2 rows x 2 batches, one document each


def test_settings_that_cannot_be(shards_once):
    def make(**change):
        options = dict(seq_len=8, batch_rows=4) | change
        return text_batches(shards_once, options.pop("mixture", MIX), **options)

    for change, message in [
        ({"seq_len": 0}, "seq_len must be at least 1"),
        ({"process_count": 3}, "4 rows cannot be divided among 3"),
        ({"process_index": 1}, r"not in 0\.\.0"),
        ({"mixture": Mixture({"engl": 1.0})}, "'engl'; known are english, code, math"),
        ({"packing": PackingConfig(long_documents="error")}, "Document 'made/.* has .* tokens"),
        ({"start": {"law": 3}}, "domain in start 'law'"),
        ({"start": {"code": -3}}, "at least 0"),
        ({"start": {"code": 3}, "packing": PackingConfig("whole")}, "only rows='concat'"),
    ]:
        with pytest.raises(TextDataError, match=message):
            make(**change)
    with pytest.raises(TextDataError, match="rows 'concatenate'.*Did you mean 'concat'"):
        PackingConfig("concatenate")
