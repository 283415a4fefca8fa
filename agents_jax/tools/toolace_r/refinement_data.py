"""Training examples of a round: direct ones, and ones that look at the model's own first answer.

    direct      (system and tools, query)                          -> A
    refinement  (system and tools, query, A1, instruction)         -> A

A1 comes from the current model and is context: nothing is learned from it. The form, and that items
whose A1 is right already stay in, are the paper's (second-hand); proportions and wording are ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from agents_jax.tools.bfcl.data import Item
from agents_jax.tools.bfcl.evaluate import judge
from agents_jax.tools.bfcl.prompts import Style, to_chat
from agents_jax.tools.toolace_r.answers import Answer, refinement_messages, same_answer
from agents_jax.tools.toolace_r.refine import INSTRUCTION

Chat = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinementDataConfig:
    """How refinement examples are made. All defaults but keep_correct are ours.

    per_direct: refinement examples for each direct one; 0 for none.
    first_answer: 'sampled' takes A1 from the samples that selected the items, 'greedy' the model's
      likeliest answer.
    keep_correct: keep examples whose A1 is right, which teach that nothing is to be changed.
    wrong_share: at least this share of A1 is wrong, as far as the samples hold wrong ones; without
      it a small model learns to copy. None: as the samples fall.
    correct_target: what is learned where A1 is right but not written as the gold answer is:
      'unchanged' A1 itself (any value that the gold answer allows is right), 'gold' its first form.
    instruction: that asks for another look; the same at inference.
    seed: of the draws.
    """

    per_direct: float = 1.0
    first_answer: Literal["sampled", "greedy"] = "sampled"
    keep_correct: bool = True
    wrong_share: float | None = 0.5
    correct_target: Literal["unchanged", "gold"] = "unchanged"
    instruction: str = INSTRUCTION
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.per_direct < float("inf"):
            raise ValueError(f"per_direct={self.per_direct} must be 0 or more.")
        for name, allowed in (
            ("first_answer", ("sampled", "greedy")),
            ("correct_target", ("unchanged", "gold")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; allowed: {', '.join(allowed)}."
                )
        if self.wrong_share is not None and not 0 <= self.wrong_share <= 1:
            raise ValueError(f"wrong_share={self.wrong_share} must be from 0 to 1, or None.")


@dataclasses.dataclass(frozen=True)
class RefinementExample:
    """One refinement example before it is a chat. kind: 'same' A1 makes the calls of the gold
    answer, 'equivalent' other ones that the checker accepts, 'wrong'.
    """

    id: str
    first_answer: str
    kind: Literal["same", "equivalent", "wrong"]
    target: str

    @property
    def wrong(self) -> bool:
        """Whether the checker refuses A1."""
        return self.kind == "wrong"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Examples of a round: chats of which the last assistant's turn is learned, direct ones first.

    refinements: what the chats behind the direct ones were made of.
    """

    chats: tuple[Chat, ...]
    num_direct: int
    refinements: tuple[RefinementExample, ...]

    def counts(self) -> dict[str, int]:
        """Numbers of direct and refinement examples, the latter by kind."""
        kinds = [example.kind for example in self.refinements]
        out = {"direct": self.num_direct, "refinement": len(kinds)}
        return out | {kind: kinds.count(kind) for kind in ("same", "equivalent", "wrong")}


def build_corpus(
    items: Sequence[Item], first_answers: Mapping[str, Sequence[str]],
    config: RefinementDataConfig, *, style: Style = "compact", round_number: int = 1,
) -> Corpus:  # fmt: skip
    """Direct examples of the items, and refinement examples from the model's answers to them.

    Args:
      items: that were selected; calls and refusals.
      first_answers: what A1 is drawn from, by id: the samples, or the one greedy answer.
      round_number: changes the draws.

    Raises:
      KeyError: an item without answers.
    """
    direct = {item.id: to_chat(item, style) for item in items}
    chosen = _refinements(items, first_answers, config, direct, round_number)
    refinement = []
    for example in chosen:
        messages = refinement_messages(
            direct[example.id]["messages"][:-1], example.first_answer, config.instruction
        )
        answer = {"role": "assistant", "content": example.target}
        refinement.append({"messages": [*messages, answer]})
    return Corpus((*direct.values(), *refinement), len(direct), tuple(chosen))


def _refinements(items, first_answers, config, direct, round_number) -> list[RefinementExample]:
    wanted = round(config.per_direct * len(items))
    if not wanted:
        return []
    rng = np.random.default_rng([config.seed, round_number])
    gold = {name: chat["messages"][-1]["content"] for name, chat in direct.items()}
    known = {
        item.id: [_example(item, text, gold[item.id], config) for text in first_answers[item.id]]
        for item in items
    }
    if not config.keep_correct:
        known = {name: [e for e in examples if e.wrong] for name, examples in known.items()}
    usable = [item.id for item in items if known[item.id]]
    if not usable:
        return []
    order: list[str] = []
    while len(order) < wanted:  # every item once before any comes twice
        order += [usable[i] for i in rng.permutation(len(usable))]
        if not config.keep_correct:
            break  # fewer examples, not the same mistakes again
    drawn = []
    for name in order[:wanted]:
        drawn.append(known[name][int(rng.integers(len(known[name])))])
    if config.wrong_share is not None:
        _balance(drawn, known, config.wrong_share, rng)
    return drawn


def _balance(drawn: list[RefinementExample], known, share: float, rng) -> None:
    """Puts wrong answers to the same items in place of right ones, until the share is reached."""
    missing = int(np.ceil(share * len(drawn))) - sum(example.wrong for example in drawn)
    for place in rng.permutation(len(drawn)):
        if missing <= 0:
            return
        wrong = [e for e in known[drawn[place].id] if e.wrong]
        if not drawn[place].wrong and wrong:
            drawn[place] = wrong[int(rng.integers(len(wrong)))]
            missing -= 1


def _example(item: Item, text: str, gold: str, config: RefinementDataConfig) -> RefinementExample:
    if not judge(item, text).correct:
        return RefinementExample(item.id, text, "wrong", gold)
    if same_answer(Answer.read(text, "bfcl"), Answer.read(gold, "bfcl")):
        return RefinementExample(item.id, text, "same", gold)
    # A refusal in other words is accepted too, but only one wording of it is taught.
    keep = config.correct_target == "unchanged" and Answer.read(text).calls
    return RefinementExample(item.id, text, "equivalent", text if keep else gold)
