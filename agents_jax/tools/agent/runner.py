"""Many tasks: run, kept one by one, and not run again.

A run that was killed, or whose endpoint died, goes on where it stopped: finished tasks stay, those
whose model failed are run again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agents_jax.llm.errors import FATAL
from agents_jax.tools.agent.loop import Agent
from agents_jax.tools.agent.tasks import Task
from agents_jax.tools.agent.transcript import Transcript, TranscriptFile, key_of

MakeAgent = Callable[[], contextlib.AbstractContextManager[Agent]]


class RunError(ValueError):
    """A run that cannot go on; what was done is on the disk."""


def run_tasks(
    tasks: Sequence[Task],
    make_agent: MakeAgent,
    path: str | os.PathLike[str],
    *,
    depends_on: Mapping[str, Any],
    concurrency: int = 1,
    max_failures: int = 3,
    on_done: Callable[[Task, Transcript], None] | None = None,
) -> list[Transcript]:
    """Transcripts in the order of the tasks.

    Args:
      make_agent: gives an agent within a `with` statement; called once per thread, since an agent's
        executor serves one task at a time.
      path: file of transcripts, appended to.
      depends_on: what outcomes depend on beside the task, as JSON values.
      concurrency: tasks at once; more than 1 pays for endpoints.
      max_failures: so many tasks in a row whose model failed end the run, as does at once a failure
        that every task would meet (wrong key, no such model, budget).
      on_done: told of every task as it ends, those done before included.

    Raises:
      RunError: the file holds tasks that were run otherwise, or the model keeps failing.
      RecordingError: the file is damaged or in use.
      KeyboardInterrupt: after what was done is written.
    """
    keys = {task.id: key_of(task.to_json(), depends_on) for task in tasks}
    if len(keys) < len(tasks):
        raise RunError("two tasks have the same id; transcripts are kept by id, so give each one.")
    file = TranscriptFile(path)
    try:
        todo = []
        for task in tasks:
            old = file.done.get(task.id)
            if old is not None and old.key != keys[task.id]:
                raise RunError(
                    f"{path} holds task {task.id!r} as run with another model, policy, refiner, "
                    "settings or tools, or the task was another one. Give another --workdir, or "
                    "remove the file."
                )
            if old is None or not old.finished:
                todo.append(task)
            elif on_done is not None:
                on_done(task, old)
        _Running(file, keys, make_agent, max_failures, on_done).go(todo, concurrency)
        return [file.done[task.id] for task in tasks]
    finally:
        file.close()


class _Running:
    """Workers that share a list of tasks and a file."""

    def __init__(self, file, keys, make_agent, max_failures, on_done):
        self._file, self._keys, self._make_agent = file, keys, make_agent
        self._max_failures, self._on_done = max_failures, on_done
        self._lock = threading.Lock()
        self._failures = 0
        self._stopped: BaseException | None = None

    def go(self, tasks: Sequence[Task], concurrency: int) -> None:
        self._left = list(reversed(tasks))
        if concurrency == 1 or len(tasks) < 2:
            if tasks:
                self._work()  # in this thread, where Ctrl-C arrives
        else:
            with concurrent.futures.ThreadPoolExecutor(concurrency, "agent") as threads:
                futures = [threads.submit(self._work) for _ in range(min(concurrency, len(tasks)))]
                try:
                    for future in futures:
                        future.result()
                except BaseException as error:
                    self._stopped = self._stopped or error  # running tasks end, no new one begins
                    raise
        if self._stopped is not None:
            raise self._stopped

    def _work(self) -> None:
        with self._make_agent() as agent:
            while self._stopped is None:
                with self._lock:
                    if not self._left:
                        return
                    task = self._left.pop()
                self._keep(task, agent.run(task))

    def _keep(self, task: Task, transcript: Transcript) -> None:
        transcript = dataclasses.replace(transcript, key=self._keys[task.id])
        with self._lock:
            self._file.add(transcript)
            failed = transcript.end == "model_failed" and not transcript.finished
            self._failures = self._failures + 1 if failed else 0
            if transcript.end == "interrupted":
                self._stopped = KeyboardInterrupt()
            elif failed and (transcript.failure in FATAL or self._failures >= self._max_failures):
                self._stopped = self._stopped or RunError(
                    f"The model failed on {self._failures} task(s) in a row, the last "
                    f"{task.id!r}: {transcript.error} What was done is in {self._file.path}; "
                    "the same command goes on from there."
                )
            if self._on_done is not None:
                self._on_done(task, transcript)
