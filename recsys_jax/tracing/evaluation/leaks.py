"""Checks that a figure rests on no leak; each raises LeakError with what was found.

Letters: B students, T steps, N rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.evaluation.bootstrap import Scores, score
from recsys_jax.tracing.evaluation.rows import Rows


class LeakError(ValueError):
    """Something reaches a prediction or a table that must not; the message says what and where."""


def check_disjoint_students(parts: Mapping[str, Iterable[Any]]) -> None:
    """Refuses parts of the data ('train', 'valid', ...) that share a student."""
    sets = {name: set(students) for name, students in parts.items()}
    names = list(sets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            shared = sets[a] & sets[b]
            if shared:
                raise LeakError(
                    f"{len(shared)} students stand in both {a!r} and {b!r}, for example "
                    f"{min(shared, key=str)!r}; split the data by student."
                )


def expanded_duplicates(batch: Batch) -> np.ndarray:
    """bool (B, T): steps that repeat the answer before them for other concepts of its question.

    Same question and response as the step before, and no concept shared with it: one answer
    written once per concept. A second attempt keeps its concepts and is not counted.
    """
    questions, concepts, responses, mask = (np.asarray(x) for x in batch)
    now, past = concepts[:, 1:, :, None], concepts[:, :-1, None, :]
    shared = ((now == past) & (now > 0)).any((-1, -2))
    listed = (concepts > 0).any(-1)
    same = (questions[:, 1:] == questions[:, :-1]) & (responses[:, 1:] == responses[:, :-1])
    found = np.zeros(mask.shape, bool)
    found[:, 1:] = same & ~shared & listed[:, 1:] & listed[:, :-1] & mask[:, 1:] & mask[:, :-1]
    return found


def check_no_expanded_duplicates(batches: Iterable[Batch], *, allow: bool = False) -> int:
    """Number of repeated answers; raises LeakError for any unless they are allowed by name."""
    found = steps = 0
    for batch in batches:
        found += int(expanded_duplicates(batch).sum())
        steps += int(np.asarray(batch.mask).sum())
    if found and not allow:
        raise LeakError(
            f"{found} of {steps} steps ({found / steps:.1%}) repeat the answer before them for a "
            "further concept, so the model would be shown what it predicts. Keep one row per "
            "answer with the set of its concepts."
        )
    return found


def check_train_only(
    build: Callable[[Mapping[str, Sequence[Batch]]], Any], parts: Mapping[str, Sequence[Batch]]
) -> None:
    """Checks that tables built from the parts do not move when other parts than 'train' do.

    build: part name -> batches, gives any pytree of arrays; it is called with the responses of all
    other parts flipped, and with those parts empty.
    """
    if "train" not in parts:
        raise ValueError(f"parts has no 'train'; it has {', '.join(map(repr, parts))}.")

    def flipped(batch):
        mask, responses = np.asarray(batch.mask), np.asarray(batch.responses)
        return batch._replace(responses=np.where(mask, 1 - responses, 0))

    expected = build(parts)
    changes = {
        "flipped": lambda batches: [flipped(b) for b in batches],
        "left out": lambda batches: [],
    }
    for what, change in changes.items():
        others = {k: v if k == "train" else change(v) for k, v in parts.items()}
        got = build(others)
        if jax.tree.structure(got) != jax.tree.structure(expected):
            raise LeakError(f"The tables have another form when held-out answers are {what}.")
        leaves = jax.tree.leaves_with_path(expected)
        for (path, x), y in zip(leaves, jax.tree.leaves(got), strict=True):
            x, y = np.asarray(x), np.asarray(y)
            if not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
                raise LeakError(
                    f"Table {jax.tree_util.keystr(path)} changes when the answers of "
                    f"{[k for k in parts if k != 'train']} are {what}; build it from training "
                    "students alone."
                )


def check_causality(
    logits: Callable[[Batch], jax.Array], batch: Batch, *, seed: int = 0, atol: float = 1e-5
) -> None:
    """Checks the contract of a tracing model: logit t reads questions to t and responses before t.

    For several cuts t: responses from t on are flipped and questions, with concepts, after t are
    exchanged among the batch's own; logits up to t must stay within atol.
    """
    batch = Batch(*(np.asarray(x) for x in batch))
    expected = np.asarray(logits(batch))
    rng = np.random.default_rng(seed)
    length = batch.mask.sum(1)
    steps = np.arange(batch.mask.shape[1])[None]
    real = np.argwhere(batch.mask)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        cut = np.maximum(np.ceil(share * length).astype(int) - 1, 0)[:, None]
        pick = real[rng.integers(0, len(real), batch.mask.shape)]
        later = batch.mask & (steps > cut)
        changed = {
            "responses": batch._replace(
                responses=np.where(
                    batch.mask & (steps >= cut), 1 - batch.responses, batch.responses
                )
            ),
            "questions": batch._replace(
                questions=np.where(
                    later, batch.questions[pick[..., 0], pick[..., 1]], batch.questions
                ),
                concepts=np.where(
                    later[..., None], batch.concepts[pick[..., 0], pick[..., 1]], batch.concepts
                ),
            ),
        }
        for what, other in changed.items():
            moved = np.abs(np.asarray(logits(other)) - expected) * (batch.mask & (steps <= cut))
            if not (moved <= atol).all():
                b, t = np.unravel_index(np.nanargmax(moved), moved.shape)
                raise LeakError(
                    f"Logit {t} of student {b} moves by {moved[b, t]:.3g} when {what} that it must "
                    f"not read change (cut at step {cut[b, 0]}; allowed {atol:g})."
                )


def check_open_loop(
    rollout: Callable[..., jax.Array], batch: Batch, observed, *, feedback: str = "threshold",
    key: jax.Array | None = None,
) -> None:  # fmt: skip
    """Checks that a roll-out is the same to the bit whatever the unobserved responses are."""
    observed = np.asarray(observed, bool)
    responses = np.asarray(batch.responses)
    key = jax.random.key(0) if key is None else key
    other = np.where(np.asarray(batch.mask) & ~observed, 1 - responses, responses)
    a = np.asarray(rollout(batch, observed, feedback, key))
    b = np.asarray(rollout(batch._replace(responses=other), observed, feedback, key))
    differs = (a != b) & np.asarray(batch.mask)
    if differs.any():
        student, step = np.argwhere(differs)[0]
        raise LeakError(
            f"The open loop reads true answers: logit {step} of student {student} changes from "
            f"{a[student, step]:.6g} to {b[student, step]:.6g} with unobserved responses flipped."
        )


def check_padding(
    logits: Callable[[Batch], jax.Array], batch: Batch, *, extra: int = 8, atol: float = 1e-5
) -> None:
    """Checks that further padded steps leave the logits of real steps within atol."""
    mask = np.asarray(batch.mask)

    def padded(x):
        x = np.asarray(x)
        return np.pad(x, [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2))

    expected = np.asarray(logits(batch))
    got = np.asarray(logits(Batch(*map(padded, batch))))[:, : mask.shape[1]]
    moved = np.where(mask, np.abs(got - expected), 0.0)
    if not (moved <= atol).all():
        raise LeakError(
            f"{extra} padded steps move a logit by {np.nanmax(moved):.3g} (allowed {atol:g}); "
            "padding must be masked."
        )


def shuffle_responses(batches: Sequence[Batch], seed: int = 0) -> list[Batch]:
    """The batches with the responses of all real steps dealt out anew, so that nothing tells them.

    A model may be trained and tested on such data, or a trained one tested: its AUC must be .5. It
    is above where a prediction reads its own answer.
    """
    masks = [np.asarray(b.mask) for b in batches]
    pool = np.concatenate([np.asarray(b.responses)[m] for b, m in zip(batches, masks, strict=True)])
    pool = np.random.default_rng(seed).permutation(pool)
    out, begin = [], 0
    for batch, mask in zip(batches, masks, strict=True):
        responses = np.zeros(mask.shape, np.int32)
        responses[mask] = pool[begin : begin + mask.sum()]
        begin += mask.sum()
        out.append(batch._replace(responses=responses))
    return out


def check_chance(rows: Rows, *, level: float = 0.999, seed: int = 0) -> Scores:
    """Checks that .5 lies in the interval of the AUC, for rows of shuffled responses.

    level: high, since every check of an honest model raises a false alarm with probability
    1 - level. Raises ValueError where the AUC is not defined (one class, no rows).
    """
    scores = score(rows, seed=seed, num_resamples=4000)
    interval = scores.interval("AUC", level)
    if not np.isfinite(interval.low):
        raise ValueError(
            f"The AUC of these {len(rows)} rows is not defined; needed are both answers."
        )
    if not interval.low <= 0.5 <= interval.high:
        raise LeakError(
            f"AUC {interval} on shuffled responses; it must be .5: predictions read the answers "
            "that they are scored with."
        )
    return scores
