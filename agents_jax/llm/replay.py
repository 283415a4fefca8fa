"""Answers kept in a file and found again by what was asked.

Each sample of a request is a line of its own under a hash of (identity of the model, content of the
request, number of the sample), and is on the disk before anybody is told of it. So a run that was
killed asks only what is missing when it is started again, and tests run without a model.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from agents_jax.llm.call_log import Transcript
from agents_jax.llm.capabilities import CAPABILITIES, Capabilities, require
from agents_jax.llm.differences import nearest_difference
from agents_jax.llm.errors import (
    BatchError,
    InvalidRequest,
    RecordingError,
    ReplayMiss,
)
from agents_jax.llm.hashing import canonical, plain, request_key
from agents_jax.llm.interface import BaseModel, LanguageModel, merge
from agents_jax.llm.jsonl import JsonLines, read_lines
from agents_jax.llm.records import from_json, to_json
from agents_jax.llm.requests import GenerateRequest, ScoreRequest
from agents_jax.llm.results import Failure, HiddenStates, Response, Scores, Usage

_log = logging.getLogger(__name__)
Mode = Literal["record", "replay"]


class RecordedModel(BaseModel):
    """A model whose answers are kept in a file.

    Args:
      path: the recording; JSON lines.
      model: who answers what the recording lacks. In mode 'replay' it is never asked and may be
        left out; the recording then says what the model was.
      mode: 'record' asks `model` for what is missing; 'replay' raises ReplayMiss for it.
      select: in mode 'replay' without `model`: its name, where the recording holds several.
      transcript: where answers found in the recording are noted (fresh ones are noted by `model`).

    Raises:
      RecordingError: the file is damaged, in use by another writer, or names no (single) model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: LanguageModel | None = None,
        *,
        mode: Mode = "record",
        select: str | None = None,
        transcript: Transcript | None = None,
    ):
        if mode not in ("record", "replay"):
            raise InvalidRequest(f"mode={mode!r} is unknown; allowed: record, replay.")
        if mode == "record" and model is None:
            raise InvalidRequest("mode='record' needs a model to ask; 'replay' does not.")
        self.path = pathlib.Path(path)
        self.mode = mode
        self.inner = model
        # The lock comes first: what another writer adds after our reading would be asked twice.
        self._file = JsonLines(self.path) if mode == "record" else None
        try:
            self._answers, models = _load(self.path)
            if model is not None:
                name, identity = model.name, plain(model.identity)
                capabilities = model.capabilities
            else:
                name, identity, capabilities = _the_model(self.path, models, select)
            super().__init__(name, capabilities, identity=identity, transcript=transcript)
            if self._file is not None and canonical(identity) not in models:
                self._file.append([_header(identity, capabilities)])
        except BaseException:
            if self._file is not None:
                self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._answers)

    def close(self) -> None:
        """Closes the recording and the model."""
        if self._file is not None:
            self._file.close()
        if self.inner is not None:
            self.inner.close()
        super().close()

    def missing(self, requests: Sequence[Any]) -> int:
        """How many answers (samples) to `requests` the recording lacks."""
        keys = {self._key(part) for request in requests for part in _singles(request)}
        return len(keys - self._answers.keys())

    def _key(self, part) -> str:
        return request_key(self.identity, part.content())

    async def _batch(self, requests, on_error, on_answer, wanted):
        if on_error not in ("raise", "return"):
            raise InvalidRequest(f"on_error={on_error!r} is unknown; allowed: raise, return.")
        requests = list(requests)
        for index, request in enumerate(requests):
            if not isinstance(request, wanted):
                raise InvalidRequest(
                    f"requests[{index}] is a {type(request).__name__}; {wanted.__name__} is needed."
                )
            require(self.name, self.capabilities, request.needs(), f"requests[{index}]")
        singles = [_singles(request) for request in requests]
        keys = [[self._key(part) for part in parts] for parts in singles]
        missing: dict[str, Any] = {}
        for parts, own in zip(singles, keys, strict=True):
            for part, key in zip(parts, own, strict=True):
                if key not in self._answers:
                    missing.setdefault(key, part)
                elif on_answer is not None:
                    on_answer(part, self._result(key, True))
        failures: dict[str, Any] = {}
        cause: BaseException | None = None
        if missing and self.mode == "replay":
            miss = ReplayMiss(self._explain(next(iter(missing.values())), len(missing)))
            if on_error == "raise":
                raise miss
            empty = _EMPTY[wanted.kind]
            failures = {
                key: empty(
                    error=Failure("not_recorded", self._explain(part, 1), 0), model=self.name
                )
                for key, part in missing.items()
            }
        elif missing:
            failures, cause = await self._ask(list(missing.values()), on_error, on_answer, wanted)
        results = []
        for parts, own in zip(singles, keys, strict=True):
            pieces = []
            for part, key in zip(parts, own, strict=True):
                if key in self._answers:
                    piece = self._result(key, key not in missing)
                    if piece.cached and self.transcript is not None:
                        self.transcript.write(self, part, piece)
                else:
                    piece = failures[key]
                pieces.append(piece)
            results.append(merge(pieces))
        if on_error == "raise" and any(result.error for result in results):
            raise BatchError(results) from cause
        return results

    async def _ask(self, parts, on_error, on_answer, wanted) -> tuple[dict[str, Any], Any]:
        """Asks, records what is answered, and returns the failures by key and what caused them."""
        asked = _runs(parts, self.inner)

        def record(part, result):
            for single, piece in _split(part, result):
                self._record(single, piece)
                if on_answer is not None:
                    on_answer(single, self._result(self._key(single), False))

        method = {"generate": self.inner.agenerate, "score": self.inner.ascore}.get(
            wanted.kind, self.inner.ahidden_states
        )
        cause = None
        try:
            results = await method(asked, on_error=on_error, on_answer=record)
        except BatchError as error:
            results, cause = error.results, error.__cause__
        failures = {}
        for part, result in zip(asked, results, strict=True):
            if result.error is not None:
                bare = (
                    dataclasses.replace(result, choices=()) if part.kind == "generate" else result
                )
                failures |= {self._key(single): bare for single in _singles(part)}
        return failures, cause

    def _record(self, part, result) -> None:
        key = self._key(part)
        if key in self._answers:
            return  # another batch was faster; its answer stands
        answer = to_json(result)
        line = {
            "kind": "answer",
            "key": key,
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "tag": part.tag,
            "model": plain(self.identity),
            "request": part.content(),
            "answer": answer,
        }
        self._file.append([line])
        self._answers[key] = answer

    def _result(self, key: str, cached: bool):
        return dataclasses.replace(from_json(self._answers[key]), cached=cached)

    def _explain(self, part, count: int) -> str:
        content = part.content()
        hint = nearest_difference(
            {"model": plain(self.identity), "request": content},
            (
                {"model": record["model"], "request": record["request"]}
                for _, record in read_lines(self.path)
                if record.get("kind") == "answer"
            ),
        )
        return (
            f"{self.path} has no answer to {count} of the requests, the first with hash "
            f"{self._key(part)[:12]}. {hint} Record it with mode='record'."
        )


_EMPTY = {"generate": Response, "score": Scores, "hidden_states": HiddenStates}


def _singles(request) -> list[Any]:
    """The request's samples, each as a request of its own."""
    if not isinstance(request, GenerateRequest) or request.n == 1:
        return [request]
    return [dataclasses.replace(request, n=1, sample=request.sample + i) for i in range(request.n)]


def _runs(parts: list[Any], model: LanguageModel) -> list[Any]:
    """The parts, with neighbouring samples of a request joined where `model` asks them together."""
    joined: list[Any] = []
    for part in parts:
        last = joined[-1] if joined else None
        if (
            isinstance(part, GenerateRequest)
            and last is not None
            and part.sample == last.sample + last.n
            and dataclasses.replace(part, sample=last.sample) == last
        ):
            longer = dataclasses.replace(last, n=last.n + 1)
            if model.samples_together(longer):
                joined[-1] = longer
                continue
        joined.append(part)
    return joined


def _split(part, result) -> list[tuple[Any, Any]]:
    """(part of one sample, its result); what the call used goes with the first."""
    if isinstance(part, ScoreRequest) or not isinstance(part, GenerateRequest):
        return [(part, result)]
    pieces = []
    for index, choice in enumerate(result.choices):
        single = dataclasses.replace(part, n=1, sample=choice.sample)
        piece = dataclasses.replace(result, choices=(choice,), error=None)
        if index:
            piece = dataclasses.replace(piece, usage=Usage(), attempts=())
        pieces.append((single, piece))
    return pieces


def _header(identity, capabilities: Capabilities) -> dict[str, Any]:
    return {
        "kind": "model",
        "identity": identity,
        "capabilities": sorted(capabilities.names),
        "max_context": capabilities.max_context,
    }


def _load(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Mapping[str, Any]]]:
    """Answers by key, and headers of models by the canonical text of their identity."""
    answers: dict[str, Any] = {}
    models: dict[str, Mapping[str, Any]] = {}
    for number, record in read_lines(path):
        try:
            if record["kind"] == "model":
                models[canonical(record["identity"])] = record
                continue
            key = request_key(record["model"], record["request"])
            if record["kind"] != "answer" or key != record["key"]:
                raise ValueError("its key is not the hash of its request")
            from_json(record["answer"])
        except (KeyError, TypeError, ValueError) as error:
            raise RecordingError(
                f"{path}, line {number} is no line of a recording: {error!r}. Remove the line; "
                "what it answered is asked again."
            ) from error
        answers.setdefault(key, record["answer"])
    return answers, models


def _the_model(path, models, select) -> tuple[str, Mapping[str, Any], Capabilities]:
    """Name, identity and capabilities of the one model that a recording holds."""
    named = [(str(header["identity"].get("model", "?")), header) for header in models.values()]
    fitting = [pair for pair in named if select is None or pair[0] == select]
    if len(fitting) != 1:
        known = ", ".join(repr(name) for name, _ in named) or "none"
        wanted = "one model" if select is None else f"one model named {select!r}"
        raise RecordingError(
            f"{path} does not hold {wanted}; it holds: {known}. Name it (replay:FILE#MODEL), or "
            "give the model itself."
        )
    name, header = fitting[0]
    known = set(header.get("capabilities", ())) & set(CAPABILITIES)
    return name, header["identity"], Capabilities(frozenset(known), header.get("max_context"))
