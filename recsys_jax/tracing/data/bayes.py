"""The exact predictive probability of simulated answers: no predictor can have less log-loss.

Forward filtering over the hidden grid. Given the ability, topics are independent at first, a
question touches one topic only, and concepts move independently; so the exact posterior is a
weight per ability times, for each ability and topic, a distribution over that topic's L^k states.

B students, T steps, A abilities, G topics, M = L^k states.
"""

from __future__ import annotations

import itertools

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.log import AnswerLog
from recsys_jax.tracing.data.simulator import World
from recsys_jax.tracing.data.splits import make_sequences

_CHUNK = 256  # students filtered at once, which bounds the memory


def bayes_probabilities(
    world: World,
    questions: np.ndarray,
    responses: np.ndarray,
    mask: np.ndarray,
    observed: bool | np.ndarray = True,
) -> np.ndarray:
    """float64 (B, T): P(response t is right | questions, observed responses before t).

    Args:
      questions: int (B, T), numbers of the world (the original ids), from 1.
      responses: int (B, T); only those that are observed are read.
      mask: bool (B, T), real steps from the student's first one; the result is 0 elsewhere.
      observed: True: single step (all earlier responses are known). False: open loop (none is).
        bool (B, T): those are, e.g. a prefix.

    Raises:
      DataError: a question that the world does not have.
    """
    questions = np.asarray(questions)
    mask = np.asarray(mask, bool)
    asked = questions[mask]
    if asked.size and (asked.min() < 1 or asked.max() > world.config.num_questions):
        raise DataError(
            f"Question numbers {asked.min()}..{asked.max()} are not those of the simulated world, "
            f"1..{world.config.num_questions}; pass original ids, not dense ones."
        )
    observed = np.broadcast_to(np.asarray(observed, bool), mask.shape)
    parts = [
        _filter(world, questions[rows] - 1, np.asarray(responses)[rows], mask[rows], observed[rows])
        for rows in (slice(b, b + _CHUNK) for b in range(0, len(mask), _CHUNK))
    ]
    return np.concatenate(parts) if parts else np.zeros(mask.shape)


def bayes_of_log(world: World, log: AnswerLog, observed: bool | float = True) -> np.ndarray:
    """float64 [E]: `bayes_probabilities` of every row of a log that still has each student's
    first answers.

    observed: True, False, or a share in (0, 1): that part of each student's answers (rounded up)
    is known, the rest is open loop.
    """
    from recsys_jax.tracing.data.batches import make_batch
    from recsys_jax.tracing.data.cleaning import CleaningConfig

    sequences = make_sequences(log, np.arange(log.num_students), CleaningConfig(long="keep"))
    result = np.zeros(len(log))
    for begin in range(0, len(sequences), _CHUNK):
        index = np.arange(begin, min(begin + _CHUNK, len(sequences)))
        lengths = sequences.lengths[index]
        batch, _, rows = make_batch(log, sequences, index, len(index), int(lengths.max()))
        known = observed
        if not isinstance(observed, bool):
            prefix = np.ceil(np.round(observed * lengths, 9))
            known = np.arange(batch.mask.shape[1]) < prefix[:, None]
        numbers = np.where(batch.mask, log.question_ids[batch.questions], 0)
        values = bayes_probabilities(world, numbers, batch.responses, batch.mask, known)
        result[rows[batch.mask]] = values[batch.mask]
    return result


def topic_states(world: World) -> np.ndarray:
    """int64 [M, k], the levels of a topic's concepts in each of its states."""
    config = world.config
    return np.array(list(itertools.product(range(config.levels), repeat=config.concepts_per_topic)))


def transition_matrices(world: World) -> np.ndarray:
    """float64 [2 ** k, 2, M, M]: by set of practised concepts (bit i is concept i) and response."""
    config = world.config
    k, levels = config.concepts_per_topic, config.levels

    def step(chance: float, direction: int) -> np.ndarray:
        matrix = np.zeros((levels, levels))
        for level in range(levels):
            target = min(max(level + direction, 0), levels - 1)
            matrix[level, target] += chance
            matrix[level, level] += 1 - chance
        return matrix

    forget = step(config.forget, -1)
    learn = [step(config.learn_wrong, 1), step(config.learn_right, 1)]
    result = np.empty((2**k, 2, levels**k, levels**k))
    for subset in range(2**k):
        for response in range(2):
            matrix = np.ones((1, 1))
            for concept in range(k):
                matrix = np.kron(matrix, learn[response] if subset >> concept & 1 else forget)
            result[subset, response] = matrix
    return result


def initial_states(world: World) -> np.ndarray:
    """float64 [M], the distribution over a topic's states before the first answer."""
    config = world.config
    top, p = config.levels - 1, config.initial_mastery
    ways = np.array([1.0])
    for _ in range(top):  # Binomial(top, p) as repeated convolution of a coin
        ways = np.convolve(ways, [1 - p, p])
    result = np.ones(1)
    for _ in range(config.concepts_per_topic):
        result = np.kron(result, ways)
    return result


def _filter(world, questions, responses, mask, observed) -> np.ndarray:
    config = world.config
    count, steps = mask.shape
    states, moves = topic_states(world), transition_matrices(world)
    bits = world.members @ (1 << np.arange(config.concepts_per_topic))
    # mean level of each question's concepts in each state, [Q, M]
    mastery = world.members @ states.T / world.members.sum(1, keepdims=True)
    start = initial_states(world)
    belief = np.broadcast_to(
        start, (count, config.abilities, config.num_topics, len(start))
    ).copy()  # [B, A, G, M]
    weight = np.broadcast_to(world.ability_prior, (count, config.abilities)).copy()
    grid = world.ability_grid[None, :, None]
    students = np.arange(count)
    result = np.zeros((count, steps))
    for t in range(steps):
        if not mask[:, t].any():
            break
        question = np.where(mask[:, t], questions[:, t], 0)
        topic = world.topic[question]
        right = world.probability(question[:, None, None], grid, mastery[question][:, None, :])
        now = belief[students, :, topic]  # [B, A, M]
        by_ability = (now * right).sum(-1)
        result[:, t] = np.where(mask[:, t], (weight * by_ability).sum(-1), 0)

        known = observed[:, t]
        response = responses[:, t] == 1
        # Weights of the two responses: what was seen, or, unseen, both as likely as they are.
        took = np.stack([~known | ~response, ~known | response], -1).astype(float)  # [B, 2]
        seen = np.stack([now * (1 - right), now * right], 1) * took[:, :, None, None]
        evidence = seen.sum((1, -1))  # [B, A]; 1 where unseen
        moved = np.einsum("bram,brmn->ban", seen, moves[bits[question]])
        moved /= moved.sum(-1, keepdims=True)
        belief = belief @ moves[0, 0]
        belief[students, :, topic] = moved
        weight = weight * evidence
        weight /= weight.sum(-1, keepdims=True)
    return result
