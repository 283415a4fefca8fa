"""Simulated students with known truth: two-parameter item response theory that learns and forgets.

The model is ours, made so that the exact predictive probability can be computed (bayes.py).

* A student has an ability theta, fixed, one of A grid points with weights proportional to the
  standard normal density, and for every concept a mastery level m in 0..L-1, at first
  Binomial(L-1, initial_mastery), independent of each other.
* Question j has a discrimination a_j (log-normal), a difficulty b_j (normal) and a set K_j of
  concepts of one topic. With u the logits per level,
      P(right) = sigmoid(a_j (theta + u (mean of m over K_j - (L-1)/2) - b_j)).
* After the answer each concept of K_j rises by one level with probability learn_right or
  learn_wrong, by the response (the top level stays); every other concept of every topic falls by
  one level with probability forget (level 0 stays).
* Questions and the number of answers are drawn without looking at ability, mastery or responses:
  the topic stays with probability `stay`, else it is drawn anew; the question is one of the topic
  with probability proportional to 1 / rank.

S students, T steps, Q questions, G topics, k concepts of a topic, L levels, A abilities.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from recsys_jax.data.errors import DataError
from recsys_jax.tracing.data.log import RawAnswers
from recsys_jax.tracing.data.ragged import Ragged

_CHUNK = 256  # students of one random stream: more students never change those before them


@dataclasses.dataclass(frozen=True)
class SimulatorConfig:
    """Sizes and rates of the simulated world; the module says what they mean.

    Attributes:
      num_students, min_length, max_length: students, and answers of each (uniform).
      num_questions, num_topics, concepts_per_topic, max_concepts: content; a question has 1 to
        max_concepts concepts. States per topic: levels ** concepts_per_topic, at most 1024.
      abilities, levels: grid sizes A and L.
      ability_scale: standard deviation of ability before it is put on the grid.
      mastery_scale: u, logits per level.
      world_seed: of the questions; seed: of the students. Two seeds of one world are samples of
        the same population.
    """

    num_students: int = 1000
    min_length: int = 20
    max_length: int = 80
    num_questions: int = 150
    num_topics: int = 5
    concepts_per_topic: int = 3
    max_concepts: int = 2
    abilities: int = 7
    levels: int = 3
    ability_scale: float = 1.0
    mastery_scale: float = 1.2
    discrimination_spread: float = 0.3
    difficulty_spread: float = 1.0
    initial_mastery: float = 0.25
    learn_right: float = 0.3
    learn_wrong: float = 0.15
    forget: float = 0.02
    stay: float = 0.85
    world_seed: int = 0
    seed: int = 0

    def __post_init__(self):
        for name in ("num_students", "min_length", "num_topics", "concepts_per_topic",
                     "max_concepts", "abilities"):  # fmt: skip
            if getattr(self, name) < 1:
                raise DataError(
                    f"data.simulator.{name} must be at least 1, got {getattr(self, name)}."
                )
        if self.levels < 2 or self.levels**self.concepts_per_topic > 1024:
            raise DataError(
                f"data.simulator.levels={self.levels} must be at least 2 and levels ** "
                f"concepts_per_topic (= {self.levels**self.concepts_per_topic}) at most 1024."
            )
        if self.max_length < self.min_length:
            raise DataError(
                f"data.simulator.max_length={self.max_length} is below min_length="
                f"{self.min_length}."
            )
        if self.num_questions < self.num_topics:
            raise DataError(
                f"data.simulator.num_questions={self.num_questions} is below num_topics="
                f"{self.num_topics}; every topic needs a question."
            )
        if self.max_concepts > self.concepts_per_topic:
            raise DataError(
                f"data.simulator.max_concepts={self.max_concepts} exceeds concepts_per_topic="
                f"{self.concepts_per_topic}."
            )
        for name in ("initial_mastery", "learn_right", "learn_wrong", "forget", "stay"):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(
                    f"data.simulator.{name} must be in [0, 1], got {getattr(self, name)}."
                )


@dataclasses.dataclass(frozen=True)
class World:
    """The questions of a simulated world; arrays are indexed by question number - 1.

    Attributes:
      discrimination, difficulty: float64 [Q]. topic: int64 [Q].
      members: bool [Q, k], which concepts of its topic a question has.
    """

    config: SimulatorConfig
    discrimination: np.ndarray
    difficulty: np.ndarray
    topic: np.ndarray
    members: np.ndarray

    @classmethod
    def build(cls, config: SimulatorConfig) -> World:
        rng = np.random.default_rng(np.random.SeedSequence([config.world_seed, 17]))
        num, k = config.num_questions, config.concepts_per_topic
        discrimination = np.exp(rng.normal(0, config.discrimination_spread, num))
        difficulty = rng.normal(0, config.difficulty_spread, num)
        size = rng.integers(1, config.max_concepts + 1, num)
        rank = np.argsort(np.argsort(rng.random((num, k)), axis=1), axis=1)
        topic = rng.permutation(np.arange(num) % config.num_topics)
        return cls(config, discrimination, difficulty, topic, rank < size[:, None])

    @property
    def ability_grid(self) -> np.ndarray:
        """float64 [A]: -2..2 standard deviations."""
        count = self.config.abilities
        return self.config.ability_scale * (np.linspace(-2, 2, count) if count > 1 else np.zeros(1))

    @property
    def ability_prior(self) -> np.ndarray:
        """float64 [A], sums to 1."""
        count = self.config.abilities
        weight = np.exp(-0.5 * (np.linspace(-2, 2, count) if count > 1 else np.zeros(1)) ** 2)
        return weight / weight.sum()

    def probability(self, question: np.ndarray, theta: np.ndarray, mastery: np.ndarray):
        """P(right) for question numbers - 1, abilities and mean levels, broadcast together."""
        config = self.config
        shift = config.mastery_scale * (mastery - (config.levels - 1) / 2)
        score = self.discrimination[question] * (theta + shift - self.difficulty[question])
        return 1 / (1 + np.exp(-score))

    @functools.cached_property
    def concept_sets(self) -> Ragged:
        """Ragged of Q sets of concept numbers, from 1."""
        question, concept = np.nonzero(self.members)
        numbers = self.topic[question] * self.config.concepts_per_topic + concept + 1
        return Ragged.from_lengths(self.members.sum(1), numbers)


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A simulated log and its truth; rows as in `raw`, students numbered from 1.

    Attributes:
      probability: float64 [E], the true probability of a right answer, given the hidden state.
      mastery: float64 [E], mean level of the question's concepts at that moment.
      ability: float64 [S].
    """

    world: World
    raw: RawAnswers
    probability: np.ndarray
    mastery: np.ndarray
    ability: np.ndarray


def simulate(config: SimulatorConfig | None = None) -> Simulation:
    """Students of a simulated world; the same config gives the same bits."""
    config = SimulatorConfig() if config is None else config
    world = World.build(config)
    parts = [
        _chunk(world, number, min(_CHUNK, config.num_students - number * _CHUNK))
        for number in range(-(-config.num_students // _CHUNK))
    ]
    question, response, probability, mastery, lengths, ability = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    raw = RawAnswers(
        student=np.repeat(np.arange(1, config.num_students + 1), lengths),
        question=question + 1,
        concepts=world.concept_sets.take(question),
        response=response.astype(np.float64),
        source="the simulator",
        name="simulated",
        licence="made by this program",
    )
    return Simulation(world, raw, probability, mastery, ability)


def _chunk(world: World, number: int, count: int) -> tuple[np.ndarray, ...]:
    """One random stream's students, of which the first `count` are returned, row by row."""
    config = world.config
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, number, 29]))
    size, steps = _CHUNK, config.max_length
    lengths = rng.integers(config.min_length, config.max_length + 1, size)
    theta = rng.choice(world.ability_grid, size, p=world.ability_prior)
    shape = (size, config.num_topics, config.concepts_per_topic)
    level = rng.binomial(config.levels - 1, config.initial_mastery, shape)
    asked = _questions(world, rng, size, steps)
    response = np.zeros((size, steps), np.int8)
    probability, mastery = np.zeros((size, steps)), np.zeros((size, steps))
    students = np.arange(size)
    for t in range(steps):
        question = asked[:, t]
        topic, members = world.topic[question], world.members[question]
        now = level[students, topic]
        mastery[:, t] = (now * members).sum(1) / members.sum(1)
        probability[:, t] = world.probability(question, theta, mastery[:, t])
        response[:, t] = rng.random(size) < probability[:, t]
        rises = np.where(response[:, t] == 1, config.learn_right, config.learn_wrong)
        chance = rng.random(shape)
        practised = np.zeros(shape, bool)
        practised[students, topic] = members
        level += practised & (chance < rises[:, None, None]) & (level < config.levels - 1)
        level -= ~practised & (chance < config.forget) & (level > 0)
    real = np.arange(steps) < lengths[:count, None]
    columns = (asked, response, probability, mastery)
    return *(c[:count][real] for c in columns), lengths[:count], theta[:count]


def _questions(world: World, rng: np.random.Generator, size: int, steps: int) -> np.ndarray:
    """int64 [size, steps], question numbers - 1."""
    config = world.config
    moves = rng.random((size, steps)) >= config.stay
    moves[:, 0] = True
    drawn = rng.integers(0, config.num_topics, (size, steps))
    last = np.maximum.accumulate(np.where(moves, np.arange(steps), 0), axis=1)
    topic = np.take_along_axis(drawn, last, axis=1)
    chance = rng.random((size, steps))
    asked = np.zeros((size, steps), np.int64)
    for number in range(config.num_topics):
        members = np.flatnonzero(world.topic == number)
        weight = np.cumsum(1 / np.arange(1, len(members) + 1))
        here = topic == number
        pick = np.searchsorted(weight, chance[here] * weight[-1], side="right")
        asked[here] = members[np.minimum(pick, len(members) - 1)]
    return asked
