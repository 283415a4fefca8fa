"""Runs calls of local tools; whatever a tool does, its call ends as an observation."""

from __future__ import annotations

import difflib
import math
import os
import sys
import threading
import time
from collections.abc import Mapping

from agents_jax.tools.calls import Call
from agents_jax.tools.definitions import ArgumentError, check_arguments
from agents_jax.tools.execution.observation import ErrorKind, Observation, cut
from agents_jax.tools.execution.process import WorkerDied, WorkerProcess, WorkerTimeout
from agents_jax.tools.execution.reference import reference
from agents_jax.tools.registry import LocalTool, Registry

_SHOWN_TOOLS = 30


class ExecutionError(RuntimeError):
    """The executor was closed, or its worker cannot be started."""


class Executor:
    """Runs tools of a registry in a process of their own, one call at a time.

    The process is started at the first call, killed with its children when a call takes too long,
    and started anew at the next one; what tools keep in memory is then lost. It protects the agent
    from tools that fail, not the machine from tools that mean harm: they run with the user's
    rights.

    Args:
      registry: its tools as they are now; later additions are not seen.
      timeout_s: wall seconds of one call. start_timeout_s: of the process's start with its imports,
        which does not count against a call.
      max_output_chars: longest text of an observation, without the note that says what was cut.
      memory_mb: address space of the process, max_file_mb: largest file that it writes; None for no
        limit. Not on systems that have no such limits.
      environment: variables for the process, beside a few such as PATH; others are not passed on.

    Raises:
      ToolReferenceError: a function that another process cannot import.
      ValueError: a limit that is not a positive number.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        timeout_s: float = 10.0,
        max_output_chars: int = 4_000,
        memory_mb: int | None = 2_048,
        max_file_mb: int | None = 64,
        start_timeout_s: float = 60.0,
        environment: Mapping[str, str] | None = None,
    ):
        limits = {"timeout_s": timeout_s, "start_timeout_s": start_timeout_s}
        limits |= {"max_output_chars": max_output_chars}
        limits |= {"memory_mb": memory_mb} if memory_mb is not None else {}
        limits |= {"max_file_mb": max_file_mb} if max_file_mb is not None else {}
        for name, value in limits.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
                0 < value < math.inf
            ):  # fmt: skip
                raise ValueError(f"{name}={value!r} is not allowed; a number above 0 is needed.")
        self._tools: dict[str, LocalTool] = dict(registry)
        self._timeout_s, self._max_chars = timeout_s, int(max_output_chars)
        self._start_s, self._environment = start_timeout_s, dict(environment or {})
        self._setup = {
            "sys_path": [os.path.abspath(entry) for entry in sys.path],
            "tools": {name: reference(tool.function, name) for name, tool in self._tools.items()},
            "limits": {
                "memory_bytes": None if memory_mb is None else int(memory_mb * 2**20),
                "file_bytes": None if max_file_mb is None else int(max_file_mb * 2**20),
                "cpu_s": timeout_s * (os.cpu_count() or 1),
            },
        }
        self._worker: WorkerProcess | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> None:
        """Starts the process now rather than at the first call.

        Raises:
          ExecutionError: it does not start.
        """
        with self._lock:
            try:
                self._running()
            except WorkerDied as error:
                raise ExecutionError(f"No process for the tools: {error}") from None

    def close(self) -> None:
        """Ends the process; the executor runs nothing more."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.kill()
            self._worker = None

    def run(self, call: Call) -> Observation:
        """The outcome of a call. Calls from several threads wait for each other.

        Raises:
          ExecutionError: the executor is closed. Nothing else, whatever the call and the tool.
        """
        start = time.perf_counter()

        def observe(kind: ErrorKind | None, text: str, total: int | None = None) -> Observation:
            text, truncated = cut(text, self._max_chars, total)
            seconds = time.perf_counter() - start
            return Observation(call, kind is None, text, kind, seconds, truncated)

        tool = self._tools.get(call.name)
        if tool is None:
            return observe("unknown_tool", self._unknown(call.name))
        try:
            arguments = check_arguments(tool.definition, call.arguments)
        except ArgumentError as error:
            return observe("bad_arguments", str(error))
        with self._lock:
            try:
                worker = self._running()
                if call.name in worker.failed:
                    return observe("raised", f"{call.name} {worker.failed[call.name]}")
                reply = worker.call(
                    call.name, arguments, max_chars=self._max_chars, timeout_s=self._timeout_s
                )
            except WorkerTimeout as error:
                return observe("timed_out", f"{call.name} was stopped: {error}.")
            except WorkerDied as error:
                return observe("died", f"{call.name} gave no result: {error}.")
        kind = reply["kind"]
        text = reply["text"] if kind != "bad_result" else f"{call.name} {reply['text']}"
        return observe(kind, text, reply["chars"] + len(text) - len(reply["text"]))

    def _running(self) -> WorkerProcess:
        if self._closed:
            raise ExecutionError("This executor is closed; make another one.")
        if self._worker is None or not self._worker.alive:
            self._worker = WorkerProcess(
                self._setup, start_s=self._start_s, environment=self._environment
            )
        return self._worker

    def _unknown(self, name: str) -> str:
        names = list(self._tools)
        near = difflib.get_close_matches(name[:200], names, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        shown = ", ".join(names[:_SHOWN_TOOLS]) or "none"
        more = f", and {len(names) - _SHOWN_TOOLS} more" if len(names) > _SHOWN_TOOLS else ""
        return f"There is no tool {name[:200]!r}.{hint} Tools: {shown}{more}."
