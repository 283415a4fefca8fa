"""Writing every call to a file: when, what was asked, what came back, what it took."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents_jax.llm.hashing import plain, request_key
from agents_jax.llm.jsonl import JsonLines
from agents_jax.llm.records import to_json

if TYPE_CHECKING:
    from agents_jax.llm.interface import BaseModel


class Transcript:
    """A JSON-lines file of calls; several models of one process may share it.

    Raises:
      RecordingError: another process writes the file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        # Not forced onto the disk: a transcript is for reading, a recording for resuming.
        self._file = JsonLines(path, sync=False)
        self.path = self._file.path

    def write(self, model: BaseModel, request: Any, result: Any) -> None:
        """Appends a call. Arrays of hidden states are left out, their shape is kept."""
        answer = to_json(result)
        if isinstance(answer.get("values"), Mapping):
            answer["values"] = {"shape": answer["values"]["shape"]}
        content = request.content()
        record = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "model": plain(model.identity),
            "hash": request_key(model.identity, content),
            "request": content,
            "n": getattr(request, "n", 1),
            "tag": request.tag,
            "metadata": dict(request.metadata),
            "answer": answer,
        }
        self._file.append([record])

    def close(self) -> None:
        """Gives up the file."""
        self._file.close()
