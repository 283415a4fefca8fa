"""Float32 logits of a Hugging Face directory, computed by transformers on the CPU.

Runs inside an environment of its own (`pip install torch==2.13.0 transformers==5.23.0`); called by
benchmarks/parity_smollm2.py. Reads int tokens (rows, length) from --tokens, writes float32 logits
(rows, length, vocabulary) to --out, prints one RESULT line.
"""

import argparse
import json

import numpy as np
import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("--folder", required=True)
parser.add_argument("--tokens", required=True)
parser.add_argument("--out", required=True)
arguments = parser.parse_args()

model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32)
model.eval()
tokens = np.load(arguments.tokens)
out = np.lib.format.open_memmap(
    arguments.out, mode="w+", dtype=np.float32, shape=(*tokens.shape, model.config.vocab_size)
)
with torch.inference_mode():
    for row, ids in enumerate(tokens):
        out[row] = model(torch.from_numpy(ids)[None].long()).logits[0].numpy()
out.flush()
print(
    "RESULT "
    + json.dumps(
        {
            "peer": f"transformers {transformers.__version__} {type(model).__name__}",
            "torch": torch.__version__,
        }
    )
)
