"""Log-probabilities and greedy texts of SmolLM2-135M: this engine, transformers and llama.cpp.

    python benchmarks/generation_parity.py --peer_python=/tmp/hf/bin/python

24 chats written here. transformers in float32 reads the weights through our exporter and answers
each greedily with 64 tokens: the reference. Everything else then gives the log-probability of
each of these tokens after those before it:

* our engine with every type of weights, all chats together (paged cache, chunked prefill); it also
  answers greedily by itself.
* transformers in float32 with weights rounded as our int8 and as llama.cpp's Q8_0 round them. So
  the rounding of weights is told from what else differs.
* llama.cpp with the published file (Q4_1), with the same weights in Q8_0, both with activations in
  eight bits as it does it, and in F32, where nothing is rounded.

A text parts where another token than the reference's is the likeliest; its margin is how much
likelier the reference holds its own token there. One JSON line per pair.
"""

import argparse
import json
import os
import pathlib
import platform
import sys
import tempfile

import numpy as np
from gguf_q8_0 import rewrite
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
REFERENCE = "transformers float32"


class Peers:
    """What transformers and llama.cpp say about continuations; `tokens` come from the reference."""

    def __init__(self, python: str, scratch: pathlib.Path, prompts: list[list[int]]):
        self._python, self._scratch, self._prompts = python, scratch, prompts
        self.versions: dict[str, str] = {}
        self.tokens = [[0] * NEW_TOKENS for _ in prompts]

    def _items(self) -> list[dict]:
        pairs = zip(self._prompts, self.tokens, strict=True)
        return [{"prompt": p, "tokens": t} for p, t in pairs]

    def transformers(self, config, params, *, greedy: bool = False) -> list[dict]:
        """For each chat the log-probabilities of its tokens and the likeliest ones."""
        from pangu_jax.weights import export_safetensors

        request = self._scratch / "request.json"
        request.write_text(json.dumps(self._items()))
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            export_safetensors(config, params, pathlib.Path(folder) / "model")
            report = peer(
                self._python, "transformers_generate.py", f"--folder={folder}/model",
                f"--request={request}", *["--greedy"] * greedy,
            )  # fmt: skip
        self.versions["transformers"] = report["peer"]
        return report["out"]

    def llama_cpp(self, path: pathlib.Path, *, exact: bool) -> list[list[dict[int, float]]]:
        """For each chat and token, log-probabilities of the likeliest ones by id."""
        request = self._scratch / "request.json"
        request.write_text(json.dumps({"items": self._items()}))
        report = peer(
            self._python, "llama_cpp.py", f"--model={path}", f"--request={request}", "--top=50",
            *["--cache_float32"] * exact,
        )  # fmt: skip
        self.versions["llama.cpp"] = report["peer"]
        return [[{int(k): v for k, v in top.items()} for top in x] for x in report["items"]]


def rounded_to_int8(params):
    """The floats that our int8 weights stand for, as parameters of the decoder."""
    import jax

    from pangu_jax.models.quantized import quantize

    inputs = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}

    def walk(tree, name=""):
        out = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                out[key] = walk(value, key)
            elif key == "kernel":
                round_one = lambda x, n=inputs[name]: quantize(x, n).dequantized()  # noqa: E731
                out[key] = jax.lax.map(round_one, value)
            elif key == "embedding":
                out[key] = quantize(value.T, 1).dequantized().T
            else:
                out[key] = value
        return out

    return walk(params)


def scores(engine, prompts, tokens) -> np.ndarray:
    """Log-probabilities of given tokens after their prompts, by our engine (chats, tokens)."""
    from pangu_jax.inference import Request, SamplingParams

    done = engine.generate(
        Request(
            id=str(i), prompt_ids=(*p, *t),
            sampling=SamplingParams(max_tokens=0, prompt_logprobs_from=len(p)),
        )
        for i, (p, t) in enumerate(zip(prompts, tokens, strict=True))
    )  # fmt: skip
    return np.asarray([[x.logprob for x in c.prompt_logprobs] for c in done])


def answers(engine, prompts) -> list[list[int]]:
    from pangu_jax.inference import Request, SamplingParams

    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    done = engine.generate(
        Request(id=str(i), prompt_ids=tuple(p), sampling=sampling) for i, p in enumerate(prompts)
    )
    return [list(c.token_ids) for c in done]


def distance(name: str, other: str, a: np.ndarray, b: np.ndarray) -> dict:
    """Of log-probabilities; nan where a peer did not list the token."""
    difference = np.abs(a - b)
    return {
        "check": "log-probabilities", "of": name, "to": other,
        "tokens": int(np.isfinite(difference).sum()),
        "mean_abs_difference": float(np.nanmean(difference)),
        "max_abs_difference": float(np.nanmax(difference)),
    }  # fmt: skip


def partings(name: str, texts: list[list[int]], reference: list[dict]) -> dict:
    """Where greedy texts part from the reference's, and by what margin."""
    places, margins = [], []
    for text, own in zip(texts, reference, strict=True):
        pairs = enumerate(zip(text, own["greedy"], strict=True))
        place = next((i for i, (x, y) in pairs if x != y), None)
        if place is not None:
            top = dict(own["top"][place])
            places.append(place)
            # At least this much where the token is not even among the reference's twenty.
            margins.append(own["top"][place][0][1] - top.get(text[place], min(top.values())))
    return {
        "check": "texts", "of": name, "to": REFERENCE, "texts": len(texts),
        "identical_texts": len(texts) - len(places), "parted_at": places,
        "median_margin": float(np.median(margins)) if margins else None,
        "largest_margin": max(margins, default=None),
    }  # fmt: skip


def main() -> None:
    import jax

    from pangu_jax.data.wheel import fetch_member
    from pangu_jax.inference.config import EngineConfig
    from pangu_jax.inference.engine import Engine
    from pangu_jax.inference.prompts import chat_ids
    from pangu_jax.weights import BUILT_IN, load_weights

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer_python", required=True)
    parser.add_argument("--weights", nargs="+", default=["float32", "int8", "int8_dynamic"])
    options = parser.parse_args()
    about = {"python": platform.python_version(), "jax": jax.__version__, "device": "cpu"}
    about["cpus"] = len(os.sched_getaffinity(0))
    path = fetch_member(*BUILT_IN["smollm2"])
    model = load_weights("smollm2")
    prompts = [
        list(chat_ids(model.tokenizer, [{"role": "user", "content": text}])) for text in PROMPTS
    ]

    def say(line: dict) -> None:
        print(json.dumps(line | peers.versions | about), flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        peers = Peers(options.peer_python, scratch, prompts)
        first = peers.transformers(model.config, model.params, greedy=True)
        peers.tokens = [x["greedy"] for x in first]
        reference = peers.transformers(model.config, model.params)
        for entry, earlier in zip(reference, first, strict=True):
            entry["greedy"] = earlier["greedy"]
        found = {REFERENCE: np.asarray([x["logprobs"] for x in reference])}

        def compare(name: str, *others: str) -> None:
            for other in others:
                say(distance(name, other, found[name], found[other]))

        rounded = "transformers float32, weights rounded as our int8"
        out = peers.transformers(model.config, rounded_to_int8(model.params))
        found[rounded] = np.asarray([x["logprobs"] for x in out])
        compare(rounded, REFERENCE)
        for weights in options.weights:
            for cache in ("auto", "float16") if weights.startswith("int8") else ("auto",):
                name = f"this, {weights}" + (f", cache {cache}" if cache != "auto" else "")
                engine = Engine(model, EngineConfig(weights=weights, cache_dtype=cache))
                found[name] = scores(engine, prompts, peers.tokens)
                compare(name, REFERENCE, *[rounded] * weights.startswith("int8"))
                say(partings(name, answers(engine, prompts), reference))
                del engine

        q8_0 = rewrite(path, scratch / "q8_0.gguf", "Q8_0")
        rounded = "transformers float32, weights of Q8_0"
        params = load_weights(q8_0, tokenizer=False).params
        out = peers.transformers(model.config, params)
        found[rounded] = np.asarray([x["logprobs"] for x in out])
        compare(rounded, REFERENCE)
        float32 = rewrite(path, scratch / "f32.gguf", "F32")
        for kind, file in (("F32", float32), ("Q8_0", q8_0), ("Q4_1", path)):
            name = f"llama.cpp, {kind}"
            tops = peers.llama_cpp(file, exact=kind == "F32")
            found[name] = np.asarray([
                [top.get(token, np.nan) for top, token in zip(x, text, strict=True)]
                for x, text in zip(tops, peers.tokens, strict=True)
            ])  # fmt: skip
            compare(name, REFERENCE, *[rounded] * (kind == "Q8_0"))
            ours = "this, float32" if kind == "F32" else "this, int8"
            if ours in found:
                compare(ours, name)
            # Along the reference's text: what comes after the first parting does not count.
            say(partings(name, [[max(t, key=t.get) for t in x] for x in tops], reference))


if __name__ == "__main__":
    main()
