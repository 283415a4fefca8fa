"""Many items against a model, kept in a file from which a later run goes on."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from agents_jax.llm.errors import FATAL
from agents_jax.llm.hashing import plain
from agents_jax.llm.interface import LanguageModel
from agents_jax.llm.jsonl import JsonLines, read_lines
from agents_jax.llm.requests import GenerateRequest
from agents_jax.tools.bfcl.multi_turn.data import MultiTurnItem
from agents_jax.tools.bfcl.multi_turn.rollout import RolloutSettings, play
from agents_jax.tools.bfcl.multi_turn.sandbox import Limits, Sandbox
from agents_jax.tools.bfcl.multi_turn.transcripts import TurnsTranscript

_PERMANENT = ("bad_request:", "environment:")  # failures that the same run would meet again


class RunError(RuntimeError):
    """A run that cannot go on; the message says why and what to do."""


@dataclasses.dataclass
class _Active:
    """An item that is being played, in a sandbox that later serves the next."""

    sandbox: Sandbox
    stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    playing: Generator | None = None
    request: GenerateRequest | None = None


def run_multi_turn(
    items: Sequence[MultiTurnItem],
    model: LanguageModel,
    settings: RolloutSettings | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    parallel: int = 4,
    limits: Limits | None = None,
    on_item: Callable[[TurnsTranscript], None] | None = None,
) -> list[TurnsTranscript]:
    """A transcript per item, in their order.

    Args:
      settings, limits: None for the defaults.
      out: JSON lines: a head with the model and the settings, then transcripts. Items that are in
        it are not asked again, but for those whose request failed for a passing reason.
      parallel: items that are played at once; their requests go to the model together.
      on_item: told of each transcript as it is finished.

    Raises:
      RunError: the file is of another model or other settings; a failure that every request would
        meet (wrong key, unknown model, spent budget).
      RecordingError: the file is damaged or being written. SandboxError: see `Sandbox`.
    """
    if parallel < 1:
        raise ValueError(f"parallel={parallel!r} is not allowed; an integer >= 1.")
    settings = settings or RolloutSettings()
    head = {"model": plain(model.identity, "identity"), "settings": dataclasses.asdict(settings)}
    done = read_transcripts(out, head) if out is not None and Path(out).exists() else {}
    queue = collections.deque(item for item in items if item.id not in done)
    with contextlib.ExitStack() as stack:
        file = None
        if out is not None:
            file = JsonLines(out)
            stack.callback(file.close)
            if not os.path.getsize(out):
                file.append([{"head": head}])
        active = []
        for _ in range(min(parallel, len(queue))):
            active.append(_Active(stack.enter_context(Sandbox(limits=limits))))
            stack.callback(active[-1].stack.close)
        while True:
            for slot in active:
                if slot.playing is None and queue:
                    _begin(slot, queue.popleft(), settings)
            busy = [slot for slot in active if slot.playing is not None]
            if not busy:
                break
            responses = model.generate([slot.request for slot in busy], on_error="return")
            for slot, response in zip(busy, responses, strict=True):
                if response.error is not None and response.error.kind in FATAL:
                    raise RunError(
                        f"The model {model.name!r} does not answer: {response.error.message} "
                        f"{len(done)} of {len(items)} items are done; run again to go on."
                    )
                transcript = _go_on(slot, response)
                if transcript is None:
                    continue
                done[transcript.id] = transcript
                if file is not None and not may_pass(transcript):
                    file.append([transcript.to_dict()])
                if on_item is not None:
                    on_item(transcript)
    return [done[item.id] for item in items]


def may_pass(transcript: TurnsTranscript) -> bool:
    """Whether the item failed for a reason that may pass, so that it is worth asking again."""
    return transcript.error is not None and not transcript.error.startswith(_PERMANENT)


def read_transcripts(
    path: str | os.PathLike[str], head: dict[str, Any] | None = None
) -> dict[str, TurnsTranscript]:
    """Transcripts of a file by the items' ids; none where the file has no head yet.

    Args:
      head: that the file must have; None for any.

    Raises:
      RunError: another head, or a line that is no transcript. RecordingError: a damaged file.
    """
    found: dict[str, TurnsTranscript] = {}
    for index, (line, record) in enumerate(read_lines(path)):
        if index == 0:
            if "head" not in record:
                raise RunError(f"{path} is no file of multi-turn transcripts: line 1 has no head.")
            if head is not None and record["head"] != head:
                differ = _differences(record["head"], head)
                raise RunError(
                    f"{path} was written with other settings ({differ}); give another --out, or "
                    "the settings of the file."
                )
            continue
        try:
            transcript = TurnsTranscript.from_dict(record)
        except ValueError as error:
            raise RunError(f"{path}, line {line}: {error}") from error
        found[transcript.id] = transcript
    return found


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    flat = [
        {f"{part}.{key}": value for part in ("model", "settings") for key, value in h[part].items()}
        for h in (old, new)
    ]
    keys = [k for k in {**flat[0], **flat[1]} if flat[0].get(k) != flat[1].get(k)]
    return ", ".join(f"{k}: {flat[0].get(k)!r} there, {flat[1].get(k)!r} now" for k in keys)


def _begin(slot: _Active, item: MultiTurnItem, settings: RolloutSettings) -> None:
    slot.stack.close()
    slot.stack = contextlib.ExitStack()
    episode = slot.stack.enter_context(
        slot.sandbox.episode(
            item.involved_classes, item.initial_config, long_context=item.long_context
        )
    )
    slot.playing = play(item, episode, settings)
    slot.request = next(slot.playing)


def _go_on(slot: _Active, response: Any) -> TurnsTranscript | None:
    """Hands a response in; the transcript where it was the last."""
    try:
        slot.request = slot.playing.send(response)
        return None
    except StopIteration as end:
        slot.stack.close()
        slot.playing = slot.request = None
        return end.value
