"""MovieLens-100K as a tensorflow-datasets builder over a pinned wheel (no TensorFlow needed).

The recbole wheel carries the data set in RecBole's atomic files. One record per user and one per
film: reading 943 + 1,682 records takes a fraction of a second, 100,000 would take many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from pangu_jax.data.wheel import fetch_member
from recsys_jax.data.recbole import read_atomic

WHEEL = "recbole"
_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
LICENCE = (
    "MovieLens-100K, GroupLens Research, University of Minnesota: free for research use with "
    "acknowledgement, no redistribution without permission, no commercial use without permission."
)
CITATION = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4, Article 19. "
    "https://doi.org/10.1145/2827872"
)


class MovielensHundredK(tfds.core.GeneratorBasedBuilder):
    """100,000 ratings (1-5) of 1,682 films by 943 users, September 1997 to April 1998.

    Splits: 'users' (user attributes and the user's ratings in file order, with their row in the
    file so that the original order can be restored) and 'films' (title, year, genres).
    """

    name = "movielens_100k"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "As in recbole 1.2.1."}

    def _info(self) -> tfds.core.DatasetInfo:
        def column(dtype):
            return tfds.features.Tensor(shape=(None,), dtype=dtype)

        # One feature dict serves both splits (tfds allows only one): a film has no ratings, a user
        # no title.
        features = {
            "id": np.int64, "age": np.int64, "gender": tfds.features.Text(),
            "occupation": tfds.features.Text(), "zip_code": tfds.features.Text(),
            "items": column(np.int64), "ratings": column(np.float32),
            "timestamps": column(np.int64), "rows": column(np.int64),
            "title": tfds.features.Text(), "year": np.int64, "genres": tfds.features.Text(),
        }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            homepage="https://grouplens.org/datasets/movielens/100k/",
            citation=CITATION,
            license=LICENCE,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # the wheel has its own checksum and cache
        inter, item, user = fetch_member(
            WHEEL, [f"{_FOLDER}.{e}" for e in ("inter", "item", "user")]
        )
        return {"users": _users(inter, user), "films": _films(item)}

    def _generate_examples(self):  # tfds requires the method; the generators above replace it
        raise NotImplementedError


_EMPTY = {
    "id": 0, "age": 0, "gender": "", "occupation": "", "zip_code": "", "title": "", "year": 0,
    "genres": "", "items": np.zeros(0, np.int64), "ratings": np.zeros(0, np.float32),
    "timestamps": np.zeros(0, np.int64), "rows": np.zeros(0, np.int64),
}  # fmt: skip


def _users(inter_path, user_path) -> Iterator[tuple[int, dict]]:
    inter, users = read_atomic(inter_path), read_atomic(user_path)
    user_of_row = inter["user_id"].to_numpy()
    item, rating = inter["item_id"].to_numpy(), inter["rating"].to_numpy()
    time = inter["timestamp"].to_numpy()
    for row in users.iter_rows(named=True):
        rows = np.flatnonzero(user_of_row == row["user_id"])
        yield row["user_id"], _EMPTY | {
            "id": row["user_id"], "age": int(row["age"]), "gender": row["gender"],
            "occupation": row["occupation"], "zip_code": str(row["zip_code"]),
            "items": item[rows].astype(np.int64), "ratings": rating[rows].astype(np.float32),
            "timestamps": time[rows].astype(np.int64), "rows": rows.astype(np.int64),
        }  # fmt: skip


def _films(item_path) -> Iterator[tuple[int, dict]]:
    for row in read_atomic(item_path).iter_rows(named=True):
        year = str(row["release_year"])
        yield row["item_id"], _EMPTY | {
            "id": row["item_id"], "title": _title(row["movie_title"]),
            "year": int(year) if year.isdigit() else 0, "genres": row["class"] or "",
        }  # fmt: skip


def _title(title: str) -> str:
    """'Usual Suspects, The' -> 'The Usual Suspects'."""
    if title == "unkonwn":  # a slip in RecBole's copy; the original file says 'unknown'
        return "unknown"
    for article in ("The", "A", "An", "La", "Le", "Les", "Il", "Das", "Die", "Der", "El"):
        if title.endswith(f", {article}"):
            return f"{article} {title[: -len(article) - 2]}"
    return title
