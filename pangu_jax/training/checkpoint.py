"""Checkpoints: asynchronous, atomic, restorable on another mesh, with errors that say what to do.

A thin wrapper around Orbax' CheckpointManager. One checkpoint is a folder named by its step with
four items: `params`, `train` (step, optimizer state, random key), `data` (one iterator state per
process) and `extra` (JSON: fingerprint, metrics position, early stopping).
"""

from __future__ import annotations

import dataclasses
import gc
import pathlib
import shutil
import sys
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.training.checkpoint_json import encode, gather, own_part, seal, unseal
from pangu_jax.training.errors import (
    CheckpointError,
    CorruptCheckpointError,
    DiskFullError,
    ForeignCheckpointError,
    is_disk_full,
)
from pangu_jax.training.state import TrainState

_TMP_MARK = ".orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True)
class Restored:
    """A checkpoint read back. state: on the mesh asked for. data: iterator state or None."""

    step: int
    state: TrainState
    data: Any
    extra: dict[str, Any]


def fingerprint(tree: Any) -> dict[str, str]:
    """{path: 'float32[3,4]'} of a tree of arrays or ShapeDtypeStructs."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(
            path, simple=True, separator="/"
        ): f"{np.dtype(x.dtype).name if x.dtype != jax.numpy.bfloat16 else 'bfloat16'}"
        f"[{','.join(map(str, x.shape))}]"
        for path, x in leaves
    }


class Checkpoints:
    """The checkpoints under one folder.

    Args:
      folder: e.g. workdir/checkpoints/latest; created when missing.
      keep: how many of the newest to keep; None keeps all until `prune`.
      writable: False leaves the folder untouched (evaluation, prediction).
    """

    def __init__(self, folder, *, keep: int | None = 2, writable: bool = True):
        import orbax.checkpoint as ocp

        self.folder = pathlib.Path(folder).absolute()
        self._ocp = ocp
        self._writable = writable
        if writable:
            if jax.process_index() == 0:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_stale()
            _barrier(f"checkpoints_{self.folder.name}")
        elif not self.folder.is_dir():
            raise CheckpointError(
                f"There are no checkpoints in {self.folder}; train first, or "
                "point --workdir at a directory that training wrote."
            )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep if writable else None,
                create=writable,
                enable_async_checkpointing=writable,
                # Several processes save under two folders at a time; without names of their own
                # the barriers of one are taken for those of the other.
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    barrier_sync_key_prefix=self.folder.name
                ),
            ),
            item_names=("params", "train", "data", "extra"),
        )
        if writable:  # All have read what is there, before one may delete of it.
            _barrier(f"checkpoints_{self.folder.name}_read")

    @staticmethod
    def any_in(folder) -> bool:
        """Whether a folder holds a complete checkpoint, without opening it."""
        folder = pathlib.Path(folder)
        return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        # The manager also lists a step that is still being written under a temporary name.
        return sorted(s for s in self._manager.all_steps() if self._path(s).exists())

    def save(
        self,
        state: TrainState,
        *,
        extra: dict[str, Any],
        data: Any = None,
        params_only: bool = False,
    ) -> bool:
        """Starts saving `state` under its step and returns when the arrays may be overwritten.

        Does nothing, and returns False, if that step is already there. Errors of an earlier save
        come out here or in `wait`.

        Args:
          extra: JSON-ready; the fingerprint is added.
          data: this process's iterator state (JSON-ready or bytes), or None.
          params_only: leave out the optimizer state and the key.

        Raises:
          DiskFullError: no room; the checkpoints saved before are intact.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return False
        train = {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}
        trees = (
            {"params": state.params} if params_only else {"params": state.params, "train": train}
        )
        needed = sum(x.nbytes for x in jax.tree.leaves(trees) if hasattr(x, "nbytes"))
        self._check_room(step, needed)
        if jax.default_backend() == "cpu":
            # Host copies may share memory with CPU arrays, which the next step overwrites.
            trees = _copy(trees)
        ocp = self._ocp
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["extra"] = ocp.args.JsonSave(
            seal(
                {**extra, "fingerprint": {name: fingerprint(tree) for name, tree in trees.items()}}
            )
        )
        if data is not None:
            items["data"] = ocp.args.JsonSave(seal({"processes": gather(encode(data))}))
        with self._saving(step, needed):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        return True

    def wait(self) -> None:
        """Blocks until every save is on disk; raises what went wrong in the background."""
        with self._saving(None, None):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def check(self) -> None:
        """Raises what has gone wrong in the background so far, without blocking."""
        with self._saving(None, None):
            self._manager.check_for_errors()

    def prune(self, *, below: int | None = None, above: int | None = None) -> None:
        """Deletes checkpoints with a step under `below` or over `above`; waits for pending saves.

        Of several processes all must call it alike: they meet at every step that is deleted.
        """
        self.wait()
        # As the manager remembers them, which is the same in all processes. On disk the first may
        # have deleted, or not yet renamed, what another still looks for.
        for step in list(self._manager.all_steps()):
            if (below is not None and step < below) or (above is not None and step > above):
                self._manager.delete(step)

    def restore(self, target: TrainState, step: int | None = None) -> Restored:
        """Reads a checkpoint (default: the newest) into the shapes and shardings of `target`.

        Args:
          target: TrainState of arrays or of ShapeDtypeStructs with shardings; any mesh.

        Raises:
          CheckpointError: there is none. CorruptCheckpointError: damaged; names the directory.
          ForeignCheckpointError: other parameters; names the first differences.
        """
        self.wait()
        step = self._pick(step)
        wanted = {
            "params": target.params,
            "train": {"step": target.step, "opt_state": target.opt_state, "rng": target.rng},
        }
        extra, data = self.read_extra(step), self._read_json(step, "data")
        self._compare(step, extra, wanted)
        params = self._read_tree(step, "params", wanted["params"])
        train = self._read_tree(step, "train", wanted["train"])
        state = TrainState(params=params, **train)
        return Restored(
            step, state, None if data is None else own_part(data, self._path(step)), extra
        )

    def restore_params(self, target: Any, step: int | None = None) -> tuple[int, Any]:
        """(step, parameters) of a checkpoint, in the shapes and shardings of `target`."""
        self.wait()
        step = self._pick(step)
        self._compare(step, self.read_extra(step), {"params": target})
        return step, self._read_tree(step, "params", target)

    def read_extra(self, step: int) -> dict[str, Any]:
        """The JSON part of a checkpoint."""
        extra = self._read_json(step, "extra")
        if extra is None:
            raise self._corrupt(step, 'its part "extra" is missing')
        return extra

    def close(self) -> None:
        """Waits for pending saves and releases the threads; keeps quiet about errors."""
        try:
            self._manager.close()
        except Exception:  # noqa: BLE001 - `wait` has reported, or another error is under way
            pass

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def _pick(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"There is no complete checkpoint in {self.folder}; train first "
                "or point --workdir elsewhere."
            )
        if step is None:
            return steps[-1]
        if step not in steps:
            raise CheckpointError(
                f"There is no checkpoint of step {step} in {self.folder}; "
                f"there are {', '.join(map(str, steps))}."
            )
        return step

    def _remove_stale(self) -> None:
        # A killed process leaves half-written checkpoints under a temporary name.
        for path in self.folder.iterdir():
            if _TMP_MARK in path.name:
                shutil.rmtree(path, ignore_errors=True)

    def _read_json(self, step: int, item: str) -> Any:
        if not (self._path(step) / item).exists():
            return None
        try:
            return unseal(
                self._manager.restore(
                    step, args=self._ocp.args.Composite(**{item: self._ocp.args.JsonRestore()})
                )[item]
            )
        except Exception as error:
            raise self._corrupt(
                step, f'its part "{item}" cannot be read: {_brief(error)}'
            ) from error

    def _read_tree(self, step: int, item: str, target: Any) -> Any:
        if not (self._path(step) / item).exists():
            raise self._corrupt(step, f'its part "{item}" is missing')
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target
        )
        try:
            return self._manager.restore(
                step,
                args=self._ocp.args.Composite(**{item: self._ocp.args.StandardRestore(target)}),
            )[item]
        except Exception as error:
            _drop_abandoned_reads()
            raise self._corrupt(
                step, f'its part "{item}" cannot be read: {_brief(error)}'
            ) from error

    def _corrupt(self, step: int, reason: str) -> CorruptCheckpointError:
        others = [s for s in self.steps() if s < step]
        if others:
            then = f"continues from step {others[-1]}"
        elif not self._writable:  # evaluation and prediction: see `load_params`
            then = "looks for another checkpoint of the run"
        else:
            then = "starts from the beginning, because there is no earlier one"
        return CorruptCheckpointError(
            f"The checkpoint {self._path(step)} is damaged: {reason}. If you delete that "
            f"directory, the same command {then}."
        )

    def _compare(self, step: int, extra: dict[str, Any], wanted: dict[str, Any]) -> None:
        lines = []
        for item, tree in wanted.items():
            there, here = extra["fingerprint"].get(item), fingerprint(tree)
            if there is None:
                raise CheckpointError(
                    f'The checkpoint {self._path(step)} holds no "{item}" '
                    "(parameters only), so training cannot continue from it."
                )
            for key in sorted(there.keys() | here.keys()):
                if there.get(key) != here.get(key):
                    lines.append(
                        f"{item}/{key}: checkpoint {there.get(key, 'has none')}, "
                        f"this model {here.get(key, 'has none')}"
                    )
        if lines:
            shown = "; ".join(lines[:3]) + (
                f"; and {len(lines) - 3} more" if len(lines) > 3 else ""
            )
            raise ForeignCheckpointError(
                f"The checkpoint {self._path(step)} belongs to another model or optimizer: "
                f"{shown}. Use the --config it was trained with, or another --workdir."
            )

    def _check_room(self, step: int, needed: int) -> None:
        try:
            free = shutil.disk_usage(self.folder).free
        except OSError:
            return
        local = needed // jax.process_count()
        # Small states are not worth a refusal by estimate: files compress and differ in overhead.
        if free < local and local > 1 << 16 or free < 4096:
            self._disk_full(step, needed, None, free)

    def _disk_full(self, step, needed, cause, free=None):
        steps = self.steps()
        last = (
            f"The last complete checkpoint, step {steps[-1]}, is intact."
            if steps
            else "No checkpoint was complete before."
        )
        size = "" if needed is None else f" needs about {_size(needed)}"
        room = "" if free is None else f", {_size(free)} are free"
        what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
        raise DiskFullError(
            f"The disk is full: {what} in {self.folder}{size}{room}. {last} Training has "
            "stopped; free some room and run the same command again to continue."
        ) from cause

    def _saving(self, step, needed):
        return _TranslateDiskErrors(self, step, needed)


class _TranslateDiskErrors:
    def __init__(self, owner: Checkpoints, step: int | None, needed: int | None):
        self._owner, self._step, self._needed = owner, step, needed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> bool:
        if error is not None and is_disk_full(error):
            # What the failed save left takes the very room that is missing.
            if self._owner._writable and jax.process_index() == 0:
                self._owner._remove_stale()
            self._owner._disk_full(self._step, self._needed, error)
        return False


def _drop_abandoned_reads() -> None:
    # A failed read leaves coroutines behind, whose destructors would print tracebacks over the
    # error that matters.
    hook, sys.unraisablehook = sys.unraisablehook, lambda *args: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            gc.collect()
    finally:
        sys.unraisablehook = hook


@jax.jit
def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _size(count: int) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.1f} {unit}" if unit != "B" else f"{count} B"
        count /= 1024


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'...' if len(text) > 200 else ''}"
