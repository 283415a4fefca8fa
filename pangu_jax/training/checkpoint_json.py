"""The JSON parts of a checkpoint: checksums, and one data-iterator state per process."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import jax
import numpy as np

from pangu_jax.training.errors import CheckpointError


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The value with a checksum; arrays have theirs from TensorStore."""
    return {"value": value, "crc32": zlib.crc32(json.dumps(value, sort_keys=True).encode())}


def unseal(sealed: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `seal`; raises ValueError if the content has changed."""
    value = sealed["value"]
    if sealed["crc32"] != zlib.crc32(json.dumps(value, sort_keys=True).encode()):
        raise ValueError("the checksum does not match")
    return value


def encode(data: Any) -> str:
    """An iterator state, JSON-ready or bytes, as text."""
    if isinstance(data, bytes):
        return json.dumps({"base64": base64.b64encode(data).decode()})
    return json.dumps({"json": data})


def decode(text: str) -> Any:
    """The inverse of `encode`."""
    value = json.loads(text)
    return base64.b64decode(value["base64"]) if "base64" in value else value["json"]


def gather(text: str) -> list[str]:
    """Every process's text, on every process."""
    if jax.process_count() == 1:
        return [text]
    from jax.experimental import multihost_utils

    raw = np.frombuffer(text.encode(), np.uint8)
    size = int(np.max(multihost_utils.process_allgather(np.int32(raw.size))))
    padded = np.zeros(size, np.uint8)
    padded[: raw.size] = raw
    rows = multihost_utils.process_allgather(padded)
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(rows)]


def own_part(saved: dict[str, Any], path) -> Any:
    """This process's iterator state from the `data` part of the checkpoint at `path`.

    Raises:
      CheckpointError: saved by another number of processes.
    """
    parts = saved["processes"]
    if len(parts) != jax.process_count():
        raise CheckpointError(
            f"The checkpoint {path} was saved by {len(parts)} processes, each with its own place "
            f"in the data; this run has {jax.process_count()}. Start {len(parts)} processes."
        )
    return decode(parts[jax.process_index()])
