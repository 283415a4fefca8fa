"""Files of JSON lines that one process appends to and that survive its death.

A record is whole on the disk before `append` returns. A last line torn by a crash is cut off when
the file is opened again for writing; damage anywhere else is an error that names the line.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from agents_jax.llm.errors import RecordingError

_log = logging.getLogger(__name__)


class JsonLines:
    """A JSON-lines file open for appending, locked against a second writer.

    Args:
      path: created, with its folder, where it is absent.
      sync: force each record onto the disk (fsync) before `append` returns.

    Raises:
      RecordingError: another writer holds the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, sync: bool = True):
        self.path = pathlib.Path(path)
        self._sync = sync
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            _lock(self._file, self.path)
            _repair(self._file, self.path)
        except BaseException:
            os.close(self._file)
            self._file = -1
            raise

    def append(self, records: Sequence[Any]) -> None:
        """Writes the records, each as one line, and returns when they are on the disk."""
        if self._file < 0:
            raise RecordingError(f"{self.path} is closed.")
        lines = "".join(
            json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records
        )
        # Lone surrogates, which a model's broken output may hold, survive as they are.
        data = memoryview(lines.encode("utf-8", "surrogatepass"))
        while data:
            data = data[os.write(self._file, data) :]
        if self._sync:
            os.fsync(self._file)

    def close(self) -> None:
        """Gives up the file and its lock."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, Any]]:
    """(line number from 1, record) of each line; a torn last line is left out.

    Raises:
      RecordingError: no such file, or a line that is no JSON.
    """
    path = pathlib.Path(path)
    try:
        file = open(path, "rb")
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            record = _parse(line)
            if record is None:
                if not line.endswith(b"\n"):
                    return
                raise RecordingError(
                    f"{path}, line {number} is no JSON object: {line[:80]!r}. Remove the line; "
                    "what it answered is asked again."
                )
            yield number, record


def _parse(line: bytes) -> dict | None:
    try:
        value = json.loads(line.decode("utf-8", "surrogatepass"))
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _lock(file: int, path: pathlib.Path) -> None:
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RecordingError(
            f"{path} is being written by another process (or by another model of this one); wait "
            "for it, or give each its own file."
        ) from error


def _repair(file: int, path: pathlib.Path) -> None:
    """Ends the last line, or cuts it off where a crash tore it."""
    size = os.fstat(file).st_size
    tail, start = b"", size
    while start > 0 and b"\n" not in tail[:-1]:
        step = min(start, 1 << 16)
        start -= step
        tail = os.pread(file, step, start) + tail
    if not tail or tail.endswith(b"\n"):
        return
    cut = tail.rfind(b"\n") + 1
    if _parse(tail[cut:]) is not None:  # only its end of line was lost
        os.write(file, b"\n")
        return
    _log.warning("%s: its last line was torn by a crash and is cut off", path)
    os.ftruncate(file, start + cut)
    os.fsync(file)
