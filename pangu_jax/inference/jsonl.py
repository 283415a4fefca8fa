"""Prompts in and completions out as JSON lines, for runs that may be interrupted and repeated.

A line of prompts: {"prompt": text} or {"messages": [{"role": ..., "content": ...}, ...]}, with an
optional "id" (otherwise the line's number), fields of `SamplingParams`, and "adapters" (weights by
name). A line of answers: id, text, finish_reason, usage, request_sha256, and logprobs and
prompt_logprobs where they were asked for. Answers come in the order in which they were finished.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pangu_jax.inference.errors import RequestError
from pangu_jax.inference.request import Completion, Grammar, SamplingParams, TokenLogprob

_SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)}
_NO_DEFAULTS = SamplingParams()
_FIELDS = ("id", "prompt", "messages", "adapters", *sorted(_SAMPLING))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptLine:
    """One line of prompts; exactly one of prompt and messages is set.

    line: its number in the file, from 1. sampling: the line's own fields over the defaults.
    """

    id: str
    line: int
    prompt: str | None = None
    messages: tuple[dict[str, Any], ...] | None = None
    sampling: SamplingParams = SamplingParams()
    adapters: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Answered:
    """What a run did. kept: answers found in the file. new: answers written.

    failed: (id, reason) of prompts without an answer; the next run asks them again.
    """

    kept: int
    new: int
    failed: tuple[tuple[str, str], ...] = ()


_BEGINNING = b'{"id": '  # of every answer that is written here

Answer = Callable[[list[PromptLine]], Iterable[Completion]]


def read_prompts(
    path: str | os.PathLike, defaults: SamplingParams = _NO_DEFAULTS
) -> list[PromptLine]:
    """All lines of a prompts file; empty lines are skipped.

    Raises:
      RequestError: no such file, or a line that is not as described above; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise RequestError(f"There is no file {path} with prompts.")
    prompts, seen = [], {}
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        if not raw.strip():
            continue
        where = f"{path}, line {number}"
        prompt = _prompt(_object(raw, where), number, defaults, where)
        if prompt.id in seen:
            raise RequestError(
                f"{where}: the id {prompt.id!r} stands on line {seen[prompt.id]} already; every "
                "line needs an id of its own (without one, its line number is its id)."
            )
        seen[prompt.id] = number
        prompts.append(prompt)
    return prompts


def answer_file(
    prompts_path: str | os.PathLike,
    answers_path: str | os.PathLike,
    answer: Answer,
    *,
    defaults: SamplingParams = _NO_DEFAULTS,
    settings: Mapping[str, Any] | None = None,
    token_text: Callable[[int], str] | None = None,
) -> Answered:
    """Answers every prompt that the answers file does not answer yet, appending to it.

    Args:
      answer: takes the prompts that are open and yields their completions in any order. One with
        finish_reason 'error' or 'cancelled' is no answer: it is reported and not written.
      settings: whatever else an answer depends on, as JSON values: the model's name, its dtype.
      token_text: text of a token id, for log-probabilities.

    Raises:
      RequestError: a bad prompts file (before anything is asked), an answers file that is none, or
        one whose answers were given to other prompts, sampling or settings.
    """
    prompts_path, answers_path = Path(prompts_path), Path(answers_path)
    prompts = read_prompts(prompts_path, defaults)
    if answers_path.exists() and answers_path.samefile(prompts_path):
        raise RequestError(f"Prompts and answers are the same file {prompts_path}; name another.")
    hashes = {prompt.id: _digest(prompt, settings or {}) for prompt in prompts}
    answers_path.parent.mkdir(parents=True, exist_ok=True)
    done = _repair_and_read(answers_path)
    for prompt in prompts:
        if prompt.id in done and done[prompt.id] != hashes[prompt.id]:
            raise RequestError(
                f"{prompts_path}, line {prompt.line}: the prompt with id {prompt.id!r}, its "
                f"sampling or the model is not the one that {answers_path} answers. Write to "
                "another answers file, give the new prompt another id, or delete the old answer."
            )
    todo = {prompt.id: prompt for prompt in prompts if prompt.id not in done}
    kept, failed, new = len(prompts) - len(todo), [], 0
    if not todo:
        return Answered(kept, 0)
    with answers_path.open("a", encoding="utf-8", newline="\n") as file:
        for completion in answer(list(todo.values())):
            if completion.id not in todo:
                raise RuntimeError(f"answered {completion.id!r}, which is not open (any more)")
            prompt = todo.pop(completion.id)
            if completion.finish_reason in ("error", "cancelled"):
                failed.append((prompt.id, completion.error or completion.finish_reason))
                continue
            row = _row(completion, prompt, hashes[prompt.id], token_text)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()  # an interrupted run keeps every finished answer
            new += 1
    failed += [(name, "no answer came") for name in todo]
    return Answered(kept, new, tuple(failed))


def _object(raw: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError(f"{where} is not UTF-8 (byte {error.start}).") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"{where} is not JSON: {error.msg} at column {error.colno}.") from error
    except RecursionError as error:
        raise RequestError(f"{where} is nested too deeply.") from error
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where} holds half of a surrogate pair, which is no text.") from error
    if not isinstance(value, dict):
        raise RequestError(f'{where}: {_show(value)} is not an object; write {{"prompt": text}}.')
    return value


def _prompt(value: dict[str, Any], number: int, defaults: SamplingParams, where: str) -> PromptLine:
    for name in value:
        if name not in _FIELDS:
            close = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.6)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise RequestError(
                f"{where}: the field {name!r} is unknown{hint}; allowed: {', '.join(_FIELDS)}."
            )
    if ("prompt" in value) == ("messages" in value):
        raise RequestError(f"{where}: exactly one of 'prompt' and 'messages' is needed.")
    name = value.get("id", str(number))
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise _bad(where, "id", name, "a text or an integer")
    prompt = value.get("prompt")
    if "prompt" in value and (not isinstance(prompt, str) or not prompt):
        raise _bad(where, "prompt", prompt, "a text of at least one character")
    messages = _messages(value["messages"], where) if "messages" in value else None
    return PromptLine(
        id=str(name),
        line=number,
        prompt=prompt,
        messages=messages,
        sampling=_sampling({k: v for k, v in value.items() if k in _SAMPLING}, defaults, where),
        adapters=_adapters(value.get("adapters", {}), where),
    )


def _messages(messages: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(messages, list) or not messages:
        raise _bad(where, "messages", messages, "a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _bad(where, f"messages[{index}]", message, "an object with 'role' and 'content'")
        content = message.get("content")
        # An assistant's message may consist of calls of tools alone.
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            raise _bad(where, f"messages[{index}].content", content, "a text")
    return tuple(messages)


def _adapters(adapters: Any, where: str) -> tuple[tuple[str, float], ...]:
    if not isinstance(adapters, dict) or not all(map(_is_number, adapters.values())):
        raise _bad(where, "adapters", adapters, "an object of weights by adapter name")
    return tuple((name, float(weight)) for name, weight in adapters.items())


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


_INT = ("an integer", _is_int)
_INT_OR_NULL = ("an integer or null", lambda value: value is None or _is_int(value))
_NUMBER = ("a number", _is_number)
_TYPES = {
    "max_tokens": _INT_OR_NULL,
    "temperature": _NUMBER,
    "top_k": _INT,
    "top_p": _NUMBER,
    "min_p": _NUMBER,
    "repetition_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "frequency_penalty": _NUMBER,
    "seed": _INT,
    "stop": ("a list of texts", _list_of(lambda value: isinstance(value, str))),
    "stop_token_ids": ("a list of integers", _list_of(_is_int)),
    "ignore_eos": ("true or false", lambda value: isinstance(value, bool)),
    "logprobs": _INT_OR_NULL,
    "prompt_logprobs_from": _INT_OR_NULL,
}


def _sampling(fields: dict[str, Any], defaults: SamplingParams, where: str) -> SamplingParams:
    changes = {}
    for name, value in fields.items():
        if name == "grammar":
            changes[name] = _grammar(value, where)
            continue
        if name == "stop" and isinstance(value, str):
            value = [value]  # as in the OpenAI protocol
        allowed, fits = _TYPES[name]
        if not fits(value):
            raise _bad(where, name, value, allowed)
        if _TYPES[name] is _NUMBER:
            value = float(value)  # 1 and 1.0 are one request
        changes[name] = tuple(value) if isinstance(value, list) else value
    try:
        return dataclasses.replace(defaults, **changes)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def _grammar(value: Any, where: str) -> Grammar | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != {"kind", "source"}:
        raise _bad(where, "grammar", value, "null or an object with 'kind' and 'source'")
    kind, source = value["kind"], value["source"]
    if kind == "json_schema" and isinstance(source, dict | bool):
        source = json.dumps(source, ensure_ascii=False)
    if not isinstance(kind, str) or not isinstance(source, str):
        raise _bad(where, "grammar", value, "texts (of a json_schema also the schema itself)")
    try:
        return Grammar(kind=kind, source=source)
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error


def _digest(prompt: PromptLine, settings: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all that the answer depends on; not of the id and the line number."""
    plain = dataclasses.asdict(_NO_DEFAULTS)
    value = dataclasses.asdict(prompt) | {"settings": dict(settings)}
    del value["id"], value["line"]
    # Fields at their defaults are left out, so that a new field makes no old answer stale.
    value["sampling"] = {k: v for k, v in value["sampling"].items() if v != plain[k]}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _repair_and_read(path: Path) -> dict[str, str]:
    """Hash by id of the answers there are; cuts a last line off that was not written to its end."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    lines = content.split(b"\n")
    last = lines.pop()
    done = dict(
        _answer(raw, f"{path}, line {number}") for number, raw in enumerate(lines, 1) if raw.strip()
    )
    if not last:
        return done
    where = f"{path}, line {len(lines) + 1}"
    try:
        done.update([_answer(last, where)])
    except RequestError:
        # Torn by an interruption: the beginning of an answer, or zeros from a loss of power.
        if not (_BEGINNING.startswith(last[: len(_BEGINNING)]) or not last.strip(b"\0")):
            raise
        os.truncate(path, len(content) - len(last))
    else:
        with path.open("ab") as file:
            file.write(b"\n")
    return done


def _answer(raw: bytes, where: str) -> tuple[str, str]:
    row = _object(raw, where)
    if not isinstance(row.get("id"), str) or not isinstance(row.get("request_sha256"), str):
        raise RequestError(
            f"{where} is no answer (it lacks 'id' or 'request_sha256'); name another file for the "
            "answers."
        )
    return row["id"], row["request_sha256"]


def _row(completion: Completion, prompt: PromptLine, digest: str, token_text) -> dict[str, Any]:
    row = {
        "id": prompt.id,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "usage": {
            "prompt_tokens": completion.prompt_tokens,
            "completion_tokens": len(completion.token_ids),
            "cached_tokens": completion.cached_tokens,
        },
        "request_sha256": digest,
    }
    if completion.stop_text is not None:
        row["stop_text"] = completion.stop_text
    if prompt.sampling.logprobs is not None:
        row["logprobs"] = list(_logprobs(completion.logprobs, token_text))
    if prompt.sampling.prompt_logprobs_from is not None:
        row["prompt_logprobs"] = list(_logprobs(completion.prompt_logprobs, token_text))
    return row


def _logprobs(logprobs: Sequence[TokenLogprob], token_text) -> Iterator[dict[str, Any]]:
    def entry(token_id, logprob):
        text = {} if token_text is None else {"token": token_text(token_id)}
        logprob = float(logprob) if math.isfinite(logprob) else None  # JSON has no -Infinity
        return {"token_id": int(token_id), **text, "logprob": logprob}

    for found in logprobs:
        row = entry(found.token_id, found.logprob)
        yield {**row, "top": [entry(*one) for one in found.top]} if found.top else row


def _bad(where: str, field: str, value: Any, allowed: str) -> RequestError:
    return RequestError(f"{where}: {field}={_show(value)} is not allowed; {allowed}.")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:120] + "…"
