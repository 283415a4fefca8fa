"""LoRA here and in the peft library: the same numbers, from the same files?

    python -m venv /tmp/hf
    /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python benchmarks/lora_peft.py --peer_python=/tmp/hf/bin/python

Makes random bases of three families and random adapters (all targets or some, several ranks, plain
and rank-stabilised scale), writes both, has peft load them, and compares logits: base, each adapter
beside the base, each merged, all at once with weights. An adapter that peft made is read back.
Everything float32 on the CPU. Prints a JSON line per comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SIZES = dict(
    norm_scheme="pre_ln", vocab_size=320, num_layers=4, hidden_dim=96, mlp_dim=256, num_heads=6,
    num_kv_heads=2, head_dim=16, init="traditional", embedding_std=0.5,
)  # fmt: skip
FAMILIES = {
    "llama": {},
    "qwen2": dict(qkv_bias=True, tie_embeddings=True),
    "qwen3": dict(qk_norm=True, head_dim=24),
}
WEIGHTS = (0.5, -1.25, 2.0)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", required=True, help="Python of peft's environment.")
    parser.add_argument("--length", type=int, default=64, help="Tokens of a row.")
    parser.add_argument("--rows", type=int, default=3)
    return parser.parse_args()


def random_adapters(config, base):
    from pangu_jax.models.lora import Adapter, LoraConfig, fingerprint, init_lora

    choices = (
        LoraConfig(rank=4, alpha=8.0),
        LoraConfig(rank=16, alpha=24.0, rslora=True),
        LoraConfig(rank=3, alpha=2.5, targets=("q", "v", "down"), dropout=0.1),
    )
    for index, lora in enumerate(choices):
        keys = iter(jax.random.split(jax.random.key(index), 99))
        params = jax.tree.map(
            lambda x: 0.08 * jax.random.normal(next(keys), x.shape),  # noqa: B023
            init_lora(config, lora, jax.random.key(0)),
        )
        yield Adapter(f"rank{lora.rank}", lora, params, fingerprint(config, base))


def compare(check, family, ours, theirs, base, **more):
    ours, theirs = np.asarray(ours, np.float64), theirs.astype(np.float64)
    line = {
        "check": check,
        "family": family,
        "positions": int(np.prod(ours.shape[:-1])),
        "max_abs_logit_difference": float(np.abs(ours - theirs).max()),
        "logit_std": float(theirs.std()),
        "max_abs_change_by_adapter": float(np.abs(theirs - base).max()),
        "top1_agreement": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        **more,
    }
    print(json.dumps(line), flush=True)


def one_family(name, changes, options, scratch) -> dict:
    from safetensors import safe_open

    from pangu_jax.models import Decoder, DecoderConfig
    from pangu_jax.models.lora import bind, fingerprint, merge
    from pangu_jax.parallel.sharding import unbox
    from pangu_jax.weights import export_safetensors
    from pangu_jax.weights.peft import export_peft, import_peft

    config = DecoderConfig(**(SIZES | changes))
    model = Decoder(config)
    run = jax.jit(model.apply)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (options.rows, options.length))
    tokens = tokens.astype(np.int32)
    base = unbox(jax.jit(model.init)(jax.random.key(7), tokens))["params"]
    adapters = list(random_adapters(config, base))
    folder = export_safetensors(config, base, scratch / "base")
    folders = [export_peft(a, config, scratch / a.name) for a in adapters]
    np.save(scratch / "tokens.npy", tokens)
    out = scratch / "out"
    out.mkdir()
    command = [
        options.peer_python, str(ROOT / "benchmarks" / "peers" / "peft_adapter.py"),
        f"--base={folder}", "--adapters", *map(str, folders),
        "--weights", *map(str, WEIGHTS), f"--tokens={scratch / 'tokens.npy'}", f"--out={out}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"The peer failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")

    def theirs(file):
        return np.load(out / f"{file}.npy")

    def adapted(adapters, weights=None):
        return run({"params": base, "lora": bind(adapters, weights, config=config)}, tokens)

    plain = theirs("base")
    compare("base", name, run({"params": base}, tokens), plain, plain)
    for adapter in adapters:
        about = {"adapter": adapter.name, "targets": len(adapter.config.targets)}
        peer = theirs(adapter.name)
        compare("adapter beside the base", name, adapted([adapter]), peer, plain, **about)
        merged = run({"params": merge(base, adapter).params}, tokens)
        compare("merged", name, merged, theirs(f"{adapter.name}_merged"), plain, **about)
    mixed = adapted(adapters, np.asarray([WEIGHTS], np.float32))
    compare("all adapters, weights", name, mixed, theirs("mixed"), plain, weights=WEIGHTS)
    made = import_peft(out / "made", config)
    compare("adapter made by peft", name, adapted([made]), theirs("made"), plain)
    again = export_peft(made, config, scratch / "again")
    with (
        safe_open(out / "made" / "adapter_model.safetensors", "numpy") as first,
        safe_open(again / "adapter_model.safetensors", "numpy") as second,
    ):
        same = set(first.keys()) == set(second.keys()) and all(
            np.array_equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys()
        )
    back = import_peft(folders[0], config, base_fingerprint=fingerprint(config, base))
    kept = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), back.params, adapters[0].params)
    kept = all(jax.tree.leaves(kept)) and dataclasses.replace(back, params=None) == (
        dataclasses.replace(adapters[0], params=None)
    )
    line = {"check": "files", "family": name, "peft_adapter_round_trip_bit_exact": same}
    line |= {"our_adapter_round_trip_bit_exact": kept}
    return line | json.loads(lines[-1].removeprefix("RESULT "))


def main() -> None:
    options = parse()
    about = {"python": platform.python_version(), "jax": jax.__version__, "device": "cpu"}
    for name, changes in FAMILIES.items():
        with tempfile.TemporaryDirectory() as scratch:
            line = one_family(name, changes, options, pathlib.Path(scratch))
        print(json.dumps(line | about), flush=True)


if __name__ == "__main__":
    main()
