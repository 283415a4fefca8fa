"""The server over the engine itself: the same tokens as without a server in between."""

import asyncio

import numpy as np
import pytest
from scripted_engine import RunningServer, wait_for
from tiny_model import log_probabilities, prompt, tiny_model

from pangu_jax.inference import Request, SamplingParams
from pangu_jax.inference.async_engine import EngineThread
from pangu_jax.inference.config import EngineConfig
from pangu_jax.inference.engine import Engine

# Few shapes to compile: one or two rows, one width of prompts, one width of block tables.
CONFIG = EngineConfig(context_length=64, max_rows=2, page_size=16, prefill_tokens=32)
PROMPTS = [prompt(length) for length in (1, 5, 9, 16)]


@pytest.fixture(scope="module")
def server():
    engine = EngineThread(Engine(tiny_model(), CONFIG, model_name="tiny"))
    with RunningServer(engine, tiny_model().tokenizer) as running:
        yield running


@pytest.fixture(scope="module")
def direct():
    """Texts of PROMPTS by the engine alone, sampled with seed 5."""
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=5, ignore_eos=True)
    requests = [
        Request(id=str(i), prompt_ids=ids, sampling=sampling) for i, ids in enumerate(PROMPTS)
    ]
    return [done.text for done in Engine(tiny_model(), CONFIG).generate(requests)]


def test_concurrent_requests_give_the_engine_s_own_text(server, direct):
    async def one(client, ids, stream):
        asked = client.completions.create(
            model="tiny",
            prompt=list(ids),
            max_tokens=12,
            seed=5,
            stream=stream,
            extra_body={"ignore_eos": True},
        )
        if not stream:
            return (await asked).choices[0].text
        return "".join([chunk.choices[0].text async for chunk in await asked])

    async def main(stream):
        async with server.async_client(timeout=120) as client:
            return await asyncio.gather(*(one(client, ids, stream) for ids in PROMPTS))

    assert asyncio.run(main(False)) == direct
    assert asyncio.run(main(True)) == direct


def test_choices_are_the_requests_with_the_next_seeds(server):
    kinds = {"model": "tiny", "prompt": list(PROMPTS[2]), "max_tokens": 12}
    with server.client(timeout=120) as client:
        together = client.completions.create(**kinds, n=3, seed=40)
        alone = [client.completions.create(**kinds, seed=seed) for seed in (40, 41, 42)]
    texts = [choice.text for choice in together.choices]
    assert texts == [reply.choices[0].text for reply in alone]
    assert len(set(texts)) == 3


def test_echo_gives_the_model_s_log_probabilities(server):
    ids = PROMPTS[3]
    with server.client(timeout=120) as client:
        reply = client.completions.create(
            model="tiny", prompt=list(ids), echo=True, logprobs=2, max_tokens=0
        )
    expected = log_probabilities(ids, tiny_model())
    found = reply.choices[0].logprobs.token_logprobs
    assert found[0] is None and len(found) == len(ids)
    chosen = [expected[i, token] for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(found[1:], chosen, atol=1e-4)


def test_a_client_that_leaves_frees_the_engine(server):
    with server.client(timeout=120) as client:
        before = server.engine.statistics.generated_tokens
        stream = client.completions.create(
            model="tiny",
            prompt=list(PROMPTS[0]),
            max_tokens=60,
            n=100,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        stream.close()
        wait_for(lambda: server.engine._engine.idle, 60)
        assert server.engine.statistics.generated_tokens - before < 100 * 60
