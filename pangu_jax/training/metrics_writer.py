"""Metrics to JSONL and TensorBoard, so that a resumed run's file equals an uninterrupted one's.

A record is one line: {"step": int, "kind": "train" | "eval", "values": {...}, "time": {...}}.
Only "time" depends on the clock.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

from pangu_jax.training.errors import DiskFullError, is_disk_full


class MetricsWriter:
    """Appends records to `metrics.jsonl` and, if asked, to TensorBoard.

    Args:
      file: path of the JSONL file, or None to write nothing (all processes but the first).
      tensorboard: folder of event files, or None.
      resume_step: records of later steps are removed first (-1 removes everything).
      resume_eval_step: evaluation records of later steps are removed first.
    """

    def __init__(
        self, file, tensorboard=None, *, resume_step: int = -1, resume_eval_step: int = -1
    ):
        self._board = None
        self._path = None if file is None else pathlib.Path(file)
        self._file = None
        if self._path is None:
            return
        limits = {"train": resume_step, "eval": resume_eval_step}
        self._translate(self._truncate, limits)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
        if tensorboard is not None:
            self._board = open_tensorboard(tensorboard, resume_step + 1)

    def write(
        self, step: int, kind: str, values: dict[str, Any], time: dict[str, float] | None = None
    ) -> dict[str, Any]:
        """Writes one record and returns it.

        Raises:
          DiskFullError: no room for the line.
        """
        record = {
            "step": int(step),
            "kind": kind,
            "values": {k: _plain(v) for k, v in values.items()},
            "time": {k: _plain(v) for k, v in (time or {}).items()},
        }
        if self._file is not None:
            self._translate(self._append, json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in {**record["values"], **record["time"]}.items():
                if isinstance(value, (int, float)) and name != "unix":
                    self._board.add_scalar(f"{kind}/{name}", value, step)
        return record

    def flush(self) -> None:
        """Forces everything to disk."""
        if self._file is not None:
            self._translate(lambda: (self._file.flush(), os.fsync(self._file.fileno())))
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Closes the files; keeps quiet, because another error may be under way."""
        for stream in (self._file, self._board):
            try:
                if stream is not None:
                    stream.close()
            except OSError:
                pass
        self._file = self._board = None

    def _append(self, line: str) -> None:
        self._file.write(line)
        self._file.flush()

    def _truncate(self, limits: dict[str, int]) -> None:
        if not self._path.exists():
            return
        kept, changed = [], False
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                record = json.loads(line)
                keep = line.endswith("\n") and record["step"] <= limits.get(
                    record["kind"], limits["train"]
                )
            except (ValueError, KeyError, TypeError):
                keep = False  # half a line of a killed process
            changed |= not keep
            if keep:
                kept.append(line)
        if changed:
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            temporary.write_text("".join(kept), encoding="utf-8")
            os.replace(temporary, self._path)

    def _translate(self, function, *args) -> None:
        try:
            function(*args)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise DiskFullError(
                f"The disk is full: {self._path} could not be written. The last checkpoint is "
                "intact; free some room and run the same command again to continue."
            ) from error


def read_metrics(file) -> list[dict[str, Any]]:
    """All complete records of a metrics.jsonl."""
    records = []
    path = pathlib.Path(file)
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                continue
    return records


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    # JSON has no NaN; text keeps the line readable by every parser.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def open_tensorboard(folder, purge_step: int):
    """A SummaryWriter that hides what an earlier one wrote from `purge_step` on.

    None where tensorboardX is not installed.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(
        str(folder), purge_step=purge_step if purge_step > 0 else None, flush_secs=30
    )
