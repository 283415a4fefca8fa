"""Log-probabilities of given tokens, and greedy continuations, by transformers on the CPU.

Runs inside an environment of its own (`pip install torch==2.13.0 transformers==5.23.0`); called by
benchmarks/generation_parity.py. --request is a JSON list of {"prompt": [ids], "tokens": [ids]}.
Prints one RESULT line: for each, the float32 log-probability of every given token, the twenty
likeliest in its place as [id, log-probability], and with --greedy the greedy continuation of the
prompt.
"""

import argparse
import json

import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("--folder", required=True)
parser.add_argument("--request", required=True)
parser.add_argument("--greedy", action="store_true")
arguments = parser.parse_args()

model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
model.eval()
model.generation_config.eos_token_id = None  # past the end of an answer, as we do
with open(arguments.request, encoding="utf-8") as handle:
    request = json.load(handle)
out = []
for item in request:
    prompt, tokens = item["prompt"], item["tokens"]
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + tokens])).logits[0].float()
        logprobs = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
        chosen = logprobs.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        values, ids = logprobs.topk(20)
        entry = {
            "logprobs": chosen.tolist(),
            "top": [
                list(zip(i, v, strict=True))
                for i, v in zip(ids.tolist(), values.tolist(), strict=True)
            ],
        }
        if arguments.greedy:
            entry["greedy"] = model.generate(
                torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), do_sample=False,
                max_new_tokens=len(tokens), pad_token_id=0,
            )[0, len(prompt) :].tolist()  # fmt: skip
    out.append(entry)
print(
    "RESULT "
    + json.dumps(
        {"peer": f"transformers {transformers.__version__}, torch {torch.__version__}", "out": out}
    )
)
