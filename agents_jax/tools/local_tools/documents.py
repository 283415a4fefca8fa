"""Search in a folder of text and Markdown: passages that share words with a question."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.lexical import WordIndex
from agents_jax.tools.local_tools.folders import files_below, open_root, read_text

SUFFIXES = (".txt", ".md", ".markdown", ".rst")
PASSAGE_CHARS = 800
"""A passage is closed at the end of the paragraph in which it reaches this length."""
_MOST_CHARS = 4 * PASSAGE_CHARS
MAX_PASSAGES = 50_000
"""Passages of a folder that are indexed; further ones are not found."""

DEFINITION = ToolDefinition(
    "search_documents",
    "Searches the user's documents for passages about something; gives the best ones with their "
    "file and line.",
    {
        "type": "object",
        "properties": {
            "query": {
                "type": "string",
                "description": "Words that the passage should contain.",
                "minLength": 1,
                "maxLength": 1000,
            },
            "results": {
                "type": "integer",
                "minimum": 1,
                "maximum": 10,
                "description": "Number of passages; default 3.",
            },
        },
        "required": ["query"],
    },
)


@dataclasses.dataclass(frozen=True)
class Passage:
    """Paragraphs of a document; line: where they begin, from 1; heading: the last before them."""

    file: str
    line: int
    heading: str
    text: str


def search_documents(query: str, results: int = 3, *, root: str) -> str:
    """The best passages, each below a line '[file:line] heading'.

    Raises:
      FolderError: no such folder.
      MissingLibrary: rank_bm25 is not installed.
    """
    folder = open_root(root)
    passages, index = _indexed(folder, _state(folder))
    found = [passages[place] for place, score in index.top(query, results) if score > 0]
    if not found:
        return "No passage shares a word with the query."
    return "\n\n".join(f"[{p.file}:{p.line}] {p.heading}".rstrip() + f"\n{p.text}" for p in found)


def split_passages(file: str, text: str) -> list[Passage]:
    """Passages of about PASSAGE_CHARS characters; a Markdown heading begins a new one."""
    passages: list[Passage] = []
    heading, begin, size, held = "", 0, 0, []

    def close() -> None:
        nonlocal size
        whole = "\n".join(held).strip()
        if whole:
            passages.append(Passage(file, begin, heading, whole))
        held.clear()
        size = 0

    for number, line in enumerate(text.splitlines(), 1):
        blank = not line.strip()
        if line.startswith("#") and line.lstrip("#").startswith(" "):
            close()
            heading = line.lstrip("#").strip()
            continue
        if blank and (size == 0 or size >= PASSAGE_CHARS):
            close()
            continue
        # A paragraph may have no end, such as a table, or a line of a megabyte.
        for start in range(0, max(len(line), 1), _MOST_CHARS):
            piece = line[start : start + _MOST_CHARS]
            if size + len(piece) > _MOST_CHARS:
                close()
            if size == 0:
                begin = number
            held.append(piece)
            size += len(piece) + 1
    close()
    return passages


def _state(folder: pathlib.Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the documents: the index is made anew when they change."""
    found = []
    for path in files_below(folder):
        if path.suffix.lower() in SUFFIXES:
            stat = path.stat()
            found.append((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


@functools.lru_cache(maxsize=4)
def _indexed(
    folder: pathlib.Path, state: tuple[tuple[str, int, int], ...]
) -> tuple[list[Passage], WordIndex]:
    passages: list[Passage] = []
    for name, _, _ in state:
        text = read_text(folder / name)
        passages += split_passages(name, text or "")
        if len(passages) >= MAX_PASSAGES:
            break
    del passages[MAX_PASSAGES:]
    # Names and headings say what a passage is about where its words do not.
    texts = [f"{p.file} {p.heading} {p.text}" for p in passages]
    return passages, WordIndex(texts)
