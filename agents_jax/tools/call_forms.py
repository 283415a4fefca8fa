"""The marks that model families put around calls, and what the strict dialect refuses.

Hermes and Qwen: `<tool_call>{...}</tool_call>`, one element for each call. Mistral:
`[TOOL_CALLS] [{...}, ...]`, and since version 11 of its tokenizer `[TOOL_CALLS]name[ARGS]{...}` for
each call. Llama 3: `{"name": ..., "parameters": {...}}` after `<|python_tag|>` or alone, several
separated by `;`; or a Python call after the tag.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

from agents_jax.tools.literals import CallParseError, check_depth, read_json, read_python

Pairs = list[tuple[str, dict[str, Any]]]

_HERMES, _MISTRAL, _LLAMA = "<tool_call>", "[TOOL_CALLS]", "<|python_tag|>"
_ENDS = ("<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>", "</s>")
_FENCE = re.compile(r"^```[A-Za-z_]*[ \t]*\n?(.*?)\n?[ \t]*```$", re.DOTALL)
_ELEMENT = re.compile(r"<tool_call>(.*?)(?:</tool_call>|$)", re.DOTALL)
_CLOSED = re.compile(r"\s*<tool_call>(.*?)</tool_call>\s*", re.DOTALL)
# Possessive: nothing is tried twice, whatever the text.
_MISTRAL_NAME = re.compile(
    r"\s*+([\w.-]++)\s*+(?:\[CALL_ID\]\s*+\w++\s*+)?+(?:\[ARGS\]\s*+)?+(?=\{)"
)
_CALLS_FIRST = re.compile(r"[\[{]|[\w.]+\(")
_JSON_FIRST = re.compile(r"\{|\[\s*\{")
_TOLERANT, _STRICT = ";,", ";"  # what may stand between JSON calls
_DECODER = json.JSONDecoder()


def read_any(text: str) -> Pairs:
    """(name, arguments) of the calls in a text of any known form, in code fences or not.

    Raises:
      CallParseError: see `parse_calls`.
    """
    for end in _ENDS:
        text = text.rstrip().removesuffix(end)
    text = _unfence(text)
    if not text:
        raise CallParseError("the text is empty")
    if _HERMES in text:
        return [pair for part in _ELEMENT.findall(text) for pair in read_json(_unfence(part))]
    # A string argument may hold a mark; a text that begins as a call is read as one.
    for mark, read in ((_MISTRAL, _mistral), (_LLAMA, _llama)):
        if text.startswith(mark) or (mark in text and not _CALLS_FIRST.match(text)):
            return read(text[text.index(mark) :], strict=False)
    if _JSON_FIRST.match(text):
        return [pair for part in _objects(text, _TOLERANT) for pair in read_json(part)]
    return read_python(text, strict=True)


def read_strict(text: str) -> Pairs:
    """(name, arguments) of a text that is nothing but calls in one of the forms.

    No code fences, text around, missing brackets or closing tags; Python values are literals (no
    bare words, arithmetic or nested calls); JSON objects have exactly 'name' and 'arguments' (or
    'parameters'), an object, and no key twice.

    Raises:
      CallParseError: anything else.
    """
    text = text.strip()
    if text.startswith(_HERMES):
        parts, end = [], 0
        while end < len(text):
            element = _CLOSED.match(text, end)
            if element is None:
                raise CallParseError(
                    "text stands beside <tool_call> elements, or one is not closed"
                )
            parts.append(element.group(1))
            end = element.end()
        return [_exact_object(part) for part in parts]
    if text.startswith(_MISTRAL):
        return _mistral(text, strict=True)
    if text.startswith(_LLAMA):
        return _llama(text, strict=True)
    if re.match(r"\[\s*\{", text):
        return _exact_list(text)
    if text.startswith("{"):
        return [_exact_object(part) for part in _objects(text, _STRICT)]
    if not text.startswith("["):
        raise CallParseError("the text does not begin as a list of calls")
    return _exact_python(text)


def _mistral(text: str, *, strict: bool) -> Pairs:
    check_depth(text)
    pairs: Pairs = []
    at = 0
    while True:
        at += len(_MISTRAL)
        name = _MISTRAL_NAME.match(text, at)
        if name is not None:
            part, end = _value(text, name.end())
            pairs.append((name.group(1), _arguments(name.group(1), part, strict)))
        else:
            part, end = _value(text, at)
            pairs += _exact_list(part) if strict else read_json(part)
        at = text.find(_MISTRAL, end)
        between = text[end:] if at < 0 else text[end:at]
        if strict and between.strip():
            raise CallParseError("text stands beside the calls")
        if at < 0:
            return pairs


def _llama(text: str, *, strict: bool) -> Pairs:
    text = text.removeprefix(_LLAMA).strip()
    if not text:
        raise CallParseError(f"nothing stands after {_LLAMA}")
    if not _JSON_FIRST.match(text):
        return _exact_python(f"[{text}]") if strict else read_python(text, strict=True)
    if strict:
        return [_exact_object(part) for part in _objects(text, _STRICT)]
    return [pair for part in _objects(text, _TOLERANT) for pair in read_json(part)]


def _objects(text: str, separators: str) -> Iterator[str]:
    """The JSON values of a text, one after another, with white space and a separator between."""
    check_depth(text)
    at = 0
    while True:
        part, end = _value(text, at)
        yield part
        at = _skip_space(text, end)
        if at == len(text):
            return
        if text[at] in separators:
            at = _skip_space(text, at + 1)
            if at == len(text) and separators != _STRICT:
                return
        if not text.startswith("{", at):
            raise CallParseError(f"not JSON: text stands after the value: {text[at : at + 40]!r}")


def _value(text: str, at: int) -> tuple[str, int]:
    """The text of the JSON value that begins at a place, and where it ends; not judged yet."""
    at = _skip_space(text, at)
    try:
        _, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise CallParseError(f"not JSON: {error}") from None
    return text[at:end], end


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _arguments(name: str, text: str, strict: bool) -> dict[str, Any]:
    call = f'{{"name": {json.dumps(name)}, "arguments": {text}}}'
    ((_, arguments),) = [_exact_object(call)] if strict else read_json(call)
    return arguments


def _exact_list(text: str) -> Pairs:
    pairs = read_json(text)
    value = _no_key_twice(text)
    if not isinstance(value, list):
        raise CallParseError("the value is not a list of calls")
    for call in value:
        _check_keys(call)
    return pairs


def _exact_object(text: str) -> tuple[str, dict[str, Any]]:
    pairs = read_json(text)
    _check_keys(_no_key_twice(text))
    return pairs[0]


def _check_keys(call: Any) -> None:
    if not isinstance(call, dict):
        raise CallParseError("a call is not one JSON object")
    keys = set(call)
    if keys != {"name", "arguments"} and keys != {"name", "parameters"}:
        raise CallParseError(
            f"a call has the keys {', '.join(sorted(keys))[:200]}; needed are name and arguments "
            "(or parameters)"
        )
    if not isinstance(call.get("arguments", call.get("parameters")), dict):
        raise CallParseError("the arguments of a call are not an object")


def _no_key_twice(text: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise CallParseError("an object has a key twice")
        return found

    return json.loads(text, object_pairs_hook=build)


def _exact_python(text: str) -> Pairs:
    pairs = read_python(text, strict=True)  # also bounds the text for what follows
    body = ast.parse(text, mode="eval").body
    if not isinstance(body, ast.List):
        raise CallParseError("the calls do not stand in one pair of brackets")
    for call in body.elts:
        for argument in call.keywords:
            _check_literal(argument.value)
    return pairs


def _check_literal(value: ast.expr) -> None:
    for node in ast.walk(value):
        if isinstance(node, ast.UnaryOp):
            fine = isinstance(node.op, (ast.USub, ast.UAdd)) and isinstance(
                node.operand, ast.Constant
            )
        elif isinstance(node, ast.Constant):
            fine = node.value is not Ellipsis
        else:
            fine = isinstance(node, (ast.List, ast.Tuple, ast.Dict, ast.expr_context, ast.unaryop))
        if not fine:
            raise CallParseError(f"a {type(node).__name__} is not a literal value")


def _unfence(text: str) -> str:
    """The text without surrounding blanks, backticks and a code fence with its language."""
    text = text.strip()
    fenced = _FENCE.match(text)
    return (fenced.group(1) if fenced else text).strip("`").strip()
