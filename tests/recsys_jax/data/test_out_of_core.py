"""Preprocessing to disk equals the path in memory; interruption, refusal, bad input."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from recsys_jax.data import (
    ArrayRecordSequences,
    DataError,
    DataWarning,
    LeaveOneOut,
    TemporalGlobal,
    UserSequences,
    load_log,
    training_item_counts,
)
from recsys_jax.data import out_of_core as lib
from recsys_jax.data.batches import pairwise_dataset, training_dataset
from recsys_jax.data.evaluation import evaluation_batches


def log_frame(text_ids=False, rows=3000, seed=0):
    rng = np.random.default_rng(seed)
    users, items = rng.integers(5, 90, rows) * 7, rng.zipf(1.5, rows) % 200
    frame = pl.DataFrame(
        {"user_id": users, "item_id": items, "timestamp": rng.integers(10**6, 10**6 + 500, rows)}
    )
    if text_ids:
        frame = frame.with_columns(
            pl.format("u{}", "user_id").alias("user_id"),
            pl.format("i{}", "item_id").alias("item_id"),
        )
    return frame


def assert_same(disk, memory):
    assert disk.num_items == memory.num_items
    np.testing.assert_array_equal(disk.lengths, memory.lengths)
    users = np.arange(memory.num_users)
    for got, expected in zip(
        disk.ranges(users, 0 * users, disk.lengths),
        (memory.items, memory.timestamps),
        strict=True,
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("text_ids", [False, True])
def test_equals_the_path_in_memory(tmp_path, monkeypatch, kind, text_ids):
    monkeypatch.setattr(lib, "_BATCH_ROWS", 700)
    path = tmp_path / f"log.{kind}"
    getattr(log_frame(text_ids), f"write_{kind}")(path)
    disk = lib.preprocess(path, tmp_path / "out", shard_events=500, time_scale=3)
    assert len(disk.manifest["shards"]) > 3 and not (tmp_path / "out" / ".work").exists()
    log = load_log({"source": kind, "path": str(path), "time_scale": 3})
    memory = UserSequences.from_log(log)
    assert_same(disk, memory)
    assert disk.item_vocabulary().ids.tolist() == log.item_ids.tolist()
    assert disk.user_ids().tolist() == log.user_ids.tolist()

    for rule in (
        LeaveOneOut(),
        TemporalGlobal(valid_from=333_400, test_from=333_450, targets="all"),
    ):
        for got, expected in zip(
            vars(rule(disk)).values(), vars(rule(memory)).values(), strict=True
        ):
            for name in ("user", "begin", "target"):
                np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    split = LeaveOneOut()(disk)
    np.testing.assert_array_equal(
        training_item_counts(disk, split.train), training_item_counts(memory, split.train)
    )
    options = dict(batch_size=8, max_len=20, seed=1)
    pairs = [
        (iter(training_dataset(s, split.train, **options, packed=True, row_length=40))
         for s in (disk, memory)),
        (iter(evaluation_batches(s, split.test, batch_size=8, max_len=20))
         for s in (disk, memory)),
    ]  # fmt: skip
    for first, second in pairs:
        for _ in range(5):
            got, expected = next(first), next(second)
            for name in expected:
                np.testing.assert_array_equal(got[name], expected[name])
    assert abs(disk.timestamp_quantile(0.5) - memory.timestamp_quantile(0.5)) <= 1
    with pytest.raises(DataError, match="in memory"):
        pairwise_dataset(disk, split.train, batch_size=4)


def test_single_event_users_and_odd_ids(tmp_path):
    frame = pl.DataFrame(
        {"user_id": [-9, 4, 10**12, 4, 10**15], "item_id": [3, 3, 5, 4, 3], "timestamp": [0] * 5}
    )
    frame = pl.concat([frame, frame[2:3]])
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.warns(DataWarning, match="2 user.s. with fewer than 2 events"):
        disk = lib.preprocess(tmp_path / "log.parquet", tmp_path / "out")
    assert disk.user_ids().tolist() == [4, 10**12]
    items = disk.item_vocabulary().ids
    users = np.array([1, 0])
    got, _ = disk.ranges(users, np.array([1, 0]), np.array([2, 2]))
    assert items[got].tolist() == [5, 3, 4]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("stage", ["_plan", "_shards", "encode_record", "_finish"])
def test_continues_after_an_interruption(tmp_path, monkeypatch, stage):
    path = tmp_path / "log.parquet"
    log_frame().write_parquet(path)
    real, calls = getattr(lib, stage), []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == (40 if stage == "encode_record" else 1):
            raise Killed
        return real(*args)

    options = dict(shard_events=400)
    with monkeypatch.context() as patch:
        patch.setattr(lib, stage, interrupted)
        with pytest.raises(Killed):
            lib.preprocess(path, tmp_path / "out", **options)
    with pytest.raises(DataError, match="holds no finished data set"):
        ArrayRecordSequences(tmp_path / "out")
    written = []
    monkeypatch.setattr(lib, "encode_record", lambda *a: written.append(a[0]) or _encode(*a))
    disk = lib.preprocess(path, tmp_path / "out", **options)
    assert_same(disk, UserSequences.from_log(load_log({"source": "parquet", "path": str(path)})))
    if stage == "encode_record":
        assert 0 < len(written) < disk.num_users, "finished shards must not be written again"
    if stage == "_finish":
        assert not written
    lib.preprocess(path, tmp_path / "out", **options)  # done: touches nothing
    assert len(written) in (0, len(set(written)))


_encode = lib.encode_record


def test_refuses_to_mix_data_sets(tmp_path):
    for seed in (0, 1):
        log_frame(seed=seed).write_parquet(tmp_path / f"{seed}.parquet")
    lib.preprocess(tmp_path / "0.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="holds the result of another log"):
        lib.preprocess(tmp_path / "1.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="holds the result of another log"):
        lib.preprocess(tmp_path / "0.parquet", tmp_path / "out", time_scale=2)
    disk = lib.preprocess(tmp_path / "1.parquet", tmp_path / "out", overwrite=True)
    log = load_log({"source": "parquet", "path": str(tmp_path / "1.parquet")})
    assert_same(disk, UserSequences.from_log(log))


def test_damaged_results_are_noticed(tmp_path):
    log_frame().write_parquet(tmp_path / "log.parquet")
    out = tmp_path / "out"
    lib.preprocess(tmp_path / "log.parquet", out, shard_events=800)
    manifest = json.loads((out / "manifest.json").read_text())
    lengths = np.load(out / "lengths.npy")
    np.save(out / "lengths.npy", lengths + 1)
    with pytest.raises(DataError, match="record of user number 3 is damaged"):
        ArrayRecordSequences(out).ranges(np.array([3]), np.array([0]), np.array([1]))
    shard = out / manifest["shards"][1]["file"]
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(DataError, match="shard-00001.array_record is missing or does not have"):
        ArrayRecordSequences(out)
    (out / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(DataError, match="format 99, this version reads 1"):
        ArrayRecordSequences(out)


HEAD = "user_id,item_id,timestamp\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        (HEAD, "holds no interactions"),
        ("user_id,item,timestamp\n1,1,1\n", "no column 'item_id'.*--config.data.columns.item"),
        (HEAD + "1,1,5\n1,2,-3\n", "row 3: .*negative .1 such rows"),
        (HEAD + "1,1,5\n,2,3\n", "row 3: .*missing id"),
        (HEAD + "1,1,5\n1,2,noon\n", "row 3: timestamp 'noon' is not a number"),
        (HEAD + "1,1,5\n2,2,6\n", "Nobody is left of the 2 users"),
        (HEAD + "1,1,5\n" * 20_000 + "1,1,noon\n", "cannot be read.*noon"),
    ],
)
def test_bad_logs(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        lib.preprocess(tmp_path / "log.csv", tmp_path / "out")
    # The corrected log may have the folder.
    (tmp_path / "log.csv").write_text(HEAD + "1,1,5\n1,2,6\n")
    assert lib.preprocess(tmp_path / "log.csv", tmp_path / "out").num_users == 1
