"""Files below one folder, and nothing outside it.

Symbolic links are not followed and hidden names (with a leading dot) are left out, so that what a
model asks for stays what the user has offered. Somebody who can write into the folder while it is
read can still put a link where a file was.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

MAX_FILES = 20_000
"""Files that are looked at below a folder; others are not found."""
MAX_BYTES = 2 << 20
"""Largest file that is read."""


class FolderError(ValueError):
    """A path that is not offered, or a file that is no text."""


def open_root(root: str | os.PathLike) -> pathlib.Path:
    """The folder, absolute and without links.

    Raises:
      FolderError: there is no such folder.
    """
    path = pathlib.Path(root).expanduser().resolve()
    if not path.is_dir():
        raise FolderError(f"There is no folder {str(root)!r}.")
    return path


def files_below(root: pathlib.Path) -> Iterator[pathlib.Path]:
    """Ordinary files below the folder, sorted within each folder, at most MAX_FILES."""
    left = MAX_FILES
    for folder, folders, names in os.walk(root, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = pathlib.Path(folder, name)
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            yield path
            left -= 1
            if left == 0:
                return


def inside(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file that a path relative to the folder names.

    Raises:
      FolderError: an absolute path, '..', a hidden name, a link, or no such file.
    """
    parts = name.replace("\\", "/").split("/")
    parts = [part for part in parts if part not in ("", ".")]
    absolute = name.startswith(("/", "\\")) or pathlib.PureWindowsPath(name).drive
    if absolute or "\0" in name or not parts or any(part.startswith(".") for part in parts):
        raise FolderError(
            f"{name[:200]!r} is not offered; give a path below the folder, such as notes/a.txt, "
            "without '..' and hidden names."
        )
    path = root
    try:
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise FolderError(f"{name[:200]!r} is a symbolic link, or below one; not followed.")
        found = path.is_file() and path.resolve().is_relative_to(root)
    except OSError:  # such as a name that is too long
        found = False
    if not found:
        raise FolderError(f"There is no file {name[:200]!r} in the folder.")
    return path


def read_text(path: pathlib.Path) -> str | None:
    """The text of a file in UTF-8; None for what is larger than MAX_BYTES or no text."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    if len(raw) > MAX_BYTES or b"\0" in raw:
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
