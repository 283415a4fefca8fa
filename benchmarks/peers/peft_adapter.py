"""Logits of a base with LoRA adapters, computed by the peft library on the CPU in float32.

Runs inside an environment of its own (`pip install torch==2.13.0 transformers==5.23.0
peft==0.21.2`); called by benchmarks/lora_peft.py. Loads the base and every adapter folder, writes
to --out <name>.npy (adapted), <name>_merged.npy, base.npy, mixed.npy (all adapters at --weights),
and an adapter that peft makes itself: the folder `made` and made.npy. Prints one RESULT line.
"""

import argparse
import json
import pathlib
import warnings

import numpy as np
import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer

parser = argparse.ArgumentParser()
parser.add_argument("--base", required=True)
parser.add_argument("--adapters", nargs="+", required=True)
parser.add_argument("--weights", nargs="+", type=float, required=True)
parser.add_argument("--tokens", required=True)
parser.add_argument("--out", required=True)
arguments = parser.parse_args()
out = pathlib.Path(arguments.out)
tokens = torch.from_numpy(np.load(arguments.tokens)).long()
names = [pathlib.Path(folder).name for folder in arguments.adapters]


def fresh():
    return transformers.AutoModelForCausalLM.from_pretrained(
        arguments.base, dtype=torch.float32
    ).eval()


def keep(name, model):
    with torch.inference_mode():
        np.save(out / f"{name}.npy", model(tokens).logits.numpy())


keep("base", fresh())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for name, folder in zip(names, arguments.adapters, strict=True):
        model = peft.PeftModel.from_pretrained(fresh(), folder).eval()
        keep(name, model)
        keep(f"{name}_merged", model.merge_and_unload())
    model = peft.PeftModel.from_pretrained(fresh(), arguments.adapters[0], names[0])
    missing = unexpected = 0
    for name, folder in zip(names[1:], arguments.adapters[1:], strict=True):
        loaded = model.load_adapter(folder, name)
        missing += sum("lora_" in key and f".{name}." in key for key in loaded.missing_keys)
        unexpected += len(loaded.unexpected_keys)
model.base_model.set_adapter(names)
weights = dict(zip(names, arguments.weights, strict=True))
for module in model.modules():
    if isinstance(module, LoraLayer):
        for name in module.scaling:
            module.scaling[name] *= weights[name]
keep("mixed", model.eval())

torch.manual_seed(0)
lora = peft.LoraConfig(
    task_type="CAUSAL_LM", r=5, lora_alpha=7, use_rslora=True, init_lora_weights="gaussian",
    target_modules=["q_proj", "k_proj", "o_proj", "down_proj", "up_proj"], lora_dropout=0.05,
)  # fmt: skip
made = peft.get_peft_model(fresh(), lora)
with torch.no_grad():
    for key, parameter in made.named_parameters():
        if "lora_B" in key:
            parameter.normal_(std=0.08)
keep("made", made.eval())
made.save_pretrained(out / "made")
report = {
    "peer": f"peft {peft.__version__}, transformers {transformers.__version__}",
    "torch": torch.__version__,
    "missing_keys": missing,
    "unexpected_keys": unexpected,
    "warnings": sorted({str(warning.message) for warning in caught}),
}
print("RESULT " + json.dumps(report))
