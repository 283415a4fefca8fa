"""Tokens and next-token log-probabilities of a GGUF file, computed by llama.cpp.

Runs inside an environment of its own (`pip install xllamacpp==2026.10.11549`); called by
benchmarks/parity_smollm2.py and benchmarks/generation_parity.py. --request is a JSON file
{"texts": [...], "ids": [...], "from": n, "items": [{"prompt": [ids], "tokens": [ids]}]}, all
optional: every text is tokenized; for every prefix of `ids` of at least n tokens, and of every
item's prompt and tokens from the end of its prompt on, the log-probabilities of the likeliest next
tokens are asked for. Prints one RESULT line.
"""

import argparse
import importlib.metadata
import json
import urllib.request

import xllamacpp

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--request", required=True)
parser.add_argument("--top", type=int, default=5, help="How many of the likeliest tokens.")
parser.add_argument("--cache_float32", action="store_true", help="Not float16 keys and values.")
arguments = parser.parse_args()

with open(arguments.request, encoding="utf-8") as handle:
    request = json.load(handle)
parameters = xllamacpp.CommonParams()
parameters.model.path = arguments.model
parameters.n_ctx = 1024
parameters.n_parallel = 1
if arguments.cache_float32:
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
server = xllamacpp.Server(parameters)


def tokenize(text):
    body = json.dumps({"content": text, "add_special": False, "parse_special": True}).encode()
    call = urllib.request.Request(
        f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(call, timeout=60) as reply:
        return json.load(reply)["tokens"]


def next_token(ids):
    reply = server.handle_completions({
        "prompt": ids, "n_predict": 1, "n_probs": arguments.top, "temperature": 0.0,
        "cache_prompt": True,
    })  # fmt: skip
    top = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    return {str(entry["id"]): entry["logprob"] for entry in top}


def along(ids, start):
    return [next_token(ids[:end]) for end in range(start, len(ids))]


report = {
    "peer": f"xllamacpp {importlib.metadata.version('xllamacpp')}",
    "tokens": [tokenize(text) for text in request.get("texts", [])],
    "top": along(request.get("ids", []), request.get("from", 1)),
}
if "items" in request:
    report["items"] = [
        along(item["prompt"] + item["tokens"], len(item["prompt"])) for item in request["items"]
    ]
print("RESULT " + json.dumps(report))
