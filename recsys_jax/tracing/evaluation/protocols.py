"""What is observed, what is fed back and what is scored.

Letters: B students, T steps, L the number of answers of a student.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from recsys_jax.tracing.batch import Batch
from recsys_jax.tracing.evaluation.rows import RowAccumulator, Rows

FEEDBACK = ("threshold", "sample", "expected")
AFTER = ("true", *FEEDBACK, "nothing")
BUCKETS = ((1, 10), (11, 30), (31, 100), (101, 200))
PREFIXES = (0.2, 0.5, 0.8)


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A model as evaluation sees it.

    logits: Batch -> float (B, T), teacher-forced; logit t reads responses before t alone.
    rollout: (batch, observed bool (B, T), feedback, key) -> float (B, T): where a response is not
    observed the model feeds back its own: 'threshold' (1 where p >= .5), 'sample', or 'expected'
    (p itself). None where only single-step figures are wanted.
    feedback: the kinds of feedback that rollout takes.
    """

    logits: Callable[[Batch], jax.Array]
    rollout: Callable[[Batch, jax.Array, str, jax.Array], jax.Array] | None = None
    feedback: tuple[str, ...] = FEEDBACK


def predictors_of(model) -> Callable[[Any], Predictor]:
    """variables -> the Predictor of a Flax tracing model, compiled once per batch shape."""
    from recsys_jax.tracing.rollout import is_stepped, rollout

    logits = jax.jit(lambda variables, batch: model.apply(variables, batch))
    roll = jax.jit(
        lambda variables, batch, observed, feedback, key: rollout(
            model, variables, batch, observed, feedback=feedback, key=key
        ),
        static_argnums=3,
    )
    # Attention models look responses up in tables, where half an answer has no row.
    soft = is_stepped(model) or getattr(model, "soft_responses", False)

    def predictor(variables) -> Predictor:
        return Predictor(
            lambda batch: logits(variables, batch),
            lambda batch, observed, feedback, key: roll(variables, batch, observed, feedback, key),
            FEEDBACK if soft else FEEDBACK[:2],
        )

    return predictor


def predictor_of(model, variables) -> Predictor:
    """The Predictor of a model and its variables; see `predictors_of` for several of them."""
    return predictors_of(model)(variables)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way of evaluating.

    prefix: share of a student's answers observed first; 0 observes none. With rho > 0 these are
    the first min(max(floor(rho L), 1), L - 1) answers, so a student needs two.
    after: what follows the prefix. 'true': the true answers, each after it was predicted (single
    step); 'threshold', 'sample', 'expected': the model's own (open loop, 'accumulative'
    prediction in pyKT); 'nothing': every later question right after the prefix, without the
    questions between ('non-accumulative').
    rollouts: number K of sampled roll-outs, whose probabilities are averaged.
    first: first step that is scored when there is no prefix, from 0.
    """

    prefix: float = 0.0
    after: str = "true"
    rollouts: int = 1
    first: int = 0

    def __post_init__(self):
        if not 0.0 <= self.prefix < 1.0:
            raise ValueError(f"prefix={self.prefix} must be at least 0 and below 1.")
        if self.after not in AFTER:
            raise ValueError(f"after={self.after!r} is unknown; allowed are {', '.join(AFTER)}.")
        if self.after == "nothing" and self.prefix == 0.0:
            raise ValueError("after='nothing' needs an observed prefix; set prefix above 0.")
        if self.rollouts < 1 or (self.rollouts > 1 and self.after != "sample"):
            raise ValueError(
                f"rollouts={self.rollouts} with after={self.after!r}: more than one roll-out needs "
                "after='sample', and there must be at least one."
            )
        if self.first < 0:
            raise ValueError(f"first={self.first} must be at least 0.")

    @property
    def open_loop(self) -> bool:
        """Whether predictions beyond the first step rest on no true answer."""
        return self.after != "true"

    @property
    def name(self) -> str:
        """Such as 'single-step', 'open loop, threshold', 'prefix 0.5, sample x10'."""
        after = {"true": "single-step", "nothing": "prefix only"}.get(self.after, self.after)
        if self.rollouts > 1:
            after += f" x{self.rollouts}"
        if self.prefix > 0:
            return f"prefix {self.prefix:g}, {after}"
        return after if self.after == "true" else f"open loop, {after}"


# As pyKT: the first answer has nothing before it and is not scored.
SINGLE_STEP = Protocol(first=1)


def standard_protocols(
    *,
    prefixes: Sequence[float] = PREFIXES,
    feedback: Sequence[str] = FEEDBACK,
    rollouts: int = 10,
    non_accumulative: bool = True,
) -> tuple[Protocol, ...]:
    """Single-step, the open loop without prefix, and every prefix: true answers, then open loop."""

    def loop(prefix, after):
        return Protocol(prefix, after, rollouts if after == "sample" else 1)

    out = [SINGLE_STEP, *(loop(0.0, after) for after in feedback)]
    for prefix in prefixes:
        out.append(Protocol(prefix))
        out += [loop(prefix, after) for after in feedback]
        if non_accumulative:
            out.append(Protocol(prefix, "nothing"))
    return tuple(out)


def parse_protocol(name: str) -> Protocol:
    """The protocol of a name as `Protocol.name` writes it.

    Raises ValueError for anything else.
    """
    match = re.fullmatch(
        r"(?:prefix (?P<prefix>0?\.\d+), |open loop, )?"
        r"(?P<after>single-step|threshold|sample|expected|prefix only)(?: x(?P<k>\d+))?",
        name,
    )
    found = None
    if name == SINGLE_STEP.name:
        return SINGLE_STEP
    if match and (match["prefix"] or match["after"] not in ("single-step", "prefix only")):
        after = {"single-step": "true", "prefix only": "nothing"}.get(match["after"])
        prefix, rollouts = float(match["prefix"] or 0.0), int(match["k"] or 1)
        found = Protocol(prefix, after or match["after"], rollouts)
    if found is None or found.name != name:
        raise ValueError(
            f"Protocol {name!r} is unknown; write 'single-step', 'open loop, threshold', "
            "'open loop, sample x10', 'prefix 0.5, expected' or 'prefix 0.2, prefix only'."
        )
    return found


def split_points(mask, prefix: float) -> np.ndarray:
    """int [B]: number of observed answers; 0 without prefix, and for students with one answer.

    mask: bool (B, T), padded on the right.
    """
    length = np.asarray(mask).sum(1)
    if prefix == 0.0:
        return np.zeros(length.shape, np.int64)
    # 0.29 * 100 is 28.999...: without the addition one answer would be lost.
    points = np.floor(prefix * length + 1e-9).astype(np.int64)
    return np.minimum(np.maximum(points, 1), np.maximum(length - 1, 0))


def protocol_masks(mask, protocol: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """observed bool, scored bool and horizon int32, all (B, T), for a batch's mask (B, T).

    observed: true answers the model may read (single-step: after it predicted them). horizon: 1
    at the first step after the prefix; below 1 inside it.
    """
    mask = np.asarray(mask, bool)
    step = np.arange(mask.shape[1])[None]
    split = split_points(mask, protocol.prefix)[:, None]
    prefix = mask & (step < split)
    scored = mask & (step >= np.maximum(split, protocol.first))
    if protocol.prefix > 0:
        scored &= split > 0
    observed = mask if protocol.after == "true" else prefix
    return observed, scored, (step - split + 1).astype(np.int32)


def predict(predictor: Predictor, batch: Batch, protocol: Protocol, key: jax.Array) -> np.ndarray:
    """float64 (B, T): probability of a right answer under the protocol, valid where it is scored.

    Responses that the protocol does not observe are set to 0 before the model sees the batch, so
    they cannot reach a prediction, whatever the model does.

    Raises:
      ValueError: an open loop without `rollout`, logits of another shape.
    """
    observed, scored, _ = protocol_masks(batch.mask, protocol)
    responses = np.where(observed, np.asarray(batch.responses), 0).astype(np.int32)
    seen = batch._replace(responses=responses)
    if protocol.after == "true":
        return _sigmoid(predictor.logits(seen), scored.shape)
    if protocol.after == "nothing":
        return _after_prefix_alone(predictor, seen, split_points(batch.mask, protocol.prefix))
    if predictor.rollout is None:
        raise ValueError(
            f"Protocol {protocol.name!r} feeds the model's answers back and this model has no "
            "roll-out; give Predictor a rollout, or evaluate protocols with after='true'."
        )
    if protocol.after not in predictor.feedback:
        raise ValueError(
            f"Protocol {protocol.name!r} feeds back {protocol.after!r}; this model takes "
            f"{', '.join(predictor.feedback)}."
        )
    total = np.zeros(scored.shape)
    for k in range(protocol.rollouts):
        one = predictor.rollout(seen, observed, protocol.after, jax.random.fold_in(key, k))
        total += _sigmoid(one, scored.shape)
    return total / protocol.rollouts


def _after_prefix_alone(predictor, batch, split):
    """Every later question put right after the prefix: one row each, B rows to a pass."""
    questions, concepts, responses, mask = (np.asarray(x) for x in batch)
    size, steps = mask.shape
    row, step = np.nonzero(mask & (np.arange(steps) >= split[:, None]) & (split[:, None] > 0))
    out = np.full(mask.shape, 0.5)
    before = np.arange(steps)[None]
    for begin in range(0, row.size, size):
        b, t = row[begin : begin + size], step[begin : begin + size]
        # The last pass is filled up with repeats, so that every pass has one shape.
        full = np.resize(np.arange(b.size), size)
        b, t, place = b[full], t[full], split[b[full]]
        kept = before < place[:, None]
        asked = before == place[:, None]
        probe = Batch(
            np.where(kept, questions[b], np.where(asked, questions[b, t][:, None], 0)),
            np.where(
                kept[..., None], concepts[b],
                np.where(asked[..., None], concepts[b, t][:, None], 0),
            ),
            responses[b],  # Holds no unobserved answer any more.
            kept | asked,
        )  # fmt: skip
        out[b, t] = _sigmoid(predictor.logits(probe), mask.shape)[np.arange(size), place]
    return out


def _sigmoid(logits, shape):
    logits = np.asarray(logits, np.float64)
    if logits.shape != shape:
        raise ValueError(f"The model gave logits {logits.shape}; needed is one per step, {shape}.")
    return 0.5 * (1.0 + np.tanh(0.5 * logits))


def students_and_batch(item) -> tuple[np.ndarray, Batch]:
    """(students int [B], batch of NumPy arrays) of a pair, or of anything with these two fields.

    The latter is what `recsys_jax.tracing.data.evaluation_batches` yields.
    """
    students, batch = (item.students, item.batch) if hasattr(item, "students") else item
    return np.asarray(students), Batch(*(np.asarray(x) for x in batch))


def collect_given(data: Iterable[Any], probability: np.ndarray, protocol: Protocol) -> Rows:
    """Rows of known probabilities, such as those of a simulator's exact predictor (the ceiling).

    data: items with students, batch and rows int (B, T), the place of each step in `probability`
    float [E]. The probabilities must be those of the protocol.
    """
    found = RowAccumulator()
    for item in data:
        students, batch = students_and_batch(item)
        _, scored, horizon = protocol_masks(batch.mask, protocol)
        found.add(
            students=students, questions=batch.questions, responses=batch.responses,
            probabilities=probability[np.maximum(item.rows, 0)], scored=scored, horizon=horizon,
        )  # fmt: skip
    return found.finish()


def collect(
    predictor: Predictor,
    data: Iterable[Any],
    protocols: Sequence[Protocol],
    key: jax.Array,
) -> dict[str, Rows]:
    """Predictions of all protocols in one pass over the data: protocol name -> rows.

    Args:
      data: see `students_and_batch`; windows of one student share its number.
      key: for sampled feedback; batch i draws from its own fold.
    Raises:
      ValueError: two protocols of one name; see also `predict` and `RowAccumulator.add`.
    """
    names = [p.name for p in protocols]
    if len(set(names)) < len(names):
        raise ValueError(f"Protocols must differ; got {names}.")
    found = {name: RowAccumulator() for name in names}
    for i, item in enumerate(data):
        students, batch = students_and_batch(item)
        forced = None
        for j, protocol in enumerate(protocols):
            if protocol.after == "true" and forced is not None:
                p = forced  # One and the same pass whatever part of it is scored.
            else:
                fold = jax.random.fold_in(jax.random.fold_in(key, i), j)
                p = predict(predictor, batch, protocol, fold)
                forced = p if protocol.after == "true" else forced
            _, scored, horizon = protocol_masks(batch.mask, protocol)
            found[protocol.name].add(
                students=students, questions=batch.questions, responses=batch.responses,
                probabilities=p, scored=scored, horizon=horizon,
            )  # fmt: skip
    return {name: accumulator.finish() for name, accumulator in found.items()}
