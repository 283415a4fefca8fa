"""Text files of unknown or mixed encoding, as lines of text."""

from __future__ import annotations

import ast
from pathlib import Path

from recsys_jax.data.errors import DataError

ENCODINGS = ("auto", "utf-8", "latin-1")


def read_text(path: str | Path, encoding: str = "auto") -> tuple[str, tuple[str, ...]]:
    """The text of a file, without byte order mark, and notes on its encoding.

    encoding: 'auto' takes UTF-16 where its mark says so, else UTF-8 line by line and Latin-1 for
    the lines that are not UTF-8; 'utf-8' and 'latin-1' take the whole file as that.

    Raises:
      DataError: no such file, empty file, unknown encoding, bytes that the encoding does not have.
    """
    path = Path(path)
    if encoding not in ENCODINGS:
        raise DataError(
            f"data.encoding={encoding!r} is not allowed; allowed are {', '.join(ENCODINGS)}."
        )
    if not path.is_file():
        raise DataError(f"There is no file {path}; set --config.data.path.")
    content = path.read_bytes()
    if not content.strip():
        raise DataError(f"{path} is empty.")
    return decode(content, str(path), encoding)


def decode(content: bytes, source: str, encoding: str = "auto") -> tuple[str, tuple[str, ...]]:
    """`read_text` for bytes that are at hand."""
    if encoding == "latin-1":
        return content.decode("latin-1"), ()
    if encoding == "auto" and content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16"), ("Read as UTF-16.",)
    try:
        return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            raise DataError(
                f"{source} is not UTF-8 (byte 0x{content[error.start]:02x} at {error.start}); set "
                "--config.data.encoding to 'auto' or 'latin-1'."
            ) from error
    lines, other = [], 0
    for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError:
            lines.append(line.decode("latin-1"))
            other += 1
    total = len(lines) - (not lines[-1])
    return "\n".join(lines), (f"{other} of {total} lines are not UTF-8, read as Latin-1.",)


def read_literal(path: str | Path):
    """A Python literal (dict or list of plain values) in a text file; nothing is executed.

    Raises:
      DataError: no such file, not a literal.
    """
    text, _ = read_text(path)
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{path} does not hold a Python dict or list: {error}") from error


def fields(line: str, separator: str = ",") -> list[str]:
    """The fields of one line, stripped; a separator at the end adds none."""
    line = line.strip().removesuffix(separator)
    return [part.strip() for part in line.split(separator)] if line else []


def number(text: str, where: str) -> float:
    """A response as a float; blank and 'NA' are NaN.

    Raises:
      DataError: text that is no number.
    """
    if text == "" or text.lower() in ("na", "nan", "null"):
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise DataError(
            f"{where}: response {text!r} is not a number; responses are 0 or 1."
        ) from None
