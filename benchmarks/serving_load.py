"""Concurrent clients against an OpenAI-compatible server: tokens per second and waiting times.

    python benchmarks/serving_load.py --url=http://127.0.0.1:8000/v1 --clients=16 --requests=64

Every client sends one request after another, streamed; prompts differ from the first token on, so
that no prefix is shared. One JSON line.
"""

import argparse
import asyncio
import json
import os
import statistics
import time

import httpx

WORDS = (
    "river mountain window garden letter winter summer music bridge forest engine paper market "
    "island silver copper cotton harbour village castle valley signal pattern machine history"
).split()


def prompt(number: int, words: int) -> str:
    """A text of so many words, another one for every number."""
    return " ".join(WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(words))


async def run(url: str, *, clients: int, requests: int, words: int, new_tokens: int) -> dict:
    """What the clients saw, all together."""
    numbers = iter(range(requests))
    firsts, totals, tokens = [], [], 0
    key = os.environ.get("PANGU_JAX_API_KEY", "none")
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=url, timeout=600, limits=limits, headers={"Authorization": f"Bearer {key}"}
    ) as http:
        model = (await http.get("/models")).json()["data"][0]["id"]

        async def client():
            nonlocal tokens
            for number in numbers:
                body = {
                    "model": model, "prompt": f"{number} {prompt(number, words)}",
                    "max_tokens": new_tokens, "temperature": 0.8, "seed": number, "stream": True,
                    "ignore_eos": True, "stream_options": {"include_usage": True},
                }  # fmt: skip
                start, first, count = time.perf_counter(), None, 0
                async with http.stream("POST", "/completions", json=body) as reply:
                    reply.raise_for_status()
                    async for line in reply.aiter_lines():
                        if not line.startswith("data: {"):
                            continue
                        data = json.loads(line[6:])
                        if first is None and data.get("choices"):
                            first = time.perf_counter()
                        if data.get("usage"):
                            count = data["usage"]["completion_tokens"]
                end = time.perf_counter()
                firsts.append((first or end) - start)
                totals.append(end - start)
                tokens += count

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        wall = time.perf_counter() - start
    return {
        "clients": clients, "requests": requests, "completion_tokens": tokens, "wall_s": wall,
        "tokens_per_second": tokens / wall,
        "first_token_s_median": statistics.median(firsts),
        "first_token_s_max": max(firsts),
        "request_s_median": statistics.median(totals),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--words", type=int, default=80)
    parser.add_argument("--new_tokens", type=int, default=64)
    options = vars(parser.parse_args())
    print(json.dumps(asyncio.run(run(options.pop("url"), **options))))


if __name__ == "__main__":
    main()
