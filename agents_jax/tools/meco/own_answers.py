"""Need by the model's own ability: a tool is needed where its own answer, without one, is wrong.

Two sets: arithmetic (M4 of the specification; the tool is a calculator) and short facts (the second
task, adaptive retrieval). The paper's retrieval set holds recent news against common facts, which
is not at hand; here the label is whether this very model answers wrongly closed-book, so a set
belongs to one model and its balance is what the model makes it. Questions are matched within their
kind, since kinds differ in difficulty and their wording would give the label away.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.requests import GenerateRequest, assistant, system, user
from agents_jax.tools.meco.errors import MecoError
from agents_jax.tools.meco.examples import Example, ExampleSet
from agents_jax.tools.meco.facts import CAPITALS, ELEMENTS, pairs

_ANSWER = "Answer with the result only."
# Worked examples, so that a small model writes the number and not how it would find it.
_SUMS = (("What is 2 + 3?", "5"), ("What is 6 * 2?", "12"), ("What is 90 - 40?", "50"))


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with one right answer.

    kind: of questions that differ in their subject alone. subject: what questions of several kinds
    may be about; they stay in one fold.
    """

    id: str
    text: str
    answer: str
    kind: str
    subject: str = ""


def arithmetic(
    per_kind: int = 24, *, digits: Sequence[int] = (1, 2, 3), seed: int = 0
) -> list[Question]:
    """Sums, differences and products of two numbers of as many digits, drawn without repeats.

    Of one digit there are few: 40 per kind at most.
    """
    rng = np.random.default_rng(seed)
    operations: dict[str, Callable[[int, int], int]] = {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
    }
    out = []
    for sign, operation in operations.items():
        for length in digits:
            low = 10 ** (length - 1)
            seen: set[tuple[int, int]] = set()
            while len(seen) < (min(per_kind, 40) if length == 1 else per_kind):
                a, b = (int(n) for n in rng.integers(low, 10 * low, 2))
                if sign == "-" and b > a:
                    a, b = b, a
                if (a, b) in seen:
                    continue
                seen.add((a, b))
                kind = f"{sign}{length}"
                out.append(Question(f"{kind}-{a}-{b}", f"What is {a} {sign} {b}?",
                                    str(operation(a, b)), kind))  # fmt: skip
    return out


def facts() -> list[Question]:
    """Symbols of elements, elements of symbols, and capitals, one question each."""
    out = []
    for name, symbol in pairs(ELEMENTS):
        out.append(Question(f"symbol-{name}", f"What is the chemical symbol of {name}?",
                            symbol, "symbol"))  # fmt: skip
    for country, capital in pairs(CAPITALS):
        out.append(Question(f"capital-{country}", f"What is the capital of {country}?",
                            capital, "capital", country))  # fmt: skip
        out.append(Question(f"country-{capital}", f"Of which country is {capital} the capital?",
                            country, "country", country))  # fmt: skip
    return out


def is_right(question: Question, reply: str) -> bool:
    """Whether a reply gives the answer: a number as the last number of it, a symbol with its
    capitals after the last 'is', a name as whole words anywhere.
    """
    if question.kind[0] in "+-*":
        numbers = re.findall(r"-?\d+(?:,\d{3})*(?:\.\d+)?", reply)
        return bool(numbers) and numbers[-1].replace(",", "") == question.answer
    if question.kind == "symbol":
        said = re.split(r"\bis\b", reply)[-1]  # 'In' and 'I' are words too
        return re.search(rf"(?<![A-Za-z]){question.answer}(?![A-Za-z])", said) is not None
    return f" {_plain(question.answer)} " in f" {_plain(reply)} "


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def ask(model: LanguageModel, questions: Sequence[Question], *, max_tokens: int = 16) -> list[str]:
    """The model's own greedy answers, without tools."""
    requests = [
        GenerateRequest(messages=_chat(question), max_tokens=max_tokens, tag="own_answer")
        for question in questions
    ]
    return [response.text for response in model.generate(requests)]


def _chat(question: Question) -> tuple[dict[str, str], ...]:
    shown = _SUMS if question.kind[0] in "+-*" else ()
    turns = [
        turn for asked, said in shown for turn in (user(f"{asked} {_ANSWER}"), assistant(said))
    ]
    return (system("You answer briefly."), *turns, user(f"{question.text} {_ANSWER}"))


def own_ability(
    name: str, questions: Sequence[Question], replies: Sequence[str], *, template: str,
    limit: int = 0, seed: int = 0,
) -> tuple[ExampleSet, dict[str, tuple[int, int]]]:  # fmt: skip
    """The set of as many wrongly as rightly answered questions of each kind.

    Args:
      template: of the question of need, see prompts.py. limit: examples at most; 0 for all.

    Returns:
      The set, and per kind (right, all) of the replies.

    Raises:
      MecoError: fewer than 10 questions of the rarer label: this model's answers make no set.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, tuple[list[Question], list[Question]]] = {}
    for question, reply in zip(questions, replies, strict=True):
        right, wrong = found.setdefault(question.kind, ([], []))
        (right if is_right(question, reply) else wrong).append(question)
    balance = {kind: (len(r), len(r) + len(w)) for kind, (r, w) in found.items()}
    chosen: list[tuple[Question, bool]] = []
    for right, wrong in found.values():
        count = min(len(right), len(wrong))
        for group, needed in ((right, False), (wrong, True)):
            picked = rng.permutation(len(group))[:count]
            chosen += [(group[i], needed) for i in picked]
    if limit and len(chosen) > limit:
        halves = [[c for c in chosen if c[1] is needed] for needed in (False, True)]
        order = rng.permutation(len(halves[0]))[: limit // 2]
        # Equal numbers of a kind stand in both halves at the same places.
        chosen = [half[i] for half in halves for i in order]
    if len(chosen) < 2 * 10:
        raise MecoError(
            f"data set {name!r}: the model answers {balance} (right, asked) per kind; too few of "
            "the rarer outcome to study. Leave the set out of --config.sets for this model."
        )
    examples = tuple(
        Example(
            id=q.id,
            query=q.text,
            needed=needed,
            links=(("subject", q.subject),) if q.subject else (),
            source=q.kind,
            template=template,
            payload=q,
        )
        for q, needed in chosen
    )
    return ExampleSet(name, "need by the model's own wrong answers", examples), balance
