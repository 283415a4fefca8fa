"""The work directory: layout, exclusive lock, the config it belongs to, facts about the run."""

from __future__ import annotations

import fcntl
import fnmatch
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pangu_jax.config import differing_keys, to_dict
from pangu_jax.training.errors import DiskFullError, WorkdirError, is_disk_full

# What may differ between the config of a run and the one that continues it: how far, how often
# it reports and saves, on which devices. Everything else would make it another run.
ALLOWED_CHANGES = (
    "train.steps",
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoint_minutes",
    "train.keep_checkpoints",
    "train.nan_guard",
    "train.mesh.*",
    "train.progress",
    "train.early_stopping_patience",
)
_BOOKKEEPING = (".lock", "config.json", "run_info.json", "corpus.json", "tokenizer.json")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Workdir:
    """A run's directory, held exclusively by one process while open for training.

    Layout: config.json, run_info.json, metrics.jsonl, tensorboard/, checkpoints/latest,
    checkpoints/best, report/.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path).absolute()
        self._lock: int | None = None

    @classmethod
    def open(
        cls,
        path,
        config: Any,
        *,
        allowed_changes: Sequence[str] = ALLOWED_CHANGES,
        seed: int | None = None,
    ) -> Workdir:
        """Creates or reopens a work directory for training, and locks it.

        Args:
          path: the directory.
          config: the whole resolved configuration (dataclass or mapping), written to config.json.
          allowed_changes: dotted keys (with *) that may differ from an earlier config.json;
            'train.steps' may only grow.

        Raises:
          WorkdirError: in use by another process, made with another config (and something has been
            computed with it), or not writable.
        """
        self = cls(path)
        error = None
        if jax.process_index() == 0:
            try:
                self._prepare(to_dict(config), allowed_changes, seed)
            except Exception as caught:
                self.close()
                error = caught
        # The other processes must not wait for one that has given up.
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            refused = multihost_utils.broadcast_one_to_all(np.int32(error is not None))
            if refused and error is None:
                error = WorkdirError(
                    f"Process 0 could not open the work directory {self.path}; "
                    "its message says why."
                )
        if error is not None:
            raise error
        return self

    config_file = property(lambda self: self.path / "config.json")
    metrics_file = property(lambda self: self.path / "metrics.jsonl")
    tensorboard = property(lambda self: self.path / "tensorboard")
    latest = property(lambda self: self.path / "checkpoints" / "latest")
    best = property(lambda self: self.path / "checkpoints" / "best")
    report = property(lambda self: self.path / "report")
    run_info_file = property(lambda self: self.path / "run_info.json")

    def read_config(self) -> dict[str, Any]:
        """The configuration this directory was made with.

        Raises:
          WorkdirError: there is none.
        """
        try:
            return json.loads(self.config_file.read_text())
        except FileNotFoundError:
            raise WorkdirError(
                f"{self.path} is not a work directory: it has no config.json. Train "
                "first, or point --workdir at a directory that training wrote."
            ) from None
        except json.JSONDecodeError as error:
            raise WorkdirError(
                f"{self.config_file} is not valid JSON ({error}); restore it or "
                "choose another --workdir."
            ) from error

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Workdir:
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def _prepare(self, config: dict[str, Any], allowed: Sequence[str], seed: int | None) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkdirError(
                f"The work directory {self.path} cannot be created "
                f"({error.strerror}); choose another --workdir."
            ) from error
        self._acquire()
        self._check_config(config, allowed)
        self._write_run_info(seed)

    def _acquire(self) -> None:
        # flock belongs to the open file, so the system releases it however the process ends.
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise WorkdirError(
                f"The work directory {self.path} cannot be written "
                f"({error.strerror}); choose another --workdir."
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(handle, 1000, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise WorkdirError(
                f"The work directory {self.path} is in use by another process ({owner}). Wait for "
                "it to end, or choose another --workdir."
            ) from error
        self._lock = handle
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"pid {os.getpid()} on host {socket.gethostname()}".encode(), 0)
        except OSError:
            pass  # The text is a courtesy; the lock itself holds on a full disk too.

    def _check_config(self, config: dict[str, Any], allowed: Sequence[str]) -> None:
        if self.config_file.exists():
            old = self.read_config()
            refused = []
            for key, (before, now) in differing_keys(old, config).items():
                fine = any(fnmatch.fnmatchcase(key, pattern) for pattern in allowed)
                # A setting that an earlier version did not have, and that is not used.
                fine |= before == "-" and now is None
                if fine and key == "train.steps" and _is_less(now, before):
                    fine = self._steps_done() <= now
                if not fine:
                    refused.append(f"{key} was {before!r}, now {now!r}")
            if refused and self._anything_done():
                shown = "; ".join(refused[:5])
                more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
                raise WorkdirError(
                    f"The work directory {self.path} was made with another config: {shown}{more}. "
                    "Use the same values to continue, or another --workdir to start anew."
                )
        elif self._steps_done() >= 0:
            raise WorkdirError(
                f"{self.path} holds checkpoints but no config.json, so it cannot be "
                "told whether they belong to this run; choose another --workdir."
            )
        write_json(self.config_file, config)

    def _anything_done(self) -> bool:
        """False where every start so far failed before it computed something, over a mistyped path
        for example; the corrected command may then have the directory."""
        if self._steps_done() >= 0:
            return True
        for file in self.path.rglob("*"):
            parts = file.relative_to(self.path).parts
            if parts[-1] in _BOOKKEEPING or "tensorboard" in parts or not file.is_file():
                continue
            if file.stat().st_size:
                return True
        return False

    def _steps_done(self) -> int:
        names = [p.name for p in self.latest.iterdir()] if self.latest.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=-1)

    def _write_run_info(self, seed: int | None) -> None:
        try:
            starts = json.loads(self.run_info_file.read_text())["starts"]
        except (OSError, ValueError, KeyError):
            starts = []
        devices = jax.devices()
        starts.append(
            {
                "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": shlex.join([sys.executable, *sys.argv]),
                "seed": seed,
                "python": platform.python_version(),
                "versions": {name: _version(name) for name in _PACKAGES},
                "platform": platform.platform(),
                "cpus": os.cpu_count(),
                "backend": jax.default_backend(),
                "devices": len(devices),
                "device_kind": devices[0].device_kind,
                "processes": jax.process_count(),
            }
        )
        write_json(self.run_info_file, {"starts": starts[-100:]})


def write_json(path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    path = pathlib.Path(path)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            temporary = file.name
            json.dump(value, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        if is_disk_full(error):
            raise DiskFullError(
                f"The disk is full: {path} could not be written. Nothing was lost; "
                "free some room and run the same command again."
            ) from error
        raise


def _is_less(now: Any, before: Any) -> bool:
    return all(isinstance(v, (int, float)) for v in (now, before)) and now < before


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
