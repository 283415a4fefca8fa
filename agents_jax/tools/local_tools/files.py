"""Search in the files below one folder: by name, by content, and reading one of them."""

from __future__ import annotations

import fnmatch

from agents_jax.tools.definitions import ToolDefinition
from agents_jax.tools.local_tools.folders import (
    MAX_BYTES,
    FolderError,
    files_below,
    inside,
    open_root,
    read_text,
)

MAX_FOUND = 50
"""Files or lines in an answer; more are counted."""
_LINE = 200  # characters of a line that are shown

FIND_FILES = ToolDefinition(
    "find_files",
    "Finds files in the user's folder by name; gives their paths and sizes.",
    {
        "type": "object",
        "properties": {
            "pattern": {
                "type": "string",
                "description": "A part of the path, or a pattern with * and ? such as *.txt.",
                "maxLength": 200,
            }
        },
        "required": ["pattern"],
    },
)
SEARCH_FILES = ToolDefinition(
    "search_files",
    "Finds lines in the files of the user's folder that contain a text, without regard to case.",
    {
        "type": "object",
        "properties": {
            "text": {"type": "string", "minLength": 1, "maxLength": 200},
            "pattern": {
                "type": "string",
                "description": "Only in files whose path contains this or fits it, such as *.md.",
                "maxLength": 200,
            },
        },
        "required": ["text"],
    },
)
READ_FILE = ToolDefinition(
    "read_file",
    "The text of a file in the user's folder.",
    {
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "As find_files gives it."},
            "first_line": {"type": "integer", "minimum": 1, "description": "Default 1."},
            "lines": {
                "type": "integer",
                "minimum": 1,
                "maximum": 1000,
                "description": "Number of lines at most; default 100.",
            },
        },
        "required": ["path"],
    },
)


def find_files(pattern: str, *, root: str) -> str:
    """'path (bytes)' of each file that fits, one a line.

    Raises:
      FolderError: no such folder.
    """
    folder = open_root(root)
    found, more = [], 0
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        if not _fits(name, pattern):
            continue
        if len(found) < MAX_FOUND:
            found.append(f"{name} ({path.stat().st_size} bytes)")
        else:
            more += 1
    return _answer(found, more, "file")


def search_files(text: str, pattern: str = "", *, root: str) -> str:
    """'path:line: text' of each line that contains the text, one a line.

    Raises:
      FolderError: no such folder.
    """
    folder = open_root(root)
    wanted = text.casefold()
    found, more = [], 0
    for path in files_below(folder):
        name = path.relative_to(folder).as_posix()
        content = read_text(path) if _fits(name, pattern) else None
        if content is None or wanted not in content.casefold():
            continue
        for number, line in enumerate(content.splitlines(), 1):
            if wanted not in line.casefold():
                continue
            if len(found) < MAX_FOUND:
                found.append(f"{name}:{number}: {_around(line, wanted)}")
            else:
                more += 1
    return _answer(found, more, "line")


def read_file(path: str, first_line: int = 1, lines: int = 100, *, root: str) -> str:
    """Lines of a file, and a note where some are left out.

    Raises:
      FolderError: not a text file below the folder.
    """
    content = read_text(inside(open_root(root), path))
    if content is None:
        raise FolderError(
            f"{path!r} is no text in UTF-8 of up to {MAX_BYTES} bytes; it is not read."
        )
    every = content.splitlines()
    shown = every[first_line - 1 : first_line - 1 + lines]
    text = "\n".join(shown)
    if len(shown) < len(every):
        last = first_line - 1 + len(shown)
        text += f"\n[lines {first_line} to {last} of {len(every)}]"
    return text


def _fits(name: str, pattern: str) -> bool:
    name, pattern = name.casefold(), pattern.casefold()
    if any(character in pattern for character in "*?["):
        last = name.rsplit("/", 1)[-1]
        return fnmatch.fnmatchcase(last, pattern) or fnmatch.fnmatchcase(name, pattern)
    return pattern in name


def _around(line: str, wanted: str) -> str:
    """The part of a long line in which the text occurs."""
    line = line.strip()
    if len(line) <= _LINE:
        return line
    start = max(0, min(line.casefold().find(wanted) - _LINE // 4, len(line) - _LINE))
    end = start + _LINE
    return f"{'...' if start else ''}{line[start:end]}{'...' if end < len(line) else ''}"


def _answer(found: list[str], more: int, noun: str) -> str:
    if not found:
        return f"No {noun} found."
    return "\n".join(found) + (f"\n[{more} more {noun}s not shown]" if more else "")
