"""Errors of the training loop that a user can act on."""

from __future__ import annotations


class TrainingError(ValueError):
    """Base of the errors below: training cannot start or go on; the text says what to do."""


class WorkdirError(TrainingError):
    """The work directory is in use, belongs to another run, or cannot be written."""


class CheckpointError(TrainingError):
    """A checkpoint cannot be used."""


class CorruptCheckpointError(CheckpointError):
    """A checkpoint is damaged or incomplete."""


class ForeignCheckpointError(CheckpointError):
    """A checkpoint belongs to another model or optimizer."""


class DiskFullError(TrainingError):
    """There is no room for a checkpoint or a log line."""


class NonFiniteError(TrainingError):
    """A loss or gradient norm is NaN or infinite.

    step: the (0-based) step whose batch caused it. batch_file: the batch as .npz.
    """

    def __init__(self, message: str, *, step: int, batch_file: str | None):
        super().__init__(message)
        self.step = step
        self.batch_file = batch_file


class LostProcessError(TrainingError):
    """A computation across processes failed, most likely because another process has ended.

    What waits for the others (saving, closing, `jax.distributed.shutdown`) would wait for nothing:
    end this process with `os._exit`.
    """


class DataExhaustedError(TrainingError):
    """The training data ended before the last step."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, says that the disk (or quota) is full."""
    import errno

    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        text = str(error)
        # TensorStore reports the errno inside its own message.
        if "No space left on device" in text or "Disk quota exceeded" in text:
            return True
        error = error.__cause__ or error.__context__
    return False
