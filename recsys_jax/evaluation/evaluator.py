"""Evaluation of a model over batches of users: full-catalogue ranks, metrics, recommendations.

R rows of a batch, N columns, D embedding, H history, U users, I items.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from recsys_jax.evaluation import metrics as metrics_lib
from recsys_jax.evaluation import processes
from recsys_jax.evaluation.progress import Progress, with_progress
from recsys_jax.evaluation.ranking import rank_targets_and_topk
from recsys_jax.evaluation.sharded import pad_rows, rank_targets_and_topk_sharded

Batch = Mapping[str, np.ndarray]
_IN_FLIGHT = 2  # Batches whose results are awaited while the next ones are prepared.


class EvaluationError(ValueError):
    """The input or the model cannot be evaluated; the message says what to change."""


class UserLists(NamedTuple):
    """Ranking of the real users of one batch (fillers removed), on the host.

    users int32 [u], ranks int32 [u] (0 = target unknown), items int32 [u, k], scores f32 [u, k].
    """

    users: np.ndarray
    ranks: np.ndarray
    items: np.ndarray
    scores: np.ndarray


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    metrics: name -> number: 'NDCG@10', 'HR@10' (= Recall@10), 'MRR@10', 'MRR', ..., 'coverage@k',
      'gini@k', and with popularity: 'rec_log_popularity@k', 'history_log_popularity',
      'rec_popularity_percentile@k', 'history_popularity_percentile', 'popularity_lift@k'.
    per_user: name -> float64 [U], the values whose mean is the metric (NaN = not defined for that
      user and left out of the mean), in the order of `users`.
    users: int32 [U], ascending, so that results of two models line up.
    ranks: int32 [U], 1 = best.
    topk_items: int32 [U, keep_topk] in the order of `users`, or None.
    item_counts: int64 [I + 1], how often each item is in a list of k_coverage.
    seconds: wall-clock time, without set-up but with compilation.
    """

    metrics: dict[str, float]
    per_user: dict[str, np.ndarray]
    users: np.ndarray
    ranks: np.ndarray
    topk_items: np.ndarray | None
    item_counts: np.ndarray
    seconds: float

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def users_per_second(self) -> float:
        return self.num_users / max(self.seconds, 1e-9)


class Evaluator:
    """Compiled evaluation of one encoder; compiles once per batch shape, also over many calls.

    Args:
      encode_fn: (params, batch) -> float [R, N, D], the user vector after each event (the one at
        ``lengths - 1`` is taken), or [R, D].
      ks: cut-offs of NDCG, HR and MRR.
      popularity: training events per item, [I + 1], entry 0 ignored; None leaves the popularity
        metrics out.
      k_coverage: list length of coverage, Gini index and popularity bias.
      keep_topk: list length kept per user in the result; 0 keeps none.
      num_items: I, where item tables have padding rows behind it; None = rows - 1.
      allowed_items: bool [I + 1], None = all.
      filter_target, rank_limit: the official protocol is (True, 2500); see `ranking`, `metrics`.
      block_items: rows of the item table per block; None chooses.
      mesh: users split over `data_axis`, item table over `model_axis` (None = not split). With
        several processes every process passes its own rows of each batch, equal shapes and the
        same number of batches (the rows of `jax.make_array_from_process_local_data`); params and
        item table must be the same on all. Without a mesh every process works alone on its own
        batches, any number of them. Either way all processes get the whole result.
      compiler_options: of `jax.jit` for the encoder.
    """

    def __init__(
        self,
        encode_fn: Callable[[Any, dict[str, jax.Array]], jax.Array],
        *,
        ks: Iterable[int] = metrics_lib.DEFAULT_KS,
        popularity=None,
        k_coverage: int = 10,
        keep_topk: int = 0,
        num_items: int | None = None,
        allowed_items=None,
        filter_target: bool = False,
        rank_limit: int | None = None,
        block_items: int | None = None,
        mesh: jax.sharding.Mesh | None = None,
        data_axis: str | None = "data",
        model_axis: str | None = "model",
        compiler_options: dict[str, Any] | None = None,
    ):
        if k_coverage < 0 or keep_topk < 0:
            raise EvaluationError(
                f"k_coverage={k_coverage} and keep_topk={keep_topk} are list lengths and cannot "
                "be negative."
            )
        self.ks = metrics_lib.check_ks(ks)
        self.popularity = None if popularity is None else np.asarray(popularity, np.float64)
        self.k_coverage = k_coverage
        self.keep_topk = keep_topk
        self.num_items = num_items
        self.rank_limit = rank_limit
        self._allowed = None if allowed_items is None else np.asarray(allowed_items, bool)
        self._options = dict(block_items=block_items, filter_target=filter_target)
        self._mesh, self._axes = mesh, (data_axis, model_axis)
        self._encode = _last_vectors(encode_fn, compiler_options)

    def evaluate(
        self,
        params,
        item_table,
        batches: Iterable[Batch],
        *,
        progress: Progress | bool = False,
    ) -> EvaluationResult:
        """Metrics over all users of `batches` whose target is known.

        Args:
          params: anything `encode_fn` takes.
          item_table: float [I + 1 (+ padding), D], or params -> such a table.
          batches: evaluation batch dicts (see docs/evaluation.md); rows with users < 0 are
            fillers. A user that occurs in several rows, one per target, counts once, with the
            mean over them; rank and list are those of the last one.
          progress: True for a bar on the terminal, or a function (batches done, total or None).
        Raises:
          EvaluationError: no user with a known target, non-finite vectors, fields missing.
        """
        begin = time.perf_counter()
        parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        counts = None
        weights = self._popularity_weights()
        stream = self._run(params, item_table, batches, max(self.k_coverage, self.keep_topk))
        for lists, history, num_items in with_progress(stream, batches, progress):
            if counts is None:
                counts = np.zeros(num_items + 1, np.int64)
                self._check_popularity(num_items)
            known = lists.ranks > 0
            short = lists.items[known, : self.k_coverage]
            counts += metrics_lib.recommendation_counts(short, num_items)
            parts["users"].append(lists.users[known])
            parts["ranks"].append(lists.ranks[known])
            if self.keep_topk:
                parts["items"].append(lists.items[known, : self.keep_topk])
            for name, weight in weights.items():
                parts[f"rec_{name}"].append(metrics_lib.mean_over_lists(weight, short))
                parts[f"history_{name}"].append(metrics_lib.mean_over_lists(weight, history[known]))
        arrays = {name: np.concatenate(values) for name, values in parts.items()}
        arrays, counts = processes.gather(arrays, counts)
        if not arrays or not len(arrays["users"]):
            raise EvaluationError(
                "No user with a known target was found in the evaluation batches; every user needs "
                "at least two events (check the data file and the split, config keys split.*)."
            )
        order = np.argsort(arrays["users"], kind="stable")
        arrays = {name: values[order] for name, values in arrays.items()}
        return self._result(arrays, counts, time.perf_counter() - begin)

    def recommend(
        self, params, item_table, batches: Iterable[Batch], k: int
    ) -> Iterator[UserLists]:
        """The k best items per user, batch by batch (for `predictions`); targets may be 0."""
        if k < 1:
            raise EvaluationError(f"k={k} must be at least 1 (--config.predict.k).")
        for lists, _, _ in self._run(params, item_table, batches, k):
            yield lists

    def _run(self, params, item_table, batches, k):
        """Yields (UserLists, history of the same rows, num_items), dispatching ahead."""
        table, allowed, num_items = self._table(params, item_table)
        params = self._on_mesh(params)
        k = min(k, num_items)
        pending: collections.deque = collections.deque()
        for batch in batches:
            pending.append(self._dispatch(params, table, allowed, batch, k, num_items))
            if len(pending) > _IN_FLIGHT:
                yield self._fetch(*pending.popleft(), num_items)
        while pending:
            yield self._fetch(*pending.popleft(), num_items)

    def _dispatch(self, params, table, allowed, batch, k, num_items):
        users = np.asarray(_field(batch, "users"))
        history = np.asarray(batch.get("history", np.zeros((len(users), 0), np.int32)))
        fields = {name: batch[name] for name in batch if name != "history"}
        # A power of two of history columns bounds the number of compilations.
        width = max(64, 1 << (history.shape[1] - 1).bit_length()) if history.shape[1] else 0
        fields["history"] = np.pad(history, ((0, 0), (0, width - history.shape[1])))
        _field(fields, "lengths")
        fields.setdefault("targets", np.zeros(len(users), np.int32))
        if self._mesh is not None:
            ways = self._mesh.shape[self._axes[0]] if self._axes[0] else 1
            total = len(users) * (jax.process_count() if ways > 1 else 1)
            if total % ways:
                raise EvaluationError(
                    f"An evaluation batch has {total} rows, which cannot be divided over the "
                    f"{ways} parts of the mesh's axis {self._axes[0]!r}; make "
                    f"--config.evaluation.batch_size a multiple of {ways}."
                )
            rows = NamedSharding(self._mesh, P(self._axes[0]))
            fields = {
                name: jax.make_array_from_process_local_data(rows, np.asarray(value))
                for name, value in fields.items()
            }
        targets, history_columns = fields.pop("targets"), fields.pop("history")
        vectors, finite = self._encode(params, fields)
        ranking = self._rank(vectors, table, allowed, targets, history_columns, k, num_items)
        return (ranking, finite), users, history

    def _fetch(self, out, users, history, num_items):
        ranking, finite = out
        if self._mesh is not None:
            own, (ranks, items, scores, finite) = processes.own_rows([*ranking, finite], len(users))
            users, history = users[own], history[own]
        else:
            ranks, items, scores = (np.asarray(x) for x in ranking)
            finite = np.asarray(finite)
        real = users >= 0
        if not finite[real].all():
            bad = users[real][~finite[real]]
            raise EvaluationError(
                f"The vectors of {len(bad)} users are not finite (first: user {bad[0]}). The model "
                "has diverged: lower the learning rate or restore an earlier checkpoint."
            )
        lists = UserLists(users[real], ranks[real], items[real], scores[real])
        return lists, history[real], num_items

    def _rank(self, vectors, table, allowed, targets, history, k, num_items):
        """The ranking of one batch, a program of its own: it compiles once for all models."""
        arguments = (vectors, table, targets, history)
        options = dict(k=k, num_items=num_items, allowed_items=allowed, **self._options)
        if self._mesh is None:
            return rank_targets_and_topk(*arguments, **options)
        data_axis, model_axis = self._axes
        return rank_targets_and_topk_sharded(
            *arguments, mesh=self._mesh, data_axis=data_axis, model_axis=model_axis, **options
        )

    def _table(self, params, item_table):
        """Item table and mask on the devices, and the number of items."""
        table = item_table(params) if callable(item_table) else item_table
        num_items = self.num_items or table.shape[0] - 1
        allowed = self._allowed
        if allowed is not None and len(allowed) not in (num_items + 1, table.shape[0]):
            raise EvaluationError(
                f"allowed_items has {len(allowed)} entries; it needs one per item and one for "
                f"padding, {num_items + 1}."
            )
        if allowed is not None:
            allowed = np.pad(allowed, (0, table.shape[0] - len(allowed)))
        if self._mesh is not None:
            if allowed is None:
                allowed = np.ones(table.shape[0], bool)
            axis = self._axes[1]
            multiple = self._mesh.shape[axis] if axis else 1
            if table.shape[0] % multiple:
                table = pad_rows(table, multiple)
            table = self._on_mesh(table, P(axis))
            allowed = self._on_mesh(pad_rows(allowed, multiple), P(axis))
        else:
            table = jnp.asarray(table)
        if not bool(_all_finite(table)):
            raise EvaluationError(
                "The item table holds values that are not finite. The model has diverged: lower "
                "the learning rate or restore an earlier checkpoint."
            )
        return table, allowed, num_items

    def _on_mesh(self, tree, spec=None):
        """Put host values and single-device arrays on the mesh; leave global arrays alone."""
        if self._mesh is None:
            return tree
        sharding = NamedSharding(self._mesh, spec or P())
        devices = set(self._mesh.devices.flat)

        def put(x):
            if isinstance(x, jax.Array) and x.sharding.device_set == devices:
                return x
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

        return jax.tree.map(put, tree)

    def _popularity_weights(self) -> dict[str, np.ndarray]:
        if self.popularity is None or not self.k_coverage:
            return {}
        return {
            "log_popularity": np.log1p(self.popularity),
            "popularity_percentile": metrics_lib.popularity_percentile(self.popularity),
        }

    def _check_popularity(self, num_items):
        if self.popularity is not None and self.popularity.shape != (num_items + 1,):
            raise EvaluationError(
                f"popularity has shape {self.popularity.shape}; it needs one count per item and "
                f"one for padding, ({num_items + 1},)."
            )

    def _result(self, arrays, counts, seconds) -> EvaluationResult:
        ranks = arrays["ranks"]
        per_user = metrics_lib.rank_metrics(ranks, self.ks, rank_limit=self.rank_limit)
        k = self.k_coverage
        if "rec_log_popularity" in arrays:
            for name in ("log_popularity", "popularity_percentile"):
                per_user[f"rec_{name}@{k}"] = arrays[f"rec_{name}"]
                per_user[f"history_{name}"] = arrays[f"history_{name}"]
            per_user[f"popularity_lift@{k}"] = (
                arrays["rec_popularity_percentile"] - arrays["history_popularity_percentile"]
            )
        users, last = arrays["users"], slice(None)
        if len(np.unique(users)) < len(users):
            per_user = {
                name: metrics_lib.mean_by_user(users, values) for name, values in per_user.items()
            }
            last = np.flatnonzero(np.append(users[1:] != users[:-1], True))
        metrics = {name: metrics_lib.mean_of_defined(values) for name, values in per_user.items()}
        if k:
            metrics[f"coverage@{k}"] = metrics_lib.coverage(counts)
            metrics[f"gini@{k}"] = metrics_lib.gini(counts)
        return EvaluationResult(
            metrics=metrics,
            per_user=per_user,
            users=users[last],
            ranks=ranks[last],
            topk_items=arrays["items"][last] if "items" in arrays else None,
            item_counts=counts,
            seconds=seconds,
        )


def evaluate(
    encode_fn,
    params,
    item_table,
    batches: Iterable[Batch],
    *,
    progress: Progress | bool = False,
    **options,
) -> EvaluationResult:
    """One-off `Evaluator(encode_fn, **options).evaluate(...)`.

    Compiles anew on every call: where a model is evaluated again and again, keep an `Evaluator`.
    """
    return Evaluator(encode_fn, **options).evaluate(params, item_table, batches, progress=progress)


def _last_vectors(encode_fn, compiler_options=None):
    """Jitted (params, batch) -> user vectors [R, D] after the last event, finite [R] bool."""

    @functools.partial(jax.jit, compiler_options=compiler_options)
    def encode(params, batch):
        vectors = encode_fn(params, batch)
        if vectors.ndim == 3:
            last = jnp.maximum(batch["lengths"].astype(jnp.int32) - 1, 0)
            vectors = jnp.take_along_axis(vectors, last[:, None, None], axis=1)[:, 0]
        return vectors, jnp.isfinite(vectors).all(-1)

    return encode


@jax.jit
def _all_finite(table):
    return jnp.isfinite(table).all()


def _field(batch, name):
    if name not in batch:
        raise EvaluationError(
            f"The evaluation batch lacks the field {name!r}; it has {sorted(batch)}."
        )
    return batch[name]
