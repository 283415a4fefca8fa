"""Requests of several threads in one batch."""

import concurrent.futures

import pytest

from agents_jax.llm import (
    BatchError,
    CallError,
    GenerateRequest,
    RecordedModel,
    ScoreRequest,
    ScriptedModel,
)
from agents_jax.tools.agent.gather import GatheringModel


class Counting(ScriptedModel):
    """Knows the sizes of its batches."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = []

    async def agenerate(self, requests, **settings):
        self.batches.append(len(requests))
        return await super().agenerate(requests, **settings)


def answer(request):
    number = int(request.messages[-1]["content"])
    if number == 3:
        raise CallError("server", "three")
    return str(number * 10)


def ask(model, number):
    return model.generate([GenerateRequest.ask(str(number))])[0].text


def test_threads_share_batches_and_each_gets_its_own_answer(tmp_path):
    inner = Counting(answer, delay=0.05)
    for model in (inner, RecordedModel(tmp_path / "r.jsonl", inner)):
        inner.batches.clear()
        gathering = GatheringModel(model, 8)
        numbers = [0, 1, 2, 4, 5, 6]
        with concurrent.futures.ThreadPoolExecutor(6) as threads:
            texts = list(threads.map(lambda n, g=gathering: ask(g, n), numbers))
        assert texts == [str(n * 10) for n in numbers]
        assert sum(inner.batches) == 6 and len(inner.batches) < 6
        assert gathering.identity == inner.identity


def test_a_failure_is_its_own():
    gathering = GatheringModel(Counting(answer, delay=0.05), 8)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(ask, gathering, n) for n in (1, 3, 2)]
        assert [futures[0].result(), futures[2].result()] == ["10", "20"]
        with pytest.raises(BatchError, match="three"):
            futures[1].result()
    assert ask(gathering, 7) == "70"  # and it goes on


def test_a_model_with_a_bug_leaves_nobody_waiting():
    def broken(request):
        raise ZeroDivisionError("oops")

    gathering = GatheringModel(ScriptedModel(broken), 8)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            ask(gathering, 1)


def test_scores_go_through_too():
    gathering = GatheringModel(ScriptedModel(scores={"a": -1.0, "b": -2.0}), 8)
    (scores,) = gathering.score([ScoreRequest(prompt="x", continuations=("a", "b"))])
    assert scores.logprobs == (-1.0, -2.0)
