"""Start of several cooperating processes (JAX multi-controller)."""

from __future__ import annotations

import dataclasses
import os

import jax

_ENV = {
    "coordinator_address": "PANGU_JAX_COORDINATOR",
    "num_processes": "PANGU_JAX_NUM_PROCESSES",
    "process_id": "PANGU_JAX_PROCESS_ID",
}


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How this process finds the others.

    coordinator_address: 'host:port' of process 0; 'auto' lets JAX ask the cluster (Slurm, Open
      MPI, TPU pods); None means a single process unless the environment variables
      PANGU_JAX_COORDINATOR, PANGU_JAX_NUM_PROCESSES and PANGU_JAX_PROCESS_ID say otherwise.
    """

    coordinator_address: str | None = None
    num_processes: int | None = None
    process_id: int | None = None


def initialize(config: DistributedConfig | None = None) -> bool:
    """Joins the run's processes; returns whether there is more than one.

    Must run before the first use of a device. On CPU it selects the gloo collectives.

    Raises:
      ValueError: only some of the three values are given, or they contradict each other.
    """
    config = config or DistributedConfig()
    address = config.coordinator_address or os.environ.get(_ENV["coordinator_address"])
    count = _integer(config.num_processes, "num_processes")
    index = _integer(config.process_id, "process_id")
    if address is None and count is None and index is None:
        return False
    if address == "auto":
        _use_gloo_on_cpu()
        jax.distributed.initialize()
        return jax.process_count() > 1
    if address is None or count is None or index is None:
        missing = [
            name
            for name, value in (
                ("coordinator_address", address),
                ("num_processes", count),
                ("process_id", index),
            )
            if value is None
        ]
        raise ValueError(
            f"A run over several processes also needs {', '.join(missing)}: pass "
            f"{', '.join('--' + m for m in missing)} or set "
            f"{', '.join(_ENV[m] for m in missing)}."
        )
    if ":" not in address:
        raise ValueError(
            f"coordinator_address is {address!r}; it must be host:port, for example "
            "127.0.0.1:12345 (port free on process 0)."
        )
    if not 0 <= index < count:
        raise ValueError(
            f"process_id is {index}; with num_processes={count} it must be 0 to {count - 1}."
        )
    if count == 1:
        return False
    _use_gloo_on_cpu()
    jax.distributed.initialize(address, count, index)
    return True


def _integer(value: int | None, name: str) -> int | None:
    if value is not None:
        return value
    text = os.environ.get(_ENV[name])
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"{_ENV[name]} is {text!r}; it must be a whole number.")
    return int(text)


def _use_gloo_on_cpu() -> None:
    # Without it the CPU backend refuses computations that span processes.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
