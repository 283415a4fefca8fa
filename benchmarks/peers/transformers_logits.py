"""Float32 logits of a Hugging Face directory, computed by transformers on the CPU.

Runs inside an environment of its own (`pip install torch==2.13.0 transformers==5.23.0`); called by
benchmarks/parity_smollm2.py. Reads int tokens (rows, length) from --tokens, writes float32 logits
(rows, length, vocabulary) to --out, prints one RESULT line, in it the ids of the texts and the
text of the chat in the JSON file --texts, {"texts": [...], "chat": [messages]}.
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
parser.add_argument("--texts", required=True)
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
with open(arguments.texts, encoding="utf-8") as handle:
    request = json.load(handle)
tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.folder)
chat = tokenizer.apply_chat_template(request["chat"], tokenize=False, add_generation_prompt=True)
print(
    "RESULT "
    + json.dumps(
        {
            "peer": f"transformers {transformers.__version__} {type(model).__name__}",
            "torch": torch.__version__,
            "ids": [
                tokenizer(text, add_special_tokens=False).input_ids for text in request["texts"]
            ],
            "chat": chat,
        }
    )
)
