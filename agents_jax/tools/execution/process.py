"""A worker process: started, asked with a time limit, killed with all that it started."""

from __future__ import annotations

import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Mapping
from typing import Any

_WORKER = pathlib.Path(__file__).with_name("worker.py")
_MAX_REPLY = 64 << 20  # bytes; a larger one is a worker gone wrong
_POLL_S = 0.05
# A tool needs no keys or tokens that the environment of its parent may hold.
_PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONTZPATH", "TMPDIR", "TEMP", "TMP",
    "SYSTEMROOT", "USERPROFILE", "LD_LIBRARY_PATH", "PYTHONHASHSEED",
)  # fmt: skip


class WorkerDied(Exception):
    """The worker ended, or answered what is no reply."""


class WorkerTimeout(Exception):
    """No reply in time; the worker must be killed."""


class WorkerProcess:
    """A process that runs `worker.py`.

    Args:
      setup: the first request, see worker.py.
      start_s: seconds allowed for its start, imports included.
      environment: variables added to the few that are passed on.

    Raises:
      WorkerDied: it did not start; the message has the end of what it printed.
    """

    def __init__(
        self, setup: Mapping[str, Any], *, start_s: float, environment: Mapping[str, str] = {}
    ):
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # Threads of numerical libraries would count against the memory limit.
        env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", **environment}
        self._errors = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],  # -P: the script's folder is not for imports
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=env,
            start_new_session=True,  # a group of its own, so that it dies with its children
        )
        self._kill = weakref.finalize(self, _end, self._process)
        self._replies: queue.Queue[dict | None] = queue.Queue()
        threading.Thread(
            target=_read_all, args=(self._process.stdout, self._replies), daemon=True
        ).start()
        self._count = 0
        try:
            self._send(setup)
            self.failed: dict[str, str] = self._receive(start_s)["failed"]
        except (WorkerDied, WorkerTimeout, KeyError) as error:
            self.kill()
            self._errors.seek(0)
            said = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
            raise WorkerDied(f"its process did not start: {error} {said}".strip()) from None
        finally:
            self._errors.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        if self._process.returncode is not None:
            return False
        if hasattr(os, "waitid"):
            # Not reaped: until then its number, which names the group to kill, is not given anew.
            options = os.WEXITED | os.WNOHANG | os.WNOWAIT
            return os.waitid(os.P_PID, self._process.pid, options) is None
        return self._process.poll() is None

    def call(
        self, name: str, arguments: Mapping[str, Any], *, max_chars: int, timeout_s: float
    ) -> dict[str, Any]:
        """The reply to a call: 'kind', 'text', 'chars'.

        Raises:
          WorkerDied, WorkerTimeout: the process is killed by then.
        """
        self._count += 1
        request = {"id": self._count, "name": name, "arguments": arguments, "max_chars": max_chars}
        try:
            self._send(request)
            reply = self._receive(timeout_s)
            if reply.get("id") != self._count or not isinstance(reply.get("text"), str):
                raise WorkerDied("its process sent something that is no reply")
            return reply
        except BaseException:  # an interrupt too: the reply would meet the next call
            self.kill()
            raise

    def kill(self) -> None:
        """Ends the process and those that it started; no error if it has ended."""
        self._kill()

    def _send(self, message: Mapping[str, Any]) -> None:
        body = json.dumps(message).encode("ascii")
        try:
            self._process.stdin.write(len(body).to_bytes(4, "big") + body)
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerDied(f"its process ended ({self._ending()})") from error

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            # Asked while waiting: a child of a dead worker may hold its pipe open.
            ended = not self.alive
            try:
                reply = self._replies.get(timeout=max(0.0, min(left, _POLL_S)))
            except queue.Empty:
                if ended:
                    raise WorkerDied(f"its process ended ({self._ending()})") from None
                if left <= 0:
                    raise WorkerTimeout(f"no answer within {timeout_s:g} s") from None
                continue
            if not isinstance(reply, dict):
                raise WorkerDied(f"its process ended ({self._ending()})")
            return reply

    def _ending(self) -> str:
        # The pipe of a process that ends is closed a little before it has ended.
        deadline = time.monotonic() + 1
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.005)
        ended = not self.alive
        self.kill()
        code = self._process.returncode
        if not ended:
            return "its pipe was closed"
        if code >= 0:
            return f"exit status {code}"
        try:
            return f"signal {signal.Signals(-code).name}"
        except ValueError:
            return f"signal {-code}"


def _read_all(stream: Any, replies: queue.Queue) -> None:
    """Replies until the stream ends, then None."""
    try:
        while len(head := stream.read(4)) == 4:
            size = int.from_bytes(head, "big")
            body = stream.read(size) if size <= _MAX_REPLY else b""
            if not body or len(body) < size:
                break
            replies.put(json.loads(body))
    except (OSError, ValueError, RecursionError):
        pass
    finally:
        replies.put(None)
        stream.close()


def _end(process: subprocess.Popen) -> None:
    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass
    try:
        process.stdin.close()
    except OSError:
        pass
    process.wait()
