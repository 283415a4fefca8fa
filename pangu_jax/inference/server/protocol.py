"""Bodies of the OpenAI protocol as requests to the engine.

Field names, defaults and meanings: the OpenAI API reference of chat completions and completions;
extensions carry the names that vLLM gave them.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import time
import uuid
from collections.abc import Sequence
from typing import Any

from pangu_jax.inference import Grammar, Request, RequestError, SamplingParams
from pangu_jax.inference.chat_protocol.errors import ApiError
from pangu_jax.inference.chat_protocol.fields import LARGEST, Fields, kind_of
from pangu_jax.inference.chat_protocol.messages import encode, read_messages, render_messages
from pangu_jax.inference.chat_protocol.tokens import TokenTexts
from pangu_jax.inference.chat_protocol.tools import Tools, call_schema, either_schema, read_tools
from pangu_jax.inference.request import MAX_LOGPROBS
from pangu_jax.inference.server.limits import Limits
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_BOTH = (
    "model", "stream", "stream_options", "n", "seed", "stop", "max_tokens", "temperature", "top_p",
    "presence_penalty", "frequency_penalty", "logprobs", "response_format",
)  # fmt: skip
_EXTENSIONS = (
    "top_k", "min_p", "repetition_penalty", "ignore_eos", "stop_token_ids", "adapters",
    "guided_regex", "guided_json",
)  # fmt: skip
CHAT_FIELDS = (
    "messages", *_BOTH, "max_completion_tokens", "top_logprobs", "tools", "tool_choice",
    "parallel_tool_calls", *_EXTENSIONS,
)  # fmt: skip
COMPLETION_FIELDS = ("prompt", *_BOTH, "echo", "best_of", *_EXTENSIONS)
IGNORED_FIELDS = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
)  # fmt: skip
_UNSUPPORTED = "this server does not support it; leave it out."
REFUSED_FIELDS = {
    "logit_bias": _UNSUPPORTED,
    "suffix": _UNSUPPORTED,
    "audio": _UNSUPPORTED,
    "modalities": "this server writes text only; leave it out.",
    "prediction": _UNSUPPORTED,
    "reasoning_effort": _UNSUPPORTED,
    "verbosity": _UNSUPPORTED,
    "web_search_options": _UNSUPPORTED,
    "functions": "the older form of tools is not read; use tools.",
    "function_call": "the older form of tool_choice is not read; use tool_choice.",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Served:
    """What is served: the model's name, its tokenizer, its adapters by name, and the limits."""

    model: str
    context_length: int
    loaded: LoadedTokenizer
    texts: TokenTexts
    adapters: tuple[str, ...]
    limits: Limits
    created: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """A request of a client, ready for the engine.

    requests: one for each choice, prompt after prompt, n for each. prompts: text and token ids.
    top_logprobs: None for none. echo: the reply begins with the prompt.
    """

    id: str
    created: int
    model: str
    requests: tuple[Request, ...]
    prompts: tuple[tuple[str, tuple[int, ...]], ...]
    n: int
    stream: bool
    include_usage: bool
    top_logprobs: int | None
    echo: bool = False
    tools: Tools = Tools()


def read_chat(body: Any, served: Served) -> Call:
    """A body of /v1/chat/completions.

    Raises:
      ApiError: what cannot be served, naming the field.
    """
    fields = Fields(body)
    fields.only(CHAT_FIELDS, ignored=IGNORED_FIELDS, refused=REFUSED_FIELDS)
    model, adapters = _read_model(fields, served)
    tools = read_tools(fields)
    messages = read_messages(fields)
    most = _read_most(fields)
    grammar = _read_grammar(fields, tools)
    top = None
    if fields.boolean("logprobs"):
        top = fields.integer("top_logprobs", 0, high=MAX_LOGPROBS)
    elif fields.get("top_logprobs") is not None:
        raise fields.fail("top_logprobs", "needs logprobs: true.")
    text, ids = render_messages(served.loaded, messages, tools)
    return _call(
        fields,
        served,
        "chatcmpl",
        model,
        adapters,
        prompts=[(text, ids)],
        sampling={"max_tokens": most, "logprobs": top, "grammar": grammar},
        tools=tools,
    )


def read_completion(body: Any, served: Served) -> Call:
    """A body of /v1/completions; arguments and errors as `read_chat`."""
    fields = Fields(body)
    fields.only(COMPLETION_FIELDS, ignored=IGNORED_FIELDS, refused=REFUSED_FIELDS)
    model, adapters = _read_model(fields, served)
    if fields.integer("best_of", 1) != 1:
        raise fields.fail("best_of", "this server does not rank completions; use n.")
    top = fields.integer("logprobs", high=MAX_LOGPROBS)
    echo = fields.boolean("echo")
    stream = fields.boolean("stream")
    if echo and stream and top is not None:
        raise fields.fail("echo", "with logprobs it is served only without stream.")
    sampling = {
        "max_tokens": fields.integer("max_tokens", 16, low=0 if echo else 1),
        "logprobs": top,
        "grammar": _read_grammar(fields, Tools()),
        "prompt_logprobs_from": 1 if echo and top is not None else None,
    }
    prompts = _read_prompts(fields, served)
    return _call(fields, served, "cmpl", model, adapters, prompts, sampling, echo=echo)


def _call(fields, served, kind, model, adapters, prompts, sampling, *, echo=False, tools=None):
    n = fields.integer("n", 1, low=1, high=served.limits.choices)
    if n * len(prompts) > served.limits.choices:
        raise fields.fail(
            "n",
            f"{len(prompts)} prompts times n={n} are {n * len(prompts)} completions; "
            f"at most {served.limits.choices} are taken in one request.",
        )
    for index, (_, ids) in enumerate(prompts):
        which = f" (prompt {index})" if len(prompts) > 1 else ""
        _check_length(len(ids), sampling["max_tokens"], served.context_length, which, kind)
    base = _read_sampling(fields, served, sampling)
    stream = fields.boolean("stream")
    options = fields.object("stream_options")
    if options is not None:
        if not stream:
            raise fields.fail("stream_options", "needs stream: true.")
        options.only(("include_usage", "include_obfuscation"))
    name = f"{kind}-{uuid.uuid4().hex}"
    requests = [
        Request(
            id=f"{name}-{index}",
            prompt_ids=tuple(prompts[index // n][1]),
            sampling=dataclasses.replace(base, seed=(base.seed + index) % 2**31),
            adapters=adapters,
        )
        for index in range(n * len(prompts))
    ]
    return Call(
        id=name,
        created=int(time.time()),
        model=model,
        requests=tuple(requests),
        prompts=tuple((text, tuple(ids)) for text, ids in prompts),
        n=n,
        stream=stream,
        include_usage=options is not None and options.boolean("include_usage"),
        top_logprobs=sampling["logprobs"],
        echo=echo,
        tools=tools or Tools(),
    )


def _read_model(fields: Fields, served: Served) -> tuple[str, tuple[tuple[str, float], ...]]:
    """The name in replies, and the weights of adapters."""
    model = fields.text("model", served.model)
    if model != served.model and model not in served.adapters:
        raise unknown_model(model, served)
    own = fields.object("adapters")
    if own is None:
        return model, (((model, 1.0),) if model != served.model else ())
    if model != served.model:
        raise fields.fail("adapters", f"model={model!r} names an adapter already; give one.")
    for name in own.values:
        if name not in served.adapters:
            known = ", ".join(served.adapters) or "none"
            raise own.fail(name, f"unknown adapter; known: {known}.")
    weights = ((n, own.number(n, 0.0, low=-1e6, high=1e6)) for n in own.values)
    return model, tuple(weights)


def unknown_model(model: str, served: Served) -> ApiError:
    """404 with the names that are there."""
    names = ", ".join((served.model, *served.adapters))
    return ApiError(
        f"The model {model[:200]!r} does not exist; served are: {names}.",
        status=404,
        param="model",
        code="model_not_found",
    )


def _read_most(fields: Fields) -> int | None:
    newer, older = (fields.integer(name, low=1) for name in ("max_completion_tokens", "max_tokens"))
    if None not in (newer, older) and newer != older:
        raise fields.fail(
            "max_tokens", f"{older} differs from max_completion_tokens={newer}; give one of them."
        )
    return older if newer is None else newer


def _check_length(prompt: int, most: int | None, context: int, which: str, kind: str) -> None:
    name = "messages" if kind == "chatcmpl" else "prompt"
    if prompt + (1 if most is None else most) <= context:
        return
    asked = "" if most is None else f" and {most} new ones are asked for"
    raise ApiError(
        f"The context of this model is {context} tokens; the {name}{which} take {prompt}{asked}, "
        f"{prompt + (1 if most is None else most)} together at least. Shorten the {name} or lower "
        "max_tokens.",
        param=name,
        code="context_length_exceeded",
    )


def _read_sampling(fields: Fields, served: Served, given: dict[str, Any]) -> SamplingParams:
    largest = float(LARGEST)
    end_ids = fields.array("stop_token_ids") or []
    for item in end_ids:
        _check_token(fields, "stop_token_ids", item, served)
    seed = fields.integer("seed", low=-(2**63), high=2**63 - 1)
    try:
        return SamplingParams(
            **given,
            temperature=fields.number("temperature", 1.0, low=0, high=largest),
            # More than all tokens is all tokens.
            top_k=min(max(fields.integer("top_k", 0, low=-1), 0), served.texts.size),
            top_p=fields.number("top_p", 1.0, low=0, high=1),
            min_p=fields.number("min_p", 0.0, low=0, high=1),
            repetition_penalty=fields.number("repetition_penalty", 1.0, low=0, high=largest),
            presence_penalty=fields.number("presence_penalty", 0.0, low=-2, high=2),
            frequency_penalty=fields.number("frequency_penalty", 0.0, low=-2, high=2),
            seed=secrets.randbelow(2**31) if seed is None else seed % 2**31,
            stop=fields.strings("stop", most=served.limits.stop),
            stop_token_ids=tuple(end_ids),
            ignore_eos=fields.boolean("ignore_eos"),
        )
    except RequestError as error:
        field = str(error).partition("=")[0]
        known = field in SamplingParams.__dataclass_fields__
        raise ApiError(str(error), param=field if known else None) from error


def _read_grammar(fields: Fields, tools: Tools) -> Grammar | None:
    """What the text must match, from response_format, guided_json, guided_regex or tool_choice."""
    given = [
        name
        for name in ("response_format", "guided_json", "guided_regex")
        if fields.get(name) is not None
    ]
    if len(given) > 1:
        raise fields.fail(given[1], f"conflicts with {given[0]}; give one of them.")
    name = given[0] if given else None
    schema = None
    if name == "guided_regex":
        pattern = fields.text(name)
        if tools.active:
            raise fields.fail(name, "not together with tools; set tool_choice to 'none'.")
        return Grammar(kind="regex", source=pattern)
    if name == "guided_json":
        value = fields.get(name)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise fields.fail(name, f"not JSON text ({error}).") from error
        if not isinstance(value, dict):
            raise fields.fail(name, f"must be a JSON schema (object), not {kind_of(value)}.")
        schema = value
    elif name == "response_format":
        schema = _read_format(fields.object(name))
    if tools.forced:
        if schema is not None:
            raise fields.fail(name, "not together with a tool_choice that forces a call.")
        schema = call_schema(tools)
    elif tools.active and schema is not None:
        schema = either_schema(schema, tools)
    return None if schema is None else Grammar(kind="json_schema", source=json.dumps(schema))


def _read_format(fields: Fields) -> dict[str, Any] | None:
    fields.only(("type", "json_schema"))
    fields.required("type")
    kind = fields.text("type", choices=("text", "json_object", "json_schema"))
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    fields.required("json_schema")
    inner = fields.object("json_schema")
    inner.only(("name", "description", "schema", "strict"))
    inner.required("schema")
    return inner.object("schema").values


def _read_prompts(fields: Fields, served: Served) -> list[tuple[str, Sequence[int]]]:
    prompt = fields.required("prompt")
    if isinstance(prompt, str):
        return [_text_prompt(fields, prompt, served)]
    if not isinstance(prompt, list) or not prompt:
        raise fields.wrong("prompt", "a text, an array of token ids, or an array of either")
    first = prompt[0]
    if isinstance(first, str):
        if not all(isinstance(item, str) for item in prompt):
            raise fields.fail("prompt", "texts and other things in one array; give texts only.")
        _check_count(fields, prompt, served)
        return [_text_prompt(fields, item, served) for item in prompt]
    if isinstance(first, list):
        if not all(isinstance(item, list) for item in prompt):
            raise fields.fail("prompt", "lists and other things in one array; give lists only.")
        _check_count(fields, prompt, served)
        return [_token_prompt(fields, item, served) for item in prompt]
    return [_token_prompt(fields, prompt, served)]


def _check_count(fields: Fields, prompts: list[Any], served: Served) -> None:
    # Before any of them is tokenised.
    if len(prompts) > served.limits.choices:
        raise fields.fail(
            "prompt", f"{len(prompts)} prompts; at most {served.limits.choices} are taken."
        )


def _text_prompt(fields: Fields, text: str, served: Served) -> tuple[str, Sequence[int]]:
    ids = encode(served.loaded, text, "prompt", add_special_tokens=True)
    if not ids and served.loaded.special.bos is not None:
        ids = [served.loaded.special.bos]  # a text of nothing begins like every text
    if not ids:
        raise fields.fail("prompt", "it is empty and this model has no token that begins a text.")
    return text, ids


def _token_prompt(fields: Fields, ids: list[Any], served: Served) -> tuple[str, Sequence[int]]:
    if not ids:
        raise fields.fail("prompt", "an empty list of token ids.")
    for item in ids:
        _check_token(fields, "prompt", item, served)
    return served.loaded.tokenizer.decode(ids, skip_special_tokens=False), ids


def _check_token(fields: Fields, name: str, item: Any, served: Served) -> None:
    whole = isinstance(item, int) and not isinstance(item, bool)
    if not whole or not 0 <= item < served.texts.size:
        shown = json.dumps(item)[:40] if not isinstance(item, dict | list) else kind_of(item)
        raise fields.fail(
            name, f"{shown} is not a token id; they are whole numbers below {served.texts.size}."
        )
