"""Chat templates: a list of messages as the text that a model was tuned on.

Templates come with weights from strangers, so they run in jinja's sandbox, which keeps them from
reaching Python's internals and from changing what they are given.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

# Around blocks of {% generation %}; Unicode sets these two aside as never being characters.
_MARKS = ("\ufdd0", "\ufdd1")


def render_chat(
    loaded: LoadedTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """The text of a chat; encode it with `add_special_tokens=False`, it names its own bos.

    Args:
      loaded: tokenizer with a chat template.
      messages: mappings with 'role' and 'content' (and whatever else the template reads).
      add_generation_prompt: end with the opening of the assistant's turn.
      tools: JSON schemas of functions, for templates that take them.
      variables: further names that the template reads.

    Raises:
      WeightsError: no template, a template that is broken, refuses these messages or does what
        the sandbox forbids.
    """
    return _render(
        loaded, messages, ("", ""), tools=tools, add_generation_prompt=add_generation_prompt,
        **variables,
    )  # fmt: skip


def render_chat_marked(
    loaded: LoadedTokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> tuple[str, list[tuple[int, int]]]:
    """(text of a whole chat, spans [start, stop) of characters that the model is to write).

    For templates that name those themselves, between {% generation %} and {% endgeneration %};
    other templates give no spans. Arguments and errors as `render_chat`, and besides:

    Raises:
      WeightsError: a message that holds one of the two marks used to find the blocks, or a template
        that changes what stands inside a block afterwards.
    """
    plain = _render(loaded, messages, ("", ""), tools=tools, **variables)
    marked = _render(loaded, messages, _MARKS, tools=tools, **variables)
    pieces, spans, at = [], [], 0
    for index, piece in enumerate(re.split(f"[{''.join(_MARKS)}]", marked)):
        if index % 2:
            spans.append((at, at + len(piece)))
        pieces.append(piece)
        at += len(piece)
    if "".join(pieces) != plain or len(pieces) % 2 == 0:
        raise WeightsError(
            "The chat template changes the text of a {% generation %} block after writing it (or a "
            f"message holds one of the characters {_MARKS[0]!a} and {_MARKS[1]!a}), so it cannot "
            "be told where the answers stand."
        )
    return plain, [span for span in spans if span[0] < span[1]]


def _render(loaded, messages, marks, *, tools=None, add_generation_prompt=False, **variables):
    jinja2 = require("jinja2")
    special = loaded.special
    if special.chat_template is None:
        raise WeightsError("This tokenizer has no chat template; write the prompt as plain text.")

    def text(number):
        return "" if number is None else loaded.tokenizer.id_to_token(number)

    try:
        return _compiled(special.chat_template, marks).render(
            messages=list(messages),
            tools=None if tools is None else list(tools),
            add_generation_prompt=add_generation_prompt,
            bos_token=text(special.bos),
            eos_token=text(special.eos),
            pad_token=text(special.pad),
            unk_token=text(special.unk),
            **({"documents": None} | variables),  # templates ask whether it is none
        )
    except jinja2.exceptions.SecurityError as error:
        raise WeightsError(f"The chat template does what is not allowed: {error}") from error
    except (jinja2.TemplateError, TypeError) as error:
        raise WeightsError(f"The chat template refuses these messages: {error}") from error


@functools.lru_cache(maxsize=16)
def _compiled(source: str, marks: tuple[str, str]):
    return _environment(marks).from_string(source)


def _environment(marks: tuple[str, str] = ("", "")):
    """What published templates expect: trimmed blocks, loop controls, three functions and the tag
    'generation', whose blocks come out between `marks`."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        # jinja's own filter escapes for HTML, which a prompt is not.
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
            sort_keys=sort_keys,
        )  # fmt: skip

    def now(pattern):
        return datetime.datetime.now().strftime(pattern)

    class Generation(Extension):
        tags = frozenset(("generation",))

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            before, after = (
                nodes.Output([nodes.TemplateData(mark, lineno=line)], lineno=line) for mark in marks
            )
            return [before, *body, after]

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    return environment
