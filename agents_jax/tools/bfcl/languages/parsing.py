"""Calls read out of Java and JavaScript text with tree-sitter: a syntax tree, nothing executed.

The rules follow the behaviour of `bfcl_eval.model_handler.parser`, version 2026.3.23, oddities
included, so that accuracies can be compared: only `name=value` arguments are read, values stay
text, the first call of the text is the answer.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

from agents_jax.tools.calls import Call
from agents_jax.tools.literals import CallParseError

if TYPE_CHECKING:
    import tree_sitter

Language = Literal["java", "javascript"]
LANGUAGES: tuple[Language, ...] = ("java", "javascript")
MAX_CHARS = 8_192
"""Longest text that is parsed, in characters; the longest gold answer has under 1,000."""
POSITIONAL = ""
"""Name under which an argument without one is kept; no function has a parameter of that name."""

_QUOTED = ("string_literal", "character_literal")
_AS_WRITTEN = ("identifier", "class_literal", "type_identifier", "method_invocation")
_PUNCTUATION = (",", "(", ")")


def parse_language_calls(text: str, language: Language) -> list[Call]:
    """The call that a text in Java or JavaScript holds, as a list of one.

    Arguments are the texts of their values, outer quotes of strings removed; `values.read_value`
    turns them into values of the types that a function description names.

    Args:
      text: a model's answer, up to MAX_CHARS characters, in brackets or not.

    Raises:
      CallParseError: no call, or a text that is not of that language.
      ImportError: the grammars are not installed.
      ValueError: an unknown language.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is unknown; allowed: {', '.join(LANGUAGES)}.")
    if len(text) > MAX_CHARS:
        raise CallParseError(f"the text has {len(text)} characters, more than {MAX_CHARS}")
    text = text.strip("`\n ")
    # One bracket is taken off on either side where there is one.
    text = text[1:] if text.startswith("[") else text
    text = text[:-1] if text.endswith("]") else text
    try:
        root = _parser(language).parse(text.encode("utf-8")).root_node
    except UnicodeEncodeError:
        raise CallParseError("the text has lone surrogates") from None
    if root.has_error and _has_error_node(root):
        raise CallParseError(f"not {language} syntax")
    try:
        return [_java_call(root, text) if language == "java" else _javascript_call(root)]
    except RecursionError:
        raise CallParseError("expressions nest too deep") from None


@functools.cache
def _parser(language: Language) -> tree_sitter.Parser:
    try:
        import tree_sitter

        if language == "java":
            import tree_sitter_java as grammar
        else:
            import tree_sitter_javascript as grammar
    except ImportError as error:
        raise ImportError(
            f"Answers in {language} are read with {error.name!r}, which is not installed; "
            "install the extra: pip install -e '.[bfcl]'."
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))


def _has_error_node(root: tree_sitter.Node) -> bool:
    """Whether something could not be parsed; a token that is only missing is no error to BFCL."""
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if node.type == "ERROR":
            return True
        nodes += [child for child in node.children if child.has_error]
    return False


def _add(arguments: dict[str, Any], name: str, value: str, function: str) -> None:
    if name in arguments:
        raise CallParseError(f"{function} has the argument {name!r} twice")
    arguments[name] = value


def _java_call(root: tree_sitter.Node, source: str) -> Call:
    """The first method invocation in the order of the text."""
    node = _first(root, "method_invocation")
    arguments_node = node and node.child_by_field_name("arguments")
    if node is None or arguments_node is None:
        raise CallParseError("the text has no method call")

    def text(node: tree_sitter.Node) -> str:
        # BFCL cuts characters at offsets of bytes: the same as long as the text is ASCII.
        return source[node.start_byte : node.end_byte]

    name = text(node.child_by_field_name("name"))
    owner = node.child_by_field_name("object")
    name = name if owner is None else f"{text(owner)}.{name}"
    arguments: dict[str, Any] = {}
    for child in arguments_node.children:
        if child.type == "assignment_expression":
            left, _, right = child.children[:3]
            _add(arguments, text(left), _java_text(right, text, nested=False), name)
        elif child.type in ("identifier", "class_literal"):
            _add(arguments, POSITIONAL, text(child), name)
    return Call(name, arguments)


def _java_text(node: tree_sitter.Node | None, text: Any, *, nested: bool = True) -> str:
    """A value's text without blanks between its tokens; of a new object without its class body."""
    if node is None:
        raise CallParseError("an array is made without its elements")
    if node.type in _QUOTED:
        return text(node) if nested else text(node)[1:-1]
    if node.type in _AS_WRITTEN:
        return text(node)
    if node.type == "array_creation_expression":
        kind = _java_text(node.child_by_field_name("type"), text)
        return f"new {kind}[]{_java_text(node.child_by_field_name('value'), text)}"
    if node.type == "object_creation_expression":
        kind = _java_text(node.child_by_field_name("type"), text)
        given = node.child_by_field_name("arguments")
        parts = [
            _java_text(child, text)
            for child in (given.children if given is not None else ())
            if child.type not in _PUNCTUATION
        ]
        return f"new {kind}({', '.join(parts)})"
    if node.child_count:
        return "".join(_java_text(child, text) for child in node.children)
    return text(node)


def _javascript_call(root: tree_sitter.Node) -> Call:
    """The first statement of the text that is a call."""
    statements = [c for c in root.children if c.type == "expression_statement"]
    calls = [c for s in statements for c in s.children if c.type == "call_expression"]
    if root.type != "program" or not calls:
        raise CallParseError("the text has no call as a statement")
    function, given = calls[0].children[:2]
    name = _decoded(function)
    arguments: dict[str, Any] = {}
    for child in given.children:
        if child.type == "assignment_expression":
            left, _, right = child.children[:3]
            _add(arguments, _decoded(left), _unquoted(_decoded(right)), name)
        elif child.type in ("identifier", "true"):
            _add(arguments, POSITIONAL, _decoded(child), name)
    return Call(name, arguments)


def _decoded(node: tree_sitter.Node) -> str:
    return node.text.decode("utf-8")


def _unquoted(text: str) -> str:
    return text[1:-1] if text[0] == text[-1] and text[0] in "\"'" else text


def _first(root: tree_sitter.Node, kind: str) -> tree_sitter.Node | None:
    nodes = [root]
    while nodes:
        node = nodes.pop()
        if node.type == kind:
            return node
        nodes += reversed(node.children)
    return None
