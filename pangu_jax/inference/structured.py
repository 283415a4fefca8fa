"""Structured output: which tokens may come next so that the text matches a grammar.

Masks come from `llguidance` (MIT licence, https://github.com/guidance-ai/llguidance), a parser
over the bytes of tokens. Objects' properties come in the order of the schema. Text in JSON strings
is written as it is, with the escapes \\" \\\\ \\b \\f \\n \\r \\t alone: with \\u a name could be
spelt in two ways, and an additional property could overwrite a declared one.

A mask is uint32 of shape (ceil(vocab_size / 32),): bit i % 32 of word i // 32 is set where token i
may come next.
"""

from __future__ import annotations

import collections
import json
import re
import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from pangu_jax.inference.errors import RequestError
from pangu_jax.inference.json_schema_check import check_schema, parse_schema
from pangu_jax.inference.request import Grammar
from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_ESCAPES = '"\\bfnrt'
_WHITESPACE = {"any": None, "single": " ?"}
_CACHED = 64  # compiled grammars kept; each holds its lexer's states
_MAX_LEXER_STATES = 50_000  # up to 2 kB each (the library's figure): 100 MB for one grammar
_NO_FORCING = '%llguidance {"no_forcing": true}'
_PROBLEM_LENGTH = 500  # characters of the library's own words that an error passes on


class GrammarCompiler:
    """Turns grammars into masks over one tokenizer; safe to share between threads.

    Args:
      tokenizer: byte-level BPE or SentencePiece with byte fallback.
      vocab_size: rows of the logits; rows beyond the tokenizer are never allowed.
      eos_ids: tokens that end a completion; each is allowed exactly where the grammar may end.
      json_whitespace: between JSON's parts: 'any' (spaces, tabs, line ends, any number) or 'single'
        (at most one space), for small models that would go on writing spaces.

    Raises:
      RequestError: `llguidance` is not installed, or the tokenizer is of a kind it cannot read.
    """

    def __init__(
        self,
        tokenizer: LoadedTokenizer,
        vocab_size: int,
        eos_ids: Sequence[int],
        *,
        json_whitespace: Literal["any", "single"] = "any",
    ):
        try:
            import llguidance
        except ImportError as error:
            raise RequestError(
                "A grammar needs the package llguidance; install it with the extra 'structured': "
                "pip install -e '.[structured]'."
            ) from error
        if json_whitespace not in _WHITESPACE:
            raise RequestError(
                f"json_whitespace={json_whitespace!r} is unknown; allowed: any, single."
            )
        eos_ids = sorted(set(eos_ids))
        known = tokenizer.tokenizer.get_vocab(with_added_tokens=True).values()
        last = max(known)
        if last >= vocab_size:
            raise RequestError(
                f"The tokenizer has ids up to {last}, the logits only {vocab_size} rows: they do "
                "not belong together."
            )
        if not eos_ids or not set(eos_ids) <= set(known):
            raise RequestError(
                f"eos_ids={eos_ids} must name at least one token, and only ids from 0 to {last} "
                "that the tokenizer has: without an end token no grammar can end."
            )
        self._library = llguidance
        self._json_whitespace = json_whitespace
        # Padding and truncation would change what the library tries out with the tokenizer.
        text = json.loads(tokenizer.tokenizer.to_str())
        text["padding"] = text["truncation"] = None
        try:
            self._tokens = llguidance.LLTokenizer(
                json.dumps(text), n_vocab=vocab_size, eos_token=eos_ids
            )
        except Exception as error:  # the library raises ValueError and RuntimeError by turns
            raise RequestError(
                "Grammars cannot be used with this tokenizer; byte-level BPE and SentencePiece "
                f"with byte fallback can ({_short(str(error))})."
            ) from error
        self.vocab_size = vocab_size
        self.eos_ids = tuple(eos_ids)
        self._eos_bits = _bits(eos_ids, vocab_size)
        special = [
            index
            for index, token in tokenizer.tokenizer.get_added_tokens_decoder().items()
            if token.special and index not in eos_ids
        ]
        self._allowed = _bits(list(known), vocab_size) & ~_bits(special, vocab_size)
        self._compiled = collections.OrderedDict()
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> GrammarState:
        """The state before the first token; the work is done once for equal grammars.

        Regular expressions are those of Rust's `regex` (no look-around, no back-references), with
        \\d for 0 to 9, and match the whole text. Lark grammars are those of llguidance, without
        special tokens.

        Raises:
          RequestError: an invalid grammar, one that a mask cannot express, or one without any text.
        """
        with self._lock:
            found = self._compiled.get(grammar)
            if found is not None:
                self._compiled.move_to_end(grammar)
        if found is None:
            matcher = self._library.LLMatcher(
                self._tokens,
                self._source(grammar),
                log_level=0,
                limits=self._library.LLParserLimits(max_lexer_states=_MAX_LEXER_STATES),
            )
            if matcher.is_error():
                raise RequestError(f"{grammar.kind}: {_problem(grammar, matcher.get_error())}")
            found = GrammarState(self, matcher)
            found.mask()  # raises where no token can begin the text
            with self._lock:
                self._compiled[grammar] = found
                while len(self._compiled) > _CACHED:
                    self._compiled.popitem(last=False)
        return found.copy()

    def _source(self, grammar: Grammar) -> str:
        """The grammar in Lark, the one form in which forcing can be switched off.

        Where only one text is possible, the library would allow only that text's usual tokens, and
        takes the spelling of a special token for the special token.
        """
        if grammar.kind == "json_schema":
            lark = f"start: {self._json_rule(parse_schema(grammar.source))}"
        elif grammar.kind == "regex":
            lark = f"start: /{self._library.regex_to_lark(grammar.source, 'd')}/"
        else:
            lark = self._checked_lark(grammar.source)
        # At the end, so that line numbers in errors are those of the user's grammar.
        return self._library.LLMatcher.grammar_from_lark(f"{lark}\n{_NO_FORCING}")

    def _json_rule(self, schema: Any) -> str:
        check_schema(schema)
        if schema is False:
            raise RequestError("json_schema at #: false allows no text; write what is allowed.")
        options = {
            "lenient": False,
            "coerce_one_of": False,
            "json_allowed_escapes": _ESCAPES,
            "json_allow_general_unicode_escapes": False,
        }
        pattern = _WHITESPACE[self._json_whitespace]
        if pattern is not None:
            options["whitespace_pattern"] = pattern
        schema = {} if schema is True else schema
        return "%json " + json.dumps({**schema, "x-guidance": options})

    def _checked_lark(self, source: str) -> str:
        """Schemas inside a lark grammar (`%json {...}`) obey the same rules."""
        if "%llguidance" in source:
            raise RequestError("lark: the directive %llguidance is set here; leave it out.")
        decoder = json.JSONDecoder()
        parts, done = [], 0
        for found in re.finditer(r"%json\b\s*", source):
            if found.start() < done:
                continue
            try:
                schema, end = decoder.raw_decode(source, found.end())
            except json.JSONDecodeError as error:
                raise RequestError(
                    "lark: %json must be followed by a schema; no JSON at line "
                    f"{error.lineno}, column {error.colno}: {error.msg}."
                ) from error
            parts += [source[done : found.start()], self._json_rule(schema)]
            done = end
        return "".join([*parts, source[done:]])


class GrammarState:
    """Where in a grammar one completion stands. Not to be shared between threads."""

    def __init__(self, compiler: GrammarCompiler, matcher):
        self._compiler = compiler
        self._matcher = matcher

    def mask(self) -> np.ndarray:
        """(ceil(vocab_size / 32),) uint32, a new array: the tokens that may come next.

        After the end only end tokens are allowed.

        Raises:
          RequestError: the grammar grew beyond the library's limits, or no token fits any more.
        """
        compiler = self._compiler
        words = np.frombuffer(self._matcher.compute_bitmask(), "<u4")
        self._check()
        mask = words[: compiler._allowed.size] & compiler._allowed
        if not self.may_end:
            mask &= ~compiler._eos_bits  # a lark grammar might name an end token inside a text
        if not mask.any():
            raise RequestError(
                "The grammar allows no token here: it asks for bytes that no token of this "
                "tokenizer has, or for a special token inside the text."
            )
        return mask

    def accept(self, token_id: int) -> None:
        """Moves on by one token.

        Raises:
          RequestError: the grammar does not allow it here; the state stays as it was.
        """
        token_id = int(token_id)
        inside = 0 <= token_id < self._compiler.vocab_size
        ends = token_id in self._compiler.eos_ids
        if not inside or (ends and not self.may_end):
            taken = 0
        elif ends and self._matcher.is_stopped():
            return
        else:
            taken = self._matcher.try_consume_tokens([token_id])
        self._check()
        if not taken:
            raise RequestError(f"Token {token_id} is not allowed by the grammar here.")

    def rollback(self, count: int) -> None:
        """Takes back the last `count` tokens.

        Raises:
          RequestError: fewer were accepted.
        """
        if count and not self._matcher.rollback(count):
            raise RequestError(f"{count} tokens cannot be taken back; fewer were accepted.")

    def copy(self) -> GrammarState:
        """An independent state at the same place."""
        return GrammarState(self._compiler, self._matcher.deep_copy())

    @property
    def may_end(self) -> bool:
        """Whether the text so far matches the grammar: an end token is allowed."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether nothing more can follow but an end token."""
        return self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"grammar: {_short(self._matcher.get_error())}")


def _bits(ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """(ceil(vocab_size / 32),) uint32 with the bits of `ids` set."""
    flags = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    flags[np.asarray(ids, np.int64)] = 1
    return np.packbits(flags, bitorder="little").view("<u4")


def _problem(grammar: Grammar, problem: str) -> str:
    """The library's words without what was put around the user's grammar."""
    if grammar.kind == "lark":
        lines = problem.splitlines()
        return _short("\n".join(line for line in lines if _NO_FORCING not in line))
    problem = re.sub(r"^at \d+\(\d+\): (failed to compile JSON schema: )?", "", problem)
    return _short(re.split(r"\n +1 \| ", problem)[0])


def _short(problem: str) -> str:
    problem = problem.strip()
    return problem if len(problem) <= _PROBLEM_LENGTH else problem[:_PROBLEM_LENGTH] + "…"
