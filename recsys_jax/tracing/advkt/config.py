"""Settings of AdvKT: sizes, weights, and a named switch for every defect of the released code.

Defaults are the corrected method; `'released'` (or True for `sigmoid_before_ce`) brings a defect
back. docs/advkt.md lists what each one does.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from recsys_jax.sequential.layers import check_choice

FIXED_OR_RELEASED = ("fixed", "released")
Switch = Literal["fixed", "released"]


def _check_range(name: str, value, low, high=None) -> None:
    if value < low or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} is {value}; it must be {allowed}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What generator and discriminator share.

    num_questions, num_concepts: ids run from 1 to these; 0 is padding.
    dim: width d of embeddings and states.
    num_layers: hidden layers of each MLP.
    dropout_rate: before the last layer of each MLP.
    concept_divisor: 'fixed' divides the sum of a question's concept embeddings by how many it
      has; 'released' by how many slots are empty (1 if none).
    sigmoid_before_ce: True, as released, puts a sigmoid between the question logits and the
      cross entropy, which then cannot fall far below log(classes) - 1.

    Raises:
      ValueError: a value out of range, by name.
    """

    num_questions: int
    num_concepts: int
    dim: int = 64
    num_layers: int = 1
    dropout_rate: float = 0.0
    concept_divisor: Switch = "fixed"
    sigmoid_before_ce: bool = False

    def __post_init__(self):
        for name in ("num_questions", "num_concepts", "dim"):
            _check_range(name, getattr(self, name), 1)
        _check_range("num_layers", self.num_layers, 0)
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate is {self.dropout_rate}; it must be in [0, 1).")
        check_choice("concept_divisor", self.concept_divisor, FIXED_OR_RELEASED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(NetworkConfig):
    """The generator.

    question_mlp: True, as released: the question vector is an MLP of [concepts ; question], width
      d; False, as summaries of the paper say: the plain concatenation, width 2 d.
    question_loss_weight: of the auxiliary loss that predicts questions; 0 leaves it out.
    question_embedding: 'free', as released: d numbers for each question, of which one that training
      lacks keeps its random ones; 'rasch' (ours, after AKT): one difficulty, which starts near 0,
      times a vector of the question's concepts.
    chunk: steps unrolled between two updates of the long history buffer; memory and speed only.
    """

    question_mlp: bool = True
    question_loss_weight: float = 1.0
    question_embedding: Literal["free", "rasch"] = "free"
    chunk: int = 16

    def __post_init__(self):
        super().__post_init__()
        check_choice("question_embedding", self.question_embedding, ("free", "rasch"))
        _check_range("question_loss_weight", self.question_loss_weight, 0.0)
        _check_range("chunk", self.chunk, 1)

    @property
    def question_dim(self) -> int:
        """Width of a question vector."""
        return self.dim if self.question_mlp else 2 * self.dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(NetworkConfig):
    """The discriminator, that is the reward model.

    num_heads: each of width d; summed with learned scalar weights.
    masks: 'fixed' lets step t attend to steps up to t, for true, generated and flipped responses
      alike; 'released' has no mask for sequences, padding included, and scores flipped and single
      responses by a decoder that sees that one step alone.
    shift: 'fixed' predicts question and response t from vectors of steps before t (and question
      t for the response); 'released' lets both heads see their targets.
    attention_init: 'xavier', or 'normal' as released: N(0, 1), whose softmax starts one-hot.
    """

    num_heads: int = 1
    masks: Switch = "fixed"
    shift: Switch = "fixed"
    attention_init: Literal["xavier", "normal"] = "xavier"

    def __post_init__(self):
        super().__post_init__()
        _check_range("num_heads", self.num_heads, 1)
        check_choice("masks", self.masks, FIXED_OR_RELEASED)
        check_choice("shift", self.shift, FIXED_OR_RELEASED)
        check_choice("attention_init", self.attention_init, ("xavier", "normal"))

    @property
    def mask_question(self) -> int:
        """Id of the question that stands for a masked one."""
        return self.num_questions + 1

    @property
    def mask_concept(self) -> int:
        """Id of the concept that stands for a masked one."""
        return self.num_concepts + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialConfig:
    """Losses, augmentations and alternation; defaults are those of the released code.

    generator_rate, discriminator_rate: learning rates of the two Adams.
    discriminator_every: the discriminator learns at steps 0, n, 2 n, ...
    mask_prob, replace_prob: share of steps changed; crop_ratio, permute_ratio: share of a
      sequence kept, and shuffled.
    step_share: a batch of N answers has max(N // step_share, 1) random walks beside it.
    walk_rows: upper bound of the walks of a batch; None for what a full batch calls for.
    walk_min_fraction: walks are this share of the batch's width long at least, and a step shorter
      than it at most (released: 150 to 199 of 200).
    flip_weight, generated_weight, augmented_weight, short_weight, constraint_weight, gp_weight:
      of the terms of the discriminator's loss; 0 leaves a term out.
    supervision: what the generator is fed on real sequences: 'own' samples from the first step on,
      as released; 'random_prefix' true responses up to a uniform cut, then samples; 'true'
      responses throughout (teacher forcing).
    bce_weight, rl_weight: of the generator's; rl_weight is the released pair_ratio times lamb.
    advantage_decay: factor of the next step's advantage (released gamma).
    discount: of the next state's value.
    terminal: value after the last step: 'bootstrap' V(s_T), as released, or 'zero'.
    policy_on: what the policy gradient and the discriminator's generated sequences are about.
      'walks', as released: random walks over questions, answered from the first step on.
      'continuations' (ours): the students' own sequences of questions after a uniform cut, with the
      true responses before it, so that a reward can depend on the student.
    normalize_advantages: True (ours) divides advantages, less their mean, by their deviation.
    reward_response: 'fixed' rewards the sampled response; 'released' reads row 0 of the response
      table at every step, so that the reward does not depend on the response.
    """

    generator_rate: float = 1e-3
    discriminator_rate: float = 5e-3
    discriminator_every: int = 2
    mask_prob: float = 0.6
    replace_prob: float = 0.3
    crop_ratio: float = 0.6
    permute_ratio: float = 0.6
    step_share: int = 40
    walk_rows: int | None = None
    walk_min_fraction: float = 0.75
    flip_weight: float = 1.0
    generated_weight: float = 1.0
    augmented_weight: float = 1.0
    short_weight: float = 1.0
    constraint_weight: float = 1.0
    gp_weight: float = 10.0
    supervision: Literal["own", "random_prefix", "true"] = "own"
    bce_weight: float = 1.0
    rl_weight: float = 1.0
    advantage_decay: float = 0.93
    discount: float = 0.98
    terminal: Literal["bootstrap", "zero"] = "bootstrap"
    policy_on: Literal["walks", "continuations"] = "walks"
    normalize_advantages: bool = False
    reward_response: Switch = "fixed"

    def __post_init__(self):
        for name in ("generator_rate", "discriminator_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("discriminator_every", "step_share"):
            _check_range(name, getattr(self, name), 1)
        for name in (
            "mask_prob",
            "replace_prob",
            "crop_ratio",
            "permute_ratio",
            "walk_min_fraction",
            "advantage_decay",
            "discount",
        ):
            _check_range(name, getattr(self, name), 0.0, 1.0)
        for name in (field.name for field in dataclasses.fields(self)):
            if name.endswith("_weight"):
                _check_range(name, getattr(self, name), 0.0)
        if self.walk_rows is not None:
            _check_range("walk_rows", self.walk_rows, 1)
        check_choice("supervision", self.supervision, ("own", "random_prefix", "true"))
        check_choice("terminal", self.terminal, ("bootstrap", "zero"))
        check_choice("policy_on", self.policy_on, ("walks", "continuations"))
        check_choice("reward_response", self.reward_response, FIXED_OR_RELEASED)
