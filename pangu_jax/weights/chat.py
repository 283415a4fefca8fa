"""Chat templates: a list of messages as the text that a model was tuned on.

Templates come with weights from strangers, so they run in jinja's sandbox, which keeps them from
reaching Python's internals and from changing what they are given.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.tokenizer_import import LoadedTokenizer


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
    jinja2 = require("jinja2")
    special = loaded.special
    if special.chat_template is None:
        raise WeightsError("This tokenizer has no chat template; write the prompt as plain text.")

    def text(number):
        return "" if number is None else loaded.tokenizer.id_to_token(number)

    try:
        template = _environment().from_string(special.chat_template)
        return template.render(
            messages=list(messages),
            tools=None if tools is None else list(tools),
            add_generation_prompt=add_generation_prompt,
            bos_token=text(special.bos),
            eos_token=text(special.eos),
            pad_token=text(special.pad),
            unk_token=text(special.unk),
            **variables,
        )
    except jinja2.exceptions.SecurityError as error:
        raise WeightsError(f"The chat template does what is not allowed: {error}") from error
    except (jinja2.TemplateError, TypeError) as error:
        raise WeightsError(f"The chat template refuses these messages: {error}") from error


def _environment():
    """What published templates expect: trimmed blocks, loop controls and three functions."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message):
        raise TemplateError(message)

    def to_json(value, indent=None):
        # jinja's own filter escapes for HTML, which a prompt is not.
        return json.dumps(value, ensure_ascii=False, indent=indent)

    def now(pattern):
        return datetime.datetime.now().strftime(pattern)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now}
    return environment
