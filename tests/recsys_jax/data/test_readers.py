"""Readers and the schema: values, dense ids, and the messages for bad input."""

from __future__ import annotations

import datetime
import json

import numpy as np
import polars as pl
import pytest

from recsys_jax.data import DataError, DataWarning, UserSequences, Vocabulary, load_log
from recsys_jax.data.histories import histories_from_file

CSV = (
    "user_id,item_id,timestamp,stars,kind\nb,10,5,3.5,view\na,7,9,4,buy\nb,7,2,1,buy\na,10,1,5,x\n"
)


def write(path, text):
    path.write_text(text)
    return str(path)


def csv_log(path, text, **config):
    return load_log({"source": "csv", "path": write(path / "log.csv", text)} | config)


def test_csv_values_and_dense_ids(tmp_path):
    columns = {"rating": "stars", "behaviour": "kind", "features": ("stars",)}
    log = csv_log(tmp_path, CSV, columns=columns)
    assert log.user_ids.tolist() == ["a", "b"]
    assert log.item_ids.tolist() == [-1, 7, 10]
    assert log.user.tolist() == [1, 0, 1, 0] and log.user.dtype == np.int32
    assert log.item.tolist() == [2, 1, 1, 2] and log.item.dtype == np.int32
    assert log.timestamp.tolist() == [5, 9, 2, 1] and log.timestamp.dtype == np.int64
    assert log.rating.tolist() == [3.5, 4, 1, 5] and log.rating.dtype == np.float32
    assert log.behaviour.tolist() == ["view", "buy", "buy", "x"]
    assert log.features["stars"].tolist() == [3.5, 4, 1, 5]
    assert (log.num_users, log.num_items, log.num_events) == (2, 2, 4)


def test_parquet_with_dates_catalogue_and_titles(tmp_path):
    day = datetime.datetime(2020, 1, 1)
    pl.DataFrame(
        {
            "u": [1, 1, 2, 2],
            "i": [5, 6, 5, 9],
            "when": [day + datetime.timedelta(s) for s in range(4)],
        }
    ).write_parquet(tmp_path / "log.parquet")
    pl.DataFrame({"i": [9, 8, 6, 5], "t": ["nine", None, "six", "five"]}).write_parquet(
        tmp_path / "items.parquet"
    )
    log = load_log(
        {
            "source": "parquet",
            "path": str(tmp_path / "log.parquet"),
            "catalogue": str(tmp_path / "items.parquet"),
            "columns": {"user": "u", "item": "i", "timestamp": "when", "title": "t"},
        }
    )
    assert log.item_ids.tolist() == [-1, 5, 6, 8, 9]  # 8 was never touched
    assert log.item_titles.tolist() == ["", "five", "six", "", "nine"]
    assert log.timestamp[0] == day.replace(tzinfo=datetime.UTC).timestamp()
    assert np.diff(log.timestamp).tolist() == [86_400] * 3


def test_recbole_atomic_files(tmp_path):
    write(
        tmp_path / "x.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "2\t30\t4\t881250949\n2\t4\t5\t881250950\n11\t4\t1\t881250951\n11\t30\t2\t881250952\n",
    )
    write(
        tmp_path / "x.item",
        'item_id:token\tmovie_title:token_seq\tyear:float\n4\tFour "4"\t1994\n30\tÉté\t1990\n'
        "31\tNone\t\n",
    )
    write(tmp_path / "x.user", "user_id:token\tage:float\n2\t30\n11\t40\n")
    log = load_log({"source": "recbole", "path": str(tmp_path)})
    assert log.item_ids.tolist() == [-1, 4, 30, 31]
    assert log.user_ids.tolist() == [2, 11]  # numbers, not text: '11' < '2'
    assert log.item_titles.tolist() == ["", 'Four "4"', "Été", "None"]
    assert np.isnan(log.item_features["year"][3]) and log.item_features["year"][1] == 1994
    assert log.user_features["age"].tolist() == [30, 40]
    assert log.rating.tolist() == [4, 5, 1, 2]
    assert log.timestamp.tolist() == list(range(881250949, 881250953))


def test_tokens_with_leading_zeros_stay_text(tmp_path):
    write(
        tmp_path / "x.inter",
        "user_id:token\titem_id:token\ttimestamp:float\n1\t007\t1\n1\t7\t2\n",
    )
    log = load_log({"source": "recbole", "path": str(tmp_path / "x.inter")})
    assert log.item_ids.tolist() == ["", "007", "7"]


def test_s3rec_order_stands_for_time(tmp_path):
    log = load_log({"source": "s3rec", "path": write(tmp_path / "b.txt", "1 5 3 9\n2 3 5\n")})
    assert not log.has_timestamps
    sequences = UserSequences.from_log(log)
    ids = [log.item_ids[sequences.user(u)[0]].tolist() for u in range(2)]
    assert ids == [[5, 3, 9], [3, 5]]


def test_filters(tmp_path):
    text = "user_id,item_id,timestamp,stars\n"
    # Item 3 has one event: without it user 2 has one event left and goes, too.
    text += "1,1,1,5\n1,2,2,5\n2,1,3,5\n2,3,4,5\n3,1,5,5\n3,2,6,5\n3,2,7,1\n"
    with pytest.warns(DataWarning, match="1 user.s. with a single event dropped.*1 item.s."):
        log = csv_log(tmp_path, text, min_item_events=2)
    assert log.user_ids.tolist() == [1, 3] and log.item_ids.tolist() == [-1, 1, 2]
    assert log.num_events == 5
    with pytest.warns(DataWarning, match="2 user.s. with fewer than 3 events"):
        log = csv_log(tmp_path, text, min_user_events=3)
    assert log.user_ids.tolist() == [3]
    log = csv_log(tmp_path, text, min_rating=2, columns={"rating": "stars"})
    assert log.num_events == 6
    log = csv_log(tmp_path, text, time_scale=2)
    assert log.timestamp.tolist() == [0, 1, 1, 2, 2, 3, 3]


def test_large_integer_times_keep_every_digit(tmp_path):
    first = 1_600_000_000_123_456_789
    log = csv_log(tmp_path, f"user_id,item_id,timestamp\n1,1,{first}\n1,2,{first + 1}\n")
    assert log.timestamp.tolist() == [first, first + 1]


HEAD = "user_id,item_id,timestamp\n"
BAD_CSV = {
    "empty file": ("", {}, r"log.csv is empty"),
    "header only": (HEAD, {}, "holds no interactions"),
    "missing column": (
        "user_id,item_id,timestmp\n1,1,1\n",
        {},
        r"no column 'timestamp'.*it has user_id, item_id, timestmp.*Did you mean 'timestmp'"
        r".*--config.data.columns.timestamp",
    ),
    "text as time": (HEAD + "1,1,1\n1,2,noon\n", {}, r"row 3: timestamp 'noon' is not a number"),
    "no time": (HEAD + "1,1,1\n1,2,\n", {}, r"row 3: timestamp is nan"),
    "negative time": (HEAD + "1,1,1\n1,2,-4\n", {}, r"row 3: timestamp -4 is negative"),
    "NaN time": (HEAD + "1,1,1.5\n1,2,NaN\n", {}, r"row 3: timestamp is nan"),
    "missing id": (HEAD + "1,1,1\n,2,3\n", {}, r"row 3: user id .* is missing"),
    "NaN rating": (
        "user_id,item_id,timestamp,r\n1,1,1,1.0\n1,2,2,NaN\n",
        {"columns": {"rating": "r"}},
        r"row 3: rating is nan \(1 such rows\)",
    ),
    "NaN feature": (
        "user_id,item_id,timestamp,f\n1,1,1,\n1,2,2,1.0\n",
        {"columns": {"features": ("f",)}},
        r"row 2: f is nan",
    ),
    "one event each": (HEAD + "1,1,1\n2,2,2\n", {}, r"Nobody is left of the 2 users"),
    "rating needed": (HEAD + "1,1,1\n1,2,2\n", {"min_rating": 3}, "needs a rating column"),
    "bad scale": (HEAD + "1,1,1\n1,2,2\n", {"time_scale": 0}, "time_scale must be positive"),
    "unknown key": (HEAD, {"time_scal": 2}, "Unknown config key data.time_scal.*'time_scale'"),
    "unknown column key": (HEAD, {"columns": {"usr": "a"}}, "data.columns.usr.*'user'"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(tmp_path, case):
    text, config, message = BAD_CSV[case]
    with pytest.raises(DataError, match=message):
        csv_log(tmp_path, text, **config)


def test_other_bad_sources(tmp_path):
    with pytest.raises(DataError, match="'csvv' is unknown.*Did you mean 'csv'"):
        load_log({"source": "csvv"})
    with pytest.raises(DataError, match="needs a file: set --config.data.path"):
        load_log({"source": "csv"})
    with pytest.raises(DataError, match="There is no file"):
        load_log({"source": "csv", "path": str(tmp_path / "none.csv")})
    with pytest.raises(DataError, match="cannot be read as parquet"):
        load_log({"source": "parquet", "path": write(tmp_path / "x.parquet", "not parquet")})
    for text, message in (
        ("1 2 3\n2 3\n1 4\n", "line 3: user 1 was already on line 1"),
        ("1 2 x\n", "line 1: 'x' is not a whole number"),
        ("1\n", "user 1 has no items"),
        ("\n", "file is empty"),
    ):
        with pytest.raises(DataError, match=message):
            load_log({"source": "s3rec", "path": write(tmp_path / "s.txt", text)})
    for text, message in (
        ("", "is empty"),
        ("user_id\titem_id\n", "must be name:type"),
        ("user_id:tokn\n", "Did you mean 'token'"),
        ("user_id:token\titem_id:token\ttimestamp:float\n", "holds no interactions"),
        ("user_id:token\titem_id:token\ttimestamp:float\n1\t1\tx\n", "row 2: timestamp 'x'"),
        ("user_id:token\titem_id:token\n1\t1\n", "no column 'timestamp'"),
    ):
        with pytest.raises(DataError, match=message):
            load_log({"source": "recbole", "path": write(tmp_path / "s.inter", text)})


@pytest.mark.parametrize(
    "name, content, config, message",
    [
        ("a.csv", b"user_id;item_id;timestamp\n1;1;1\n", {}, "no column.*data.separator=';'"),
        ("a.csv", HEAD.encode() + b"1,1\n1,2,2,5\n", {}, "a line has more fields than the header"),
        ("a.csv", HEAD.encode() + b"\xe9,1,1\n\xe9,2,2\n", {}, "a.csv .*UTF-8"),
        ("a.csv", HEAD.encode(), {"separator": ";;"}, "separator=';;' must be a single"),
        ("a.csv", HEAD.encode() + b"1,1,2020-01-01\n", {}, "Dates are read from Parquet"),
        ("a.txt", b"1 2 3\n2 \xe9\n", {"source": "s3rec"}, "a.txt is not UTF-8 .byte 0xe9"),
        ("a.inter", b"user_id:token\titem_id:token\n\xe9\t1\n", {"source": "recbole"}, "UTF-8"),
        ("sub/a.txt", b"", {"path": "sub"}, "holds no .csv file"),
    ],
)
def test_files_of_another_kind(tmp_path, monkeypatch, name, content, config, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_log({"source": "csv", "path": name} | config)


def test_tfds_names(tmp_path, monkeypatch):
    monkeypatch.setenv("PANGU_JAX_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="no data set 'no_such_set_at_all'"):
        load_log({"source": "tfds:no_such_set_at_all"})

    import tensorflow_datasets as tfds

    def offline(*args, **kwargs):
        raise ConnectionError("name resolution failed")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(DataError, match="could not be downloaded.*name resolution failed.*network"):
        load_log({"source": "tfds:movielens/1m-ratings"})


def test_tfds_movielens_without_tensorflow(tmp_path, monkeypatch):
    """tfds' own builder and parser over a small stand-in for the downloaded ml-1m folder."""
    import tensorflow_datasets as tfds

    folder = tmp_path / "extracted" / "ml-1m"
    folder.mkdir(parents=True)
    write(folder / "movies.dat", "5::Five (1995)::Drama\n70::Seventy (1990)::Comedy|War\n")
    write(folder / "users.dat", "1::F::1::10::48067\n2::M::25::16::70072\n")
    ratings = ["1::70::5::978300760", "1::5::3::978302109", "2::5::4::978301968", "2::70::1::97"]
    write(folder / "ratings.dat", "\n".join(ratings) + "\n")
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda self, url: folder.parent
    )
    monkeypatch.setenv("PANGU_JAX_CACHE", str(tmp_path))
    for _ in range(2):  # from the builder, then from the copied table
        log = load_log({"source": "tfds:movielens/1m-ratings"})
        assert log.item_ids.tolist() == [-1, 5, 70] and log.user_ids.tolist() == [1, 2]
        assert log.item_titles.tolist() == ["", "Five (1995)", "Seventy (1990)"]
        assert "grouplens" in log.licence and "MovieLens" in log.citation
        events = zip(log.user, log.item, log.timestamp, log.rating, strict=True)
        expected = {(0, 2, 978300760, 5), (0, 1, 978302109, 3), (1, 1, 978301968, 4), (1, 2, 97, 1)}
        assert {tuple(map(int, e)) for e in events} == expected


def test_histories_for_prediction(tmp_path):
    vocabulary = Vocabulary(np.array([-1, 7, 10, 20]))
    path = tmp_path / "h.csv"
    write(path, "user_id,item_id,timestamp\nz,10,5\ny,7,1\nz,7,2\nz,20,2\n")
    histories = histories_from_file(path, vocabulary)
    assert histories.user_ids.tolist() == ["z", "y"] and histories.has_timestamps
    assert histories.sequences.user(0)[0].tolist() == [1, 3, 2]
    assert histories.sequences.user(0)[1].tolist() == [2, 2, 5]
    assert histories.sequences.num_items == 3

    lines = [{"user": "z", "items": [7, "20"]}, {"user": 4, "items": [10]}]
    path = write(tmp_path / "h.jsonl", "\n".join(map(json.dumps, lines)))
    histories = histories_from_file(path, vocabulary)
    assert not histories.has_timestamps
    assert [histories.sequences.user(u)[0].tolist() for u in (0, 1)] == [[1, 3], [2]]
    assert histories.sequences.timestamps.tolist() == [0, 1, 0]


def test_histories_with_unknown_items(tmp_path):
    vocabulary = Vocabulary(np.array(["", "a", "b"], dtype=object))
    path = write(tmp_path / "h.csv", "user_id,item_id\nu,a\nu,q\nv,q\nu,b\n")
    numbers = write(tmp_path / "n.csv", "user_id,item_id\nu,7\nu,9\n")
    with pytest.raises(DataError, match="n.csv row 3: item 9 was never seen"):
        histories_from_file(numbers, Vocabulary(np.array([-1, 7, 10])))
    with pytest.raises(
        DataError, match=r"h.csv row 3: item 'q' was never seen in training .2 such events"
    ):
        histories_from_file(path, vocabulary)
    histories = histories_from_file(path, vocabulary, unknown="skip")
    assert histories.skipped_events == 2 and histories.skipped_users == ("v",)
    assert histories.sequences.items.tolist() == [1, 2]
    assert histories.sequences.timestamps.tolist() == [0, 1]
    with pytest.raises(DataError, match="none of the 1 users"):
        path = write(tmp_path / "g.csv", "user_id,item_id\nu,q\n")
        histories_from_file(path, vocabulary, unknown="skip")
    for name in ("none.csv", "none.jsonl"):
        with pytest.raises(DataError, match="no file .*none.*--config.predict.histories"):
            histories_from_file(tmp_path / name, vocabulary)
    for name, text, message in (
        ("h.txt", "", "must end in one of .csv"),
        ("e.csv", "user_id,item_id\n", "holds no histories"),
        ("a.jsonl", "{", "line 1 is not of the form"),
        ("b.jsonl", '{"user": 1, "items": []}', "user 1 has no items"),
        ("c.jsonl", '{"user": 1, "items": ["a"], "timestamps": [1, 2]}', "2 timestamps for 1"),
        ("d.jsonl", '{"user": 1, "items": ["a"]}\n' * 2, "already on line 1"),
        ("f.csv", "user_id,item_id,timestamp\nu,a,-3\n", "row 2: timestamp -3 is negative"),
    ):
        with pytest.raises(DataError, match=message):
            histories_from_file(write(tmp_path / name, text), vocabulary)


@pytest.mark.parametrize("ids", [np.array([-1, 3, 5]), np.array(["", "x", "é"], dtype=object)])
def test_vocabulary_round_trip(tmp_path, ids):
    Vocabulary(ids).save(tmp_path / "v.parquet")
    again = Vocabulary.load(tmp_path / "v.parquet")
    assert again.ids.tolist() == ids.tolist()
    assert again.dense([ids[2], "nope", ids[1]]).tolist() == [2, 0, 1]
