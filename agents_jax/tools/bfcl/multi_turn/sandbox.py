"""BFCL's environments in a process of their own, reached by calls as data.

The classes are the package's own source files, out of the pinned and hash-checked wheel. They run
in `worker.py`: another process, in an empty temporary folder, without this one's environment
variables, with limits of processor time, memory, files and processes, its system calls refused by a
Python audit hook, in a network of its own where the system allows that; it is killed when it does
not answer in time. What this protects from and what not is said in docs/bfcl.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents_jax.tools.bfcl.data import WHEEL
from agents_jax.tools.bfcl.multi_turn.tagged import literal, with_nested_calls
from agents_jax.tools.calls import Call
from pangu_jax.data.wheel import fetch_member

ENVIRONMENTS: dict[str, str] = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
"""Classes that may run, and their files in the package."""
_FOLDER = "bfcl_eval/eval_checker/multi_turn_eval/func_source_code"
_MAX_REPLY_BYTES = 32 << 20


class SandboxError(RuntimeError):
    """The environments gave no answer.

    kind: 'timeout' (no answer in time), 'died' (a limit was reached or the process was killed),
    'scenario' (an item that cannot be loaded), 'start' (the process does not start).
    """

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What an episode may use.

    request_seconds: wall time of one request. cpu_seconds: processor time of an episode.
    memory_bytes: address space. start_seconds: until the process has loaded the sources.
    """

    request_seconds: float = 20.0
    cpu_seconds: int = 20
    memory_bytes: int = 1 << 30
    start_seconds: float = 60.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(
                    f"{field.name}={getattr(self, field.name)!r} is not allowed; a number above 0."
                )


class Sandbox:
    """The process; it serves one episode after the other. Use it in a `with` statement.

    Args:
      environments: classes to load; all by default. MathAPI needs mpmath (the extra 'bfcl').
      cache: folder of the wheels in place of `pangu_jax.data.wheel.cache_dir()`.

    Raises:
      ValueError: a class that is not one of ENVIRONMENTS.
      SandboxError: the process does not start. WheelError: the wheel cannot be had.
    """

    def __init__(
        self,
        environments: Sequence[str] = tuple(ENVIRONMENTS),
        *,
        limits: Limits | None = None,
        cache: Path | None = None,
    ):
        for name in environments:
            if name not in ENVIRONMENTS:
                raise ValueError(
                    f"environment {name!r} is unknown; allowed: {', '.join(ENVIRONMENTS)}."
                )
        files = [f"{_FOLDER}/{ENVIRONMENTS[name]}.py" for name in environments]
        paths = fetch_member(WHEEL, [f"{_FOLDER}/long_context.py", *files], cache=cache)
        self.limits = limits or Limits()
        self._root = str(paths[0]).removesuffix(f"/{_FOLDER}/long_context.py")
        self._modules = {
            name: f"{_FOLDER}/{ENVIRONMENTS[name]}".replace("/", ".") for name in environments
        }
        self._process: subprocess.Popen | None = None
        self._rest = b""
        self.network_namespace = False
        self._folder = tempfile.TemporaryDirectory(prefix="bfcl-")
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process and removes its folder."""
        self._kill()
        self._folder.cleanup()

    @contextlib.contextmanager
    def episode(
        self,
        involved_classes: Sequence[str],
        initial_config: Mapping[str, Any],
        *,
        long_context: bool = False,
        sides: Sequence[str] = ("model",),
    ) -> Iterator[Episode]:
        """A fresh set of the classes' instances per side; nothing of it is left behind.

        Raises:
          SandboxError: the scenario cannot be loaded.
        """
        if self._process is None:
            self._start()
        begin = {
            "classes": list(involved_classes),
            "config": initial_config,
            "long_context": long_context,
            "sides": list(sides),
        }
        episode = Episode(self, self._ask({"begin": begin}, self.limits.request_seconds))
        try:
            yield episode
        finally:
            if self._process is not None and not episode.over:
                self._end()

    def _start(self) -> None:
        # None of the caller's variables: they may hold keys.
        environment = {"PYTHONHASHSEED": "0", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
        self._process = subprocess.Popen(
            [sys.executable, "-B", "-P", "-s", str(Path(__file__).with_name("worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder.name,
            env=environment,
            start_new_session=True,
        )
        self._rest = b""
        setup = {
            "root": self._root,
            "modules": self._modules,
            "limits": {
                "AS": self.limits.memory_bytes,
                "CORE": 0,
                "CPU": self.limits.cpu_seconds,
                "FSIZE": 0,
                "NOFILE": 32,
                "NPROC": 0,
            },
        }
        try:
            self.network_namespace = self._ask(setup, self.limits.start_seconds)[
                "network_namespace"
            ]
        except SandboxError as error:
            hint = " Install the extra: pip install -e '.[bfcl]'."
            raise SandboxError(
                "start",
                f"BFCL's environments do not start: {error}{hint * ('mpmath' in str(error))}",
            ) from error

    def _kill(self) -> str:
        """Ends the process and its children; returns the end of what it said."""
        process, self._process = self._process, None
        if process is None:
            return ""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        said = process.stderr.read().decode("utf-8", "replace")
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        return said.strip()[-500:]

    def _ask(self, request: Any, seconds: float) -> Any:
        """The answer to a request."""
        reply = self._exchange(request, seconds)
        if "ended" in reply:
            raise SandboxError(
                "died",
                f"the process of BFCL's environments ended with status {reply['ended']}: a limit "
                f"of {self.limits} was reached, or it was killed.",
            )
        if "error" in reply:
            self._read(seconds)  # how the episode ended
            raise SandboxError("scenario", reply["error"])
        return reply["ok"]

    def _end(self) -> None:
        try:
            self._exchange({"end": True}, self.limits.request_seconds)
        except SandboxError:
            self._kill()

    def _exchange(self, request: Any, seconds: float) -> dict[str, Any]:
        data = json.dumps(request).encode() + b"\n"
        deadline = time.monotonic() + seconds
        try:
            os.set_blocking(self._process.stdin.fileno(), False)
            while data:
                self._wait([], [self._process.stdin], deadline)
                data = data[os.write(self._process.stdin.fileno(), data) :]
        except OSError:
            raise SandboxError("died", f"the process is gone. {self._kill()}") from None
        return self._read(seconds)

    def _read(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        pieces = [self._rest]
        size = len(self._rest)
        while b"\n" not in pieces[-1]:
            self._wait([self._process.stdout], [], deadline)
            piece = os.read(self._process.stdout.fileno(), 1 << 20)
            size += len(piece)
            if not piece:
                raise SandboxError("died", f"the process is gone. {self._kill()}")
            if size > _MAX_REPLY_BYTES:
                self._kill()
                raise SandboxError("died", f"an answer is longer than {_MAX_REPLY_BYTES} bytes.")
            pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return json.loads(line)

    def _wait(self, reading: list, writing: list, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0 or not any(select.select(reading, writing, [], left)):
            self._kill()
            raise SandboxError(
                "timeout", "BFCL's environments did not answer in time and were ended."
            )


class Episode:
    """One item's environments.

    function_names: public methods that may be called. over: no more requests are answered.
    """

    def __init__(self, sandbox: Sandbox, function_names: Sequence[str]):
        self._sandbox = sandbox
        self.function_names = tuple(function_names)
        self.over = False

    def execute(
        self, calls: Sequence[Call], side: str = "model", *, nested_calls: bool = False
    ) -> list[str]:
        """One result per call, in order; a call that fails has its error as result.

        Args:
          nested_calls: take a dict whose values are all dicts as a call of its first key, whose
            result is the argument; so `parse_calls` gives `f(a=g(b=1))`, and so BFCL runs it.

        Raises:
          SandboxError: no answer in time, or the process died; the episode is over.
        """
        if not calls:
            return []
        encode = with_nested_calls if nested_calls else literal
        encoded = [[c.name, {k: encode(v) for k, v in c.arguments.items()}] for c in calls]
        return self._ask({"side": side, "calls": encoded})

    def differences(self, side: str, other: str) -> dict[str, list[str]]:
        """{'Class.attribute': [value, other's value]} of the public attributes that differ, as
        texts of up to 500 characters.

        Raises:
          SandboxError: as `execute`.
        """
        return self._ask({"compare": [side, other]})

    def _ask(self, request: Any) -> Any:
        if self.over:
            raise SandboxError("died", "the episode is over.")
        try:
            return self._sandbox._ask(request, self._sandbox.limits.request_seconds)
        except SandboxError:
            self.over = True
            raise
