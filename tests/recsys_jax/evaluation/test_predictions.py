"""Prediction files: rows, ids, titles, and no half-written file."""

import numpy as np
import polars as pl
import pytest

from recsys_jax.evaluation import predictions
from recsys_jax.evaluation.evaluator import UserLists
from recsys_jax.evaluation.predictions import PredictionError, write_predictions


def lists():
    inf = np.inf
    yield UserLists(
        np.array([0, 1], np.int32), np.zeros(2, np.int32),
        np.array([[3, 1, 2], [2, 0, 0]], np.int32),
        np.array([[0.5, 0.25, -1], [2, -inf, -inf]], np.float32),
    )  # fmt: skip
    yield UserLists(
        np.array([], np.int32), np.array([], np.int32), np.zeros((0, 3), np.int32),
        np.zeros((0, 3), np.float32),
    )  # fmt: skip
    yield UserLists(
        np.array([2], np.int32), np.zeros(1, np.int32), np.array([[1, 2, 3]], np.int32),
        np.array([[3, 2, 1]], np.float32),
    )  # fmt: skip


WANT = {
    "user": ["u7", "u7", "u7", "u9", "u4", "u4", "u4"],
    "rank": [1, 2, 3, 1, 1, 2, 3],
    "item": [30, 10, 20, 20, 10, 20, 30],
    "score": [0.5, 0.25, -1.0, 2.0, 3.0, 2.0, 1.0],
    "title": ['C, "x"', "A", None, None, "A", None, 'C, "x"'],
}


def read(path):
    return pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path)


@pytest.mark.parametrize("ending", ["parquet", "csv"])
@pytest.mark.parametrize("part_rows", [1, 500_000])
def test_rows_ids_and_titles(tmp_path, ending, part_rows, monkeypatch):
    monkeypatch.setattr(predictions, "_PART_ROWS", part_rows)
    path = tmp_path / "new" / f"top.{ending}"
    number = write_predictions(
        path, lists(), user_ids=np.array(["u7", "u9", "u4"], object),
        item_ids=[0, 10, 20, 30], titles={1: "A", 3: 'C, "x"'},
    )  # fmt: skip
    assert number == 3
    assert read(path).to_dict(as_series=False) == WANT
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_dense_ids_without_titles(tmp_path):
    write_predictions(tmp_path / "top.csv", lists())
    frame = read(tmp_path / "top.csv")
    assert frame.columns == ["user", "rank", "item", "score"]
    assert frame["user"].to_list() == [0, 0, 0, 1, 2, 2, 2]
    assert frame["item"].to_list() == [3, 1, 2, 2, 1, 2, 3]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_failure_keeps_the_old_file(tmp_path, ending):
    path = tmp_path / f"top.{ending}"
    path.write_text("old")

    def failing():
        yield next(lists())
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_predictions(path, failing())
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_errors(tmp_path):
    with pytest.raises(PredictionError, match=r"'top.xlsx'.*\.parquet or \.csv"):
        write_predictions(tmp_path / "top.xlsx", lists())
    for ending in ("csv", "parquet"):
        with pytest.raises(PredictionError, match="no user to recommend to"):
            write_predictions(tmp_path / f"top.{ending}", [])
    with pytest.raises(PredictionError, match="no original id for item 3"):
        write_predictions(tmp_path / "top.csv", lists(), item_ids=["", "a", "b"])
    assert list(tmp_path.iterdir()) == []
