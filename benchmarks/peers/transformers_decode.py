"""Prefill and decode tokens per second of a Hugging Face directory, by transformers on the CPU.

Runs inside an environment of its own (`pip install torch==2.13.0 transformers==5.23.0`); called by
benchmarks/inference_smollm2.py. Greedy `generate` with the model's default cache. Prints one RESULT
line: a list of {batch, dtype, prefill_tokens_per_second, decode_tokens_per_second}.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("--folder", required=True)
parser.add_argument("--prompts", required=True, help="int tokens (16, prompt length), .npy")
parser.add_argument("--new_tokens", type=int, required=True)
parser.add_argument("--batches", type=int, nargs="+", required=True)
parser.add_argument("--repeats", type=int, required=True)
parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
arguments = parser.parse_args()

torch.set_num_threads(len(__import__("os").sched_getaffinity(0)))
prompts = torch.from_numpy(np.load(arguments.prompts)).long()
results = []
for dtype in arguments.dtypes:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=getattr(torch, dtype)
    ).eval()
    for batch in arguments.batches:
        tokens = prompts[:batch]
        prefill, decode = [], []
        for repeat in range(arguments.repeats + 1):
            with torch.inference_mode():
                start = time.perf_counter()
                model(tokens, use_cache=True, logits_to_keep=1)
                middle = time.perf_counter()
                model.generate(
                    tokens, attention_mask=torch.ones_like(tokens), do_sample=False,
                    max_new_tokens=arguments.new_tokens, min_new_tokens=arguments.new_tokens,
                    pad_token_id=0,
                )  # fmt: skip
                end = time.perf_counter()
            if repeat:  # the first one warms up
                prefill.append(middle - start)
                decode.append(end - middle - (middle - start))
        results.append({
            "batch": batch, "dtype": dtype,
            "prefill_tokens_per_second": tokens.numel() / statistics.median(prefill),
            "decode_tokens_per_second":
                batch * (arguments.new_tokens - 1) / statistics.median(decode),
        })  # fmt: skip
print(
    "RESULT "
    + json.dumps(
        {
            "peer": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "runs": results,
        }
    )
)
