"""Tokenizers from GGUF metadata and from Hugging Face directories.

Token types, keys and names of pre-tokenizers are those of the GGUF specification. Special tokens
inside a text become special ids, which chat prompts need; for text by strangers set
`tokenizer.encode_special_tokens = True`, after which they are plain text.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pangu_jax.weights.errors import WeightsError, require
from pangu_jax.weights.gguf_config import Metadata
from pangu_jax.weights.safetensors_import import read_json
from pangu_jax.weights.sentencepiece_model import read_sentencepiece

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4

# How text is cut into words before merging. Letters by \p{L}, digits by \p{N}; what differs is
# whether digits come in threes.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_BPE, _QWEN2 = _WORDS % "{1,3}", _WORDS % ""
# What llama.cpp does for files that name no pre-tokenizer, one pattern after the other.
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)
_LLAMA3_NAMES = ("llama-bpe", "llama3", "llama-v3")
PRE_TOKENIZERS = ("smollm", *_LLAMA3_NAMES, "qwen2", "gpt-2", "default")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """Ids with a meaning, None where the model has none, and the template of its chats.

    add_bos: whether the model expects bos before every text; the tokenizer then adds it unless
      `encode(..., add_special_tokens=False)` is said.
    """

    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    add_bos: bool = False
    chat_template: str | None = None


class LoadedTokenizer(NamedTuple):
    """A `tokenizers.Tokenizer` and its special ids."""

    tokenizer: Tokenizer
    special: SpecialTokens


def tokenizer_from_gguf(metadata: Metadata) -> LoadedTokenizer:
    """The tokenizer that a GGUF file carries: byte-level BPE ('gpt2') or SentencePiece ('llama').

    Raises:
      WeightsError: no tokenizer in the file, or one of an unknown kind.
    """
    require("tokenizers")
    source = metadata.source

    def get(key, default=None):
        return metadata.get(f"tokenizer.ggml.{key}", default)

    tokens = get("tokens")
    if not tokens:
        raise WeightsError(f"{source} carries no tokenizer (tokenizer.ggml.tokens is missing).")
    types = get("token_type") or [_NORMAL] * len(tokens)
    model = get("model")
    if model not in ("gpt2", "llama"):
        raise WeightsError(
            f"{source}: tokenizer.ggml.model={model!r} is unknown; read are 'gpt2' and 'llama'."
        )
    try:
        if model == "gpt2":
            tokenizer = _byte_level(tokens, get("merges"), get("pre", "default"), source)
        else:
            if get("scores") is None:
                raise WeightsError(
                    f"{source} carries no scores (tokenizer.ggml.scores is missing)."
                )
            tokenizer = _sentence_piece(
                tokens, types, get("scores"),
                unknown=get("unknown_token_id", 0), prefix=bool(get("add_space_prefix", True)),
            )  # fmt: skip
        _add_special(tokenizer, tokens, types)
    except WeightsError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise WeightsError(f"{source}: its tokenizer does not fit together ({error}).") from error
    special = SpecialTokens(
        bos=get("bos_token_id"),
        eos=get("eos_token_id"),
        pad=get("padding_token_id"),
        unk=get("unknown_token_id"),
        # Files of Llama 3 leave the key out and mean yes.
        add_bos=bool(get("add_bos_token", model == "llama" or get("pre") in _LLAMA3_NAMES)),
        chat_template=metadata.get("tokenizer.chat_template"),
    )
    if special.add_bos and special.bos is not None:
        _prepend(tokenizer, tokens[special.bos], special.bos)
    return LoadedTokenizer(tokenizer, special)


def tokenizer_from_hf(folder: str | Path) -> LoadedTokenizer:
    """The tokenizer of a directory: tokenizer.json, or else tokenizer.model (SentencePiece).

    Names of special tokens come from tokenizer_config.json, or where that is silent from
    special_tokens_map.json; the chat template from chat_template.jinja or tokenizer_config.json.

    Raises:
      WeightsError: no tokenizer, one that cannot be read, or a special token that the vocabulary
        lacks.
    """
    tokenizers = require("tokenizers")
    folder = Path(folder)
    path, pieces = folder / "tokenizer.json", folder / "tokenizer.model"
    beside = folder / "tokenizer_config.json"
    older = folder / "special_tokens_map.json"
    values = read_json(beside) if beside.is_file() else {}
    names = (read_json(older) if older.is_file() else {}) | values
    if path.is_file():
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise WeightsError(f"{path} is not a tokenizer.json: {error}") from error
        # Left there by whoever trained last; transformers, too, cuts and pads only when told to.
        tokenizer.no_truncation()
        tokenizer.no_padding()
    elif pieces.is_file():
        path, tokenizer = pieces, _of_pieces(pieces, values)
    else:
        raise WeightsError(f"There is no {path}.")
    ids = {}
    for name in ("bos", "eos", "pad", "unk"):
        token = names.get(f"{name}_token")
        text = token.get("content") if isinstance(token, dict) else token
        ids[name] = None if text is None else tokenizer.token_to_id(text)
        # The model never sees padding, so a name that was never given an id does no harm.
        if text is not None and ids[name] is None and name != "pad":
            raise WeightsError(f"{beside}: {name}_token {text!r} is not in {path.name}.")
    if path == pieces and ids["bos"] is not None and values.get("add_bos_token", True):
        _prepend(tokenizer, tokenizer.id_to_token(ids["bos"]), ids["bos"])
    return LoadedTokenizer(
        tokenizer,
        SpecialTokens(
            **ids,
            # What tokenizer.json does with a text is the truth; tokenizer_config.json only says.
            add_bos=ids["bos"] is not None and tokenizer.encode("").ids[:1] == [ids["bos"]],
            chat_template=_template(folder, values),
        ),
    )


def _of_pieces(path: Path, values: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a tokenizer.model and what tokenizer_config.json adds to it."""
    from tokenizers import AddedToken, Regex, normalizers

    model = read_sentencepiece(path)
    before = [normalizers.Precompiled(model.charsmap)] if model.charsmap else []
    if model.collapse:
        before += [
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    prefix = bool(values.get("add_prefix_space", model.prefix))
    try:
        tokenizer = _sentence_piece(
            model.pieces, model.types, model.scores,
            unknown=model.unknown, prefix=prefix, before=before,
        )  # fmt: skip
        _add_special(tokenizer, model.pieces, model.types)
    except Exception as error:  # the library raises bare Exception
        raise WeightsError(f"{path} does not fit together ({error}).") from error
    added = values.get("added_tokens_decoder") or {}
    for number, token in sorted(added.items(), key=lambda item: int(item[0])):
        text, special = token["content"], bool(token.get("special"))
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
        if tokenizer.token_to_id(text) != int(number):
            raise WeightsError(
                f"{path.parent / 'tokenizer_config.json'}: token {text!r} has id {number} there; "
                f"with {path.name} it gets {tokenizer.token_to_id(text)}."
            )
    return tokenizer


def _template(folder: Path, values: dict[str, Any]) -> str | None:
    beside = folder / "chat_template.jinja"
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = values.get("chat_template")
    if isinstance(found, list):  # several by name; 'default' is the one for plain chats
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _byte_level(tokens, merges, pre, source) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    if merges is None:
        raise WeightsError(f"{source} carries no merges (tokenizer.ggml.merges is missing).")
    if pre not in PRE_TOKENIZERS:
        raise WeightsError(
            f"{source}: tokenizer.ggml.pre={pre!r} is unknown; read are "
            f"{', '.join(PRE_TOKENIZERS)}. Guessing would cut text into other tokens."
        )
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            # Llama 3 takes a word that is a token as it is, whatever its merges give.
            ignore_merges=pre in _LLAMA3_NAMES,
        )
    )
    if pre == "smollm":
        steps = [pre_tokenizers.Digits(individual_digits=True)]
    elif pre in _LLAMA3_NAMES:
        steps = [pre_tokenizers.Split(Regex(_LLAMA_BPE), behavior="isolated")]
    elif pre == "qwen2":
        steps = [pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated")]
        tokenizer.normalizer = normalizers.NFC()  # as its authors do; llama.cpp leaves it out
    elif pre == "default":
        steps = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in _DEFAULT]
    else:
        steps = []
    gpt2_pattern = pre in ("smollm", "gpt-2")
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=gpt2_pattern))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(tokens, types, scores, *, unknown, prefix, before=()) -> Tokenizer:
    """SentencePiece's BPE: always the pair whose joint piece has the highest score.

    unknown: id. prefix: a space in front of every text. before: normalizers that come first.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_of_scores(tokens, types, scores),
            unk_token=tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [*before, *([normalizers.Prepend("▁")] if prefix else [])]
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    back = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        back.append(decoders.Strip(content=" ", left=1))
    tokenizer.decoder = decoders.Sequence(back)
    return tokenizer


def _merges_of_scores(tokens, types, scores) -> list[tuple[str, str]]:
    """Every way to make a piece of two pieces, highest score of the result first."""
    normal = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind == 1}
    merges = []
    for piece, index in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                merges.append((-scores[index], index, normal[left], normal[right], left, right))
    merges.sort()
    return [(left, right) for *_, left, right in merges]


def _add_special(tokenizer, tokens, types) -> None:
    from tokenizers import AddedToken

    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        tokenizer.add_tokens(
            [
                AddedToken(token, special=special, normalized=False)
                for token, own in zip(tokens, types, strict=True)
                if own == kind
            ]
        )


def _prepend(tokenizer, token: str, number: int) -> None:
    from tokenizers import processors

    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A $B", special_tokens=[(token, number)]
    )
