"""The evaluator end to end: right vectors, fillers ignored, one compilation per shape."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from recsys_jax.evaluation import metrics
from recsys_jax.evaluation.evaluator import EvaluationError, Evaluator, evaluate
from recsys_jax.evaluation.ranking import NOT_RANKED

ITEMS, COLUMNS, WIDTH = 120, 6, 5


def table_of(params):
    return params["table"]


def encode(params, batch):
    """The vector after an event is that event's item vector: easy to follow by hand."""
    return params["table"][batch["items"]]


def make(users=21, rows=8, seed=0):
    rng = np.random.default_rng(seed)
    params = {"table": rng.integers(-3, 4, (ITEMS + 1, 4)).astype(np.float32)}
    batches = []
    for begin in range(0, users, rows):
        ids = np.full(rows, -1, np.int32)
        real = min(rows, users - begin)
        ids[:real] = np.arange(begin, begin + real)
        batches.append(
            {
                "items": rng.integers(1, ITEMS + 1, (rows, COLUMNS)).astype(np.int32),
                "lengths": rng.integers(1, COLUMNS + 1, rows).astype(np.int32),
                "targets": rng.integers(1, ITEMS + 1, rows).astype(np.int32),
                "history": rng.integers(0, ITEMS + 1, (rows, WIDTH)).astype(np.int32),
                "users": ids,
            }
        )
    return params, batches


def by_hand(params, batches, k):
    table = params["table"]
    users, ranks, lists = [], [], []
    for b in batches:
        for i in np.flatnonzero(b["users"] >= 0):
            scores = table @ table[b["items"][i, b["lengths"][i] - 1]]
            target = b["targets"][i]
            candidate = np.arange(ITEMS + 1) > 0
            candidate[[x for x in b["history"][i] if x != target]] = False
            others = candidate.copy()
            others[target] = False
            users.append(b["users"][i])
            ranks.append(1 + (scores[others] >= scores[target]).sum())
            ids = np.flatnonzero(candidate)
            lists.append(ids[np.lexsort((ids, -scores[ids]))][:k])
    return np.array(users), np.array(ranks), np.array(lists)


def test_equals_a_loop_over_users():
    params, batches = make()
    popularity = np.random.default_rng(1).integers(0, 50, ITEMS + 1)
    got = evaluate(encode, params, table_of, batches, popularity=popularity, keep_topk=7)
    users, ranks, lists = by_hand(params, batches, 10)
    np.testing.assert_array_equal(got.users, users)
    np.testing.assert_array_equal(got.ranks, ranks)
    np.testing.assert_array_equal(got.topk_items, lists[:, :7])
    assert got.metrics["Recall@10"] == (ranks <= 10).mean()
    for name, values in metrics.rank_metrics(ranks).items():
        np.testing.assert_array_equal(got.per_user[name], values)
        assert got.metrics[name] == pytest.approx(values.mean())
    assert got.metrics["coverage@10"] == len(np.unique(lists)) / ITEMS
    logs = np.log1p(popularity)
    assert got.metrics["rec_log_popularity@10"] == pytest.approx(logs[lists].mean())
    past = np.concatenate([b["history"][b["users"] >= 0] for b in batches])
    want = np.nanmean([logs[h[h > 0]].mean() if (h > 0).any() else np.nan for h in past])
    assert got.metrics["history_log_popularity"] == pytest.approx(want)
    percentile = metrics.popularity_percentile(popularity)
    assert got.metrics["rec_popularity_percentile@10"] == pytest.approx(percentile[lists].mean())
    assert got.num_users == 21 and got.users_per_second > 0


def test_fillers_batching_and_order_do_not_matter():
    params, batches = make()
    want = evaluate(encode, params, table_of, batches, keep_topk=4)
    fields = {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}
    order = np.random.default_rng(0).permutation(len(fields["users"]))
    fields = {n: x[order] for n, x in fields.items()}
    rows = 6
    again = [{n: x[i : i + rows] for n, x in fields.items()} for i in range(0, len(order), rows)]
    for batch in again:  # What fillers hold must not matter.
        filler = batch["users"] < 0
        batch["lengths"] = np.where(filler, 0, batch["lengths"])
        batch["targets"] = np.where(filler, 0, batch["targets"])
        batch["items"] = np.where(filler[:, None], 0, batch["items"])
        batch["history"] = np.pad(batch["history"], ((0, 0), (0, 2)))
    got = evaluate(encode, params, table_of, again, keep_topk=4)
    np.testing.assert_array_equal(got.users, want.users)
    np.testing.assert_array_equal(got.ranks, want.ranks)
    np.testing.assert_array_equal(got.topk_items, want.topk_items)
    assert got.metrics == want.metrics


@pytest.mark.parametrize("shape", [(2, 4), (8, 1), (1, 8)])
def test_mesh_equals_one_device(shape):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices")
    params, batches = make()
    allowed = np.random.default_rng(0).random(ITEMS + 1) < 0.9
    options = dict(popularity=np.arange(ITEMS + 1), keep_topk=3, allowed_items=allowed)
    want = evaluate(encode, params, table_of, batches, **options)
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    got = evaluate(encode, params, table_of, batches, mesh=mesh, **options)
    np.testing.assert_array_equal(got.ranks, want.ranks)
    np.testing.assert_array_equal(got.topk_items, want.topk_items)
    assert got.metrics == want.metrics


def test_compiles_once_per_shape_over_many_calls():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return encode(params, batch)

    params, batches = make()
    evaluator = Evaluator(counted)
    first = evaluator.evaluate(params, table_of, batches)
    params["table"] = params["table"] * 2
    second = evaluator.evaluate(params, table_of, batches)
    assert len(traces) == 1
    np.testing.assert_array_equal(first.ranks, second.ranks)  # Scaling changes no rank.


def test_official_protocol_options():
    params, batches = make()
    for b in batches:
        b["history"][:, 0] = b["targets"]
    got = evaluate(encode, params, table_of, batches, filter_target=True, rank_limit=100)
    assert (got.ranks == NOT_RANKED).all()
    np.testing.assert_allclose(got.per_user["MRR"], 1 / 101)
    assert got.metrics["HR@50"] == 0


def test_unknown_targets_are_left_out_and_recommend_serves_them():
    params, batches = make()
    _, _, lists = by_hand(params, batches, 6)
    for b in batches:
        b["targets"] = np.where(b["users"] % 3 == 0, 0, b["targets"])
    got = evaluate(encode, params, table_of, batches)
    assert got.users.tolist() == [u for u in range(21) if u % 3]
    served = list(Evaluator(encode).recommend(params, table_of, batches, k=6))
    users = np.concatenate([s.users for s in served])
    items = np.concatenate([s.items for s in served])
    np.testing.assert_array_equal(users, np.arange(21))
    known = users % 3 > 0
    np.testing.assert_array_equal(items[known], lists[known])
    assert all(np.isfinite(s.scores).all() for s in served)


def test_table_with_padding_rows_and_encoder_of_last_vectors():
    params, batches = make()
    want = evaluate(encode, params, table_of, batches)
    padded = np.pad(params["table"], ((0, 7), (0, 0)), constant_values=99)

    def last(params, batch):
        return params["table"][batch["items"]][np.arange(8), batch["lengths"] - 1]

    got = evaluate(last, params, padded, batches, num_items=ITEMS)
    np.testing.assert_array_equal(got.ranks, want.ranks)
    assert got.metrics == want.metrics


def test_progress_function_sees_every_batch():
    params, batches = make()
    seen = []
    evaluate(encode, params, table_of, batches, progress=lambda *a: seen.append(a))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    seen.clear()
    evaluate(encode, params, table_of, iter(batches), progress=lambda *a: seen.append(a))
    assert seen == [(1, None), (2, None), (3, None)]


def broken(field):
    params, batches = make()
    for b in batches:
        del b[field]
    return params, batches


def test_errors():
    params, batches = make()
    with pytest.raises(EvaluationError, match="No user with a known target"):
        evaluate(encode, params, table_of, [])
    with pytest.raises(EvaluationError, match="No user with a known target"):
        evaluate(encode, params, table_of, [{**b, "targets": b["targets"] * 0} for b in batches])
    with pytest.raises(EvaluationError, match="lacks the field 'lengths'"):
        evaluate(encode, *broken("lengths")[:1], table_of, broken("lengths")[1])
    with pytest.raises(EvaluationError, match="popularity has shape"):
        evaluate(encode, params, table_of, batches, popularity=np.ones(3))
    with pytest.raises(EvaluationError, match="allowed_items has 3 entries"):
        evaluate(encode, params, table_of, batches, allowed_items=np.ones(3, bool))
    with pytest.raises(EvaluationError, match="k_coverage=-1"):
        evaluate(encode, params, table_of, batches, k_coverage=-1)
    with pytest.raises(EvaluationError, match="k=0"):
        next(Evaluator(encode).recommend(params, table_of, batches, k=0))
    bad = {"table": params["table"] * np.where(np.arange(4) == 1, np.nan, 1).astype(np.float32)}
    with pytest.raises(EvaluationError, match="item table holds values that are not finite"):
        evaluate(encode, bad, table_of, batches)
    with pytest.raises(EvaluationError, match="vectors of 8 users are not finite .first: user 0"):
        evaluate(encode, bad, lambda _: params["table"], batches)


def test_a_user_with_several_targets_counts_once():
    """Otherwise intervals and tests over users would take the rows for as many users."""
    params, batches = make(users=16)
    popularity = np.arange(ITEMS + 1)
    rows = evaluate(encode, params, table_of, batches, popularity=popularity, keep_topk=3)
    for batch in batches:
        batch["users"] = batch["users"] // 2 % 4  # eight users become four in two batches
    got = evaluate(encode, params, table_of, batches, popularity=popularity, keep_topk=3)
    owner = rows.users // 2 % 4
    assert got.users.tolist() == [0, 1, 2, 3] and got.num_users == 4
    for name, values in rows.per_user.items():
        want = [values[owner == user].mean() for user in range(4)]
        np.testing.assert_allclose(got.per_user[name], want)
        assert got.metrics[name] == pytest.approx(np.mean(want))
    assert got.metrics["coverage@10"] == rows.metrics["coverage@10"]
    last = [np.flatnonzero(owner == user)[-1] for user in range(4)]
    np.testing.assert_array_equal(got.topk_items, rows.topk_items[last])
    np.testing.assert_array_equal(got.ranks, rows.ranks[last])


def test_rows_that_do_not_fit_the_mesh_name_the_key():
    params, batches = make(rows=15)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with pytest.raises(EvaluationError, match="15 rows.*evaluation.batch_size a multiple of 2"):
        evaluate(encode, params, table_of, batches, mesh=mesh)
