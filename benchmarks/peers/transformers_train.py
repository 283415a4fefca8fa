"""Training steps of a Hugging Face Llama in PyTorch on the CPU, eager or by torch.compile.

Runs inside an environment of its own (`pip install torch==2.13.0 transformers==5.23.0`); called by
benchmarks/pretrain_step.py, which says what a step is. Loads the weights of --folder, trains on
the rows of --tokens (batches, rows, length + 1) one batch after the other, round and round. Prints
one RESULT line after the warm-up steps, then one per line on its input, a number of steps to time.
"""

import argparse
import json
import os

parser = argparse.ArgumentParser()
parser.add_argument("--folder", required=True)
parser.add_argument("--tokens", required=True)
parser.add_argument("--compile", action="store_true")
parser.add_argument("--threads", type=int, required=True)
parser.add_argument("--warm_up", type=int, required=True)
parser.add_argument("--optimizer", required=True, help="JSON: lr, betas, eps, weight_decay, clip.")
arguments = parser.parse_args()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from timed_turns import answer_turns, tell, warm_up  # noqa: E402

torch.set_num_threads(arguments.threads)
model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
model.train()
batches = torch.from_numpy(np.load(arguments.tokens)).long()
settings = json.loads(arguments.optimizer)
clip = settings.pop("clip")
# One kernel over all parameters: the fastest of PyTorch's AdamWs on a CPU.
optimizer = torch.optim.AdamW(model.parameters(), fused=True, **settings)


def loss_of(tokens, labels):
    logits = model(tokens, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


if arguments.compile:
    loss_of = torch.compile(loss_of)
done = 0


def step():
    global done
    rows = batches[done % len(batches)]
    done += 1
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(rows[:, :-1], rows[:, 1:])
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return loss.item()


losses, first = warm_up(step, arguments.warm_up)
tell(
    {
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "model": type(model).__name__,
        "attention": model.config._attn_implementation,
        "parameters": sum(p.numel() for p in model.parameters()),
        "compile_seconds": first,
        "losses": losses,
    }
)
answer_turns(step)
