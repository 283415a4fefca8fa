"""Self-consistency over calls: the majority of several samples, as the rival of refinement.

Source: Wang et al., arXiv 2203.11171, with calls compared as parsed instead of final numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from agents_jax.llm import GenerateRequest, LanguageModel
from agents_jax.tools.agent.policy import Cost
from agents_jax.tools.calls import Dialect
from agents_jax.tools.toolace_r.answers import Answer, same_answer

Count = Literal["total", "new"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples of one query in their order, with the new tokens of each.

    prompt_tokens: of the query, read once for all samples (an engine or endpoint that answers n
      samples of one request does so).
    """

    texts: tuple[str, ...]
    new_tokens: tuple[int, ...]
    prompt_tokens: int

    def cost(self, n: int) -> Cost:
        """Of the first n samples: n model calls, the prompt once, their new tokens."""
        return Cost(n, self.prompt_tokens, sum(self.new_tokens[:n]))


def draw(
    model: LanguageModel, requests: Sequence[GenerateRequest], *, n: int, temperature: float
) -> list[Samples]:
    """n samples of each request at the temperature.

    Raises:
      BatchError: some were not answered.
    """
    # One request for every sample: only so is it known what each of them cost.
    singles = [
        dataclasses.replace(request, temperature=temperature, sample=i, n=1)
        for request in requests
        for i in range(n)
    ]
    responses = model.generate(singles)
    out = []
    for index in range(len(requests)):
        own = responses[index * n : (index + 1) * n]
        out.append(
            Samples(
                tuple(response.text for response in own),
                tuple(response.usage.completion_tokens for response in own),
                own[0].usage.prompt_tokens,
            )
        )
    return out


def majority(texts: Sequence[str], dialect: Dialect = "any") -> str:
    """The first text of the largest group of same answers; of equal groups, the one seen first.

    Raises:
      ValueError: no texts.
    """
    if not texts:
        raise ValueError("majority of no texts; at least one is needed.")
    groups: list[tuple[Answer, int]] = []
    for text in texts:
        answer = Answer.read(text, dialect)
        for place, (known, count) in enumerate(groups):
            if same_answer(known, answer):
                groups[place] = (known, count + 1)
                break
        else:
            groups.append((answer, 1))
    return max(groups, key=lambda group: group[1])[0].text  # max keeps the first of equals


def samples_for_budget(samples: Sequence[Samples], budget: Cost, count: Count = "total") -> int:
    """The largest n whose cost over all queries is within the budget; at least 1.

    Args:
      budget: of all queries together, such as what adaptive refinement took.
      count: 'total' counts prompt tokens and new ones, 'new' the new ones alone.
    """

    def tokens(cost: Cost) -> int:
        return cost.completion_tokens + (cost.prompt_tokens if count == "total" else 0)

    if count not in ("total", "new"):
        raise ValueError(f"count={count!r} is unknown; allowed: total, new.")
    most = min(len(s.texts) for s in samples)
    fitting = [
        n
        for n in range(1, most + 1)
        if tokens(sum((s.cost(n) for s in samples), Cost())) <= tokens(budget)
    ]
    return max(fitting, default=1)
