"""Byte-level BPE with the `tokenizers` library: training on a stream of texts, building, loading.

Every tokenizer here knows the 256 bytes, so any Unicode text can be encoded and comes back
unchanged. Texts are cut into words by the pattern of GPT-2 (library `ByteLevel`), digits one by
one or as they come. The paper names no pre-tokenization, digit handling or special tokens: these
are choices.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pangu_jax.data.tokenizer.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NUM_BYTES = 256
Merge = tuple[str, str]
# Training on one word takes time in proportion to the square of its length, so runs of letters (a
# text without spaces), of signs or of white space are cut for training. Encoding cuts nothing.
_LONGEST_RUN = 128
_LONG_RUN = re.compile(r"\b\w{129,}|\s{129,}|[^\w\s]{129,}")
_LONG_SPACE = re.compile(r"\s{129}")


@dataclasses.dataclass(frozen=True)
class BpeConfig:
    """What all parts of a vocabulary share.

    Attributes:
      vocab_size: exact number of tokens, special tokens and the 256 bytes included.
      special_tokens: get the first ids; must hold `eod_token`.
      eod_token: put after every document by the data pipeline.
      digits: 'individual' makes every digit a token, 'runs' lets numbers merge.
      min_frequency: how often a pair must occur to become a token.
      max_token_length: longest token in bytes.
    """

    vocab_size: int = 16_384
    special_tokens: tuple[str, ...] = ("<|pad|>", "<|bos|>", "<|eod|>", "<|unused0|>")
    eod_token: str = "<|eod|>"
    digits: Literal["individual", "runs"] = "individual"
    min_frequency: int = 2
    max_token_length: int = 64

    def __post_init__(self):
        if self.digits not in ("individual", "runs"):
            raise TokenizerError(f"digits must be 'individual' or 'runs', got {self.digits!r}.")
        if self.eod_token not in self.special_tokens:
            raise TokenizerError(
                f"eod_token {self.eod_token!r} is not among special_tokens {self.special_tokens}."
            )
        if len(set(self.special_tokens)) < len(self.special_tokens):
            raise TokenizerError(f"special_tokens repeat: {self.special_tokens}.")
        if self.vocab_size < self.num_fixed:
            raise TokenizerError(
                f"vocab_size={self.vocab_size} is less than the {NUM_BYTES} bytes and "
                f"{len(self.special_tokens)} special tokens; set it to at least {self.num_fixed}."
            )

    @property
    def num_fixed(self) -> int:
        """Tokens that are there without training."""
        return NUM_BYTES + len(self.special_tokens)


def train_merges(texts: Iterable[str], config: BpeConfig) -> list[Merge]:
    """Merges that BPE learns on `texts`, first learned first; at most vocab_size - num_fixed.

    Fewer come back where the text has no more pairs that occur min_frequency times.

    Raises:
      TokenizerError: no text, or something that is no text.
    """
    from tokenizers import Tokenizer, models, trainers

    seen = False

    def watched():
        nonlocal seen
        for text in training_texts(texts):
            seen = seen or bool(text)
            yield text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(config)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size - len(config.special_tokens),
        min_frequency=config.min_frequency,
        initial_alphabet=byte_alphabet(),
        max_token_length=config.max_token_length,
        show_progress=False,
    )
    tokenizer.train_from_iterator(watched(), trainer)
    if not seen:
        raise TokenizerError("There is no text to train a vocabulary on; give at least one.")
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def word_counts(texts: Iterable[str], config: BpeConfig) -> collections.Counter[str]:
    """How often each word occurs, words in the byte alphabet as the pre-tokenizer cuts them.

    Raises:
      TokenizerError: no text, or something that is no text.
    """
    cut = _pre_tokenizer(config)
    counts: collections.Counter[str] = collections.Counter()
    for text in training_texts(texts):
        counts.update(word for word, _ in cut.pre_tokenize_str(text))
    if not counts:
        raise TokenizerError("There is no text to train a vocabulary on; give at least one.")
    return counts


def training_texts(texts: Iterable[str]) -> Iterator[str]:
    """The texts, cut behind every 128 characters of a run of letters, signs or white space.

    Raises:
      TokenizerError: one string instead of several, something that is no string, a lone surrogate.
    """
    if isinstance(texts, str):
        raise TokenizerError("Give texts as a list or an iterator of strings, not as one string.")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TokenizerError(f"Text {number} is {type(text).__name__}, not str.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"Text {number} has the lone surrogate {text[error.start]!a} at character "
                f"{error.start}, which UTF-8 cannot hold; leave it out or replace it."
            ) from error
        start = 0
        # The pattern is slow; what white space separates is measured quickly.
        if max(map(len, text.split()), default=0) > _LONGEST_RUN or _LONG_SPACE.search(text):
            for run in _LONG_RUN.finditer(text):
                for cut in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
                    yield text[start:cut]
                    start = cut
        yield text[start:]


def is_word(token: str, config: BpeConfig) -> bool:
    """Whether a text can have this token (byte alphabet) as one whole word."""
    from tokenizers import decoders

    text = decoders.ByteLevel().decode([token])
    return [word for word, _ in _pre_tokenizer(config).pre_tokenize_str(text)] == [token]


def build_tokenizer(tokens: Sequence[str], merges: Sequence[Merge], config: BpeConfig) -> Tokenizer:
    """Tokenizer with ids: special tokens, the 256 bytes, then `tokens` in their order.

    Args:
      tokens: learned tokens in the byte alphabet of `ByteLevel`.
      merges: rules, strongest first; both parts and the result must be bytes or `tokens`.

    Raises:
      TokenizerError: a token twice, or a merge of or into something that is no token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    ordered = [*config.special_tokens, *byte_alphabet(), *tokens]
    vocabulary = {token: number for number, token in enumerate(ordered)}
    if len(vocabulary) < len(ordered):
        twice = next(t for i, t in enumerate(ordered) if vocabulary[t] != i)
        raise TokenizerError(f"Token {twice!r} occurs twice in the vocabulary.")
    for left, right in merges:
        for part in (left, right, left + right):
            if part not in vocabulary:
                raise TokenizerError(f"The merge {left!r} + {right!r} needs the token {part!r}.")
    # A word that is a token is that token, whatever the merges lead to. On merges learned from one
    # corpus this changes nothing; on reconciled ones it undoes most of what reconciling costs.
    model = models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(config)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in config.special_tokens]
    )
    return tokenizer


def train_bpe(texts: Iterable[str], config: BpeConfig) -> Tokenizer:
    """One BPE over all texts: what a domain-aware vocabulary is compared with.

    Raises:
      TokenizerError: no text, or too little for vocab_size.
    """
    merges = train_merges(texts, config)
    return build_tokenizer(all_tokens(merges, config), merges, config)


def all_tokens(merges: Sequence[Merge], config: BpeConfig) -> list[str]:
    """The tokens that the merges make, first learned first; all that config.vocab_size asks for.

    Raises:
      TokenizerError: there are fewer.
    """
    tokens = list(dict.fromkeys(left + right for left, right in merges))
    missing = config.vocab_size - config.num_fixed - len(tokens)
    if missing:
        raise TokenizerError(
            f"The text gives {len(tokens) + config.num_fixed} tokens, {missing} fewer than "
            f"vocab_size={config.vocab_size}; give more text or a smaller vocab_size."
        )
    return tokens


def save_tokenizer(tokenizer: Tokenizer, path: str | Path) -> None:
    """Writes the standard tokenizer.json."""
    path = Path(path)
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    scratch.replace(path)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """A tokenizer.json, ready to encode text: special tokens inside a text are plain text.

    Raises:
      TokenizerError: no such file, or not a tokenizer.
    """
    from tokenizers import Tokenizer

    path = Path(path)
    if not path.is_file():
        raise TokenizerError(f"There is no tokenizer {path}.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise TokenizerError(f"{path} is not a tokenizer.json: {error}") from error
    return as_plain_text(tokenizer)


def as_plain_text(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, set so that '<|eod|>' in a document does not end the document."""
    tokenizer.encode_special_tokens = True
    return tokenizer


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 (hex) of the tokenizer's JSON: tells whether ids of two files mean the same."""
    return hashlib.sha256(tokenizer.to_str().encode("utf-8")).hexdigest()


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes, sorted."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _pre_tokenizer(config: BpeConfig):
    from tokenizers import pre_tokenizers

    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if config.digits == "runs":
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
