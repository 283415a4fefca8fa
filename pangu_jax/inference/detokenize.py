"""Text of a running completion, piece by piece, and the stop text that ends it.

The pieces together are exactly `tokenizer.decode(all ids)` (special tokens left out), at a cost per
token that does not grow with the text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pangu_jax.inference.errors import RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Steps of decoders that look at one token and at whether it is the first or the last one.
_LOCAL = ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece", "BPEDecoder")
_CONTEXT = 4  # tokens: enough that some give text although Strip takes a space from the first
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class IncrementalText:
    """Token ids in, text out; text that may still change or become a stop text is held back.

    The completion ends with the stop text that is complete first; of several that are complete at
    the same character, with the longest. The text before it is kept, the stop text and what
    follows are not. This depends on the text alone, not on how it came in tokens.

    Args:
      tokenizer: with a byte-level, SentencePiece (byte fallback) or word-piece decoder, or none.
      stop: texts of at least one character.

    Raises:
      RequestError: an empty stop text, or a decoder whose text cannot be had piece by piece.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._pieces = _pieces(tokenizer)
        self._stops = _StopFinder(stop)
        self.stop_text: str | None = None
        self.num_tokens = 0  # taken; those after the one that completed a stop text are not

    def add(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        """The text that became certain, and the stop text if one is complete (then and after)."""
        out = []
        for token_id in token_ids:
            if self.stop_text is not None:
                break
            self.num_tokens += 1
            out.append(self._take(self._pieces.add(int(token_id))))
        return "".join(out), self.stop_text

    def finish(self) -> str:
        """What was held back; an incomplete character becomes U+FFFD, as in `decode`.

        Sets stop_text if those last characters complete one. To be called once, at the end.
        """
        if self.stop_text is not None:
            return ""
        rest = self._take(self._pieces.finish())
        return rest if self.stop_text is not None else rest + self._stops.flush()

    def _take(self, piece: str) -> str:
        text, self.stop_text = self._stops.add(piece)
        return text


class _StopFinder:
    """Knuth, Morris and Pratt's search for every stop text at once, fed piece by piece."""

    def __init__(self, stop: Sequence[str]):
        if isinstance(stop, str) or not all(stop):
            raise RequestError(f"stop={stop!r} is not allowed; texts of at least one character.")
        self._stops = [(text, _borders(text)) for text in dict.fromkeys(stop)]
        firsts = "".join(re.escape(text[0]) for text in stop)
        self._first = re.compile(f"[{firsts}]") if firsts else None
        self._matched = [0] * len(self._stops)  # characters of each that the text ends with
        self._held = ""

    def add(self, piece: str) -> tuple[str, str | None]:
        if not self._stops:
            return piece, None
        text = self._held + piece
        position = len(self._held)
        while position < len(text):
            if not any(self._matched):  # nothing begun: on to the next character that begins one
                begins = self._first.search(text, position)
                if begins is None:
                    break
                position = begins.start()
            character = text[position]
            position += 1
            found = None
            for index, (stop, borders) in enumerate(self._stops):
                length = self._matched[index]
                while length and stop[length] != character:
                    length = borders[length]
                length += stop[length] == character
                if length == len(stop):
                    if found is None or len(stop) > len(found):
                        found = stop
                    length = borders[length]
                self._matched[index] = length
            if found is not None:
                self._held = ""
                return text[: position - len(found)], found
        certain = len(text) - max(self._matched)
        self._held = text[certain:]
        return text[:certain], None

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _borders(text: str) -> list[int]:
    """borders[n]: length of the longest proper prefix of text[:n] that text[:n] ends with."""
    borders = [0, 0]
    length = 0
    for character in text[1:]:
        while length and text[length] != character:
            length = borders[length]
        length += text[length] == character
        borders.append(length)
    return borders


def _pieces(tokenizer: Tokenizer) -> _ByteLevel | _Windowed:
    steps = []
    if tokenizer.decoder is not None:
        steps = _steps(json.loads(tokenizer.decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevel(tokenizer)
    unknown = [kind for kind in kinds if kind not in _LOCAL]
    # What comes after Fuse sees one long token; there only Strip's left end is local.
    after = steps[kinds.index("Fuse") + 1 :] if "Fuse" in kinds else []
    unknown += [s["type"] for s in after if s["type"] not in ("Fuse", "Strip")]
    unknown += [s["type"] for s in after if s["type"] == "Strip" and s["stop"]]
    if unknown:
        raise RequestError(
            f"The tokenizer's decoder has the step {unknown[0]} (of {', '.join(kinds)}), whose "
            "text cannot be had piece by piece; allowed are ByteLevel alone, or "
            f"{', '.join(_LOCAL)} with nothing after Fuse but Strip on the left."
        )
    return _Windowed(tokenizer, "ByteFallback" in kinds)


def _steps(decoder: dict) -> list[dict]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for inner in decoder["decoders"] for step in _steps(inner)]


def _special_texts(tokenizer: Tokenizer) -> set[str]:
    added = tokenizer.get_added_tokens_decoder().values()
    return {token.content for token in added if token.special}


def _byte_alphabet() -> dict[str, int]:
    """Character to byte, as in GPT-2: printable Latin-1 is itself, others begin at U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class _ByteLevel:
    """Each token is bytes; the text is their UTF-8, with U+FFFD for what is none."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._special = _special_texts(tokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token_id: int) -> str:
        token = _token(self._tokenizer, token_id)
        if token is None or token in self._special:
            return ""
        try:
            piece = bytes([_BYTES[character] for character in token])
        except KeyError:  # an added token is written as it is
            piece = token.encode()
        return self._utf8.decode(piece)

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class _Windowed:
    """Decodes the new tokens beside a few old ones, and takes what the new ones add.

    A run of byte tokens is decoded when it has ended: the library writes a run that is no UTF-8
    as U+FFFD from its first byte on.
    """

    def __init__(self, tokenizer: Tokenizer, byte_fallback: bool):
        self._tokenizer = tokenizer
        self._special = _special_texts(tokenizer)
        self._byte_fallback = byte_fallback
        self._context: list[int] = []  # decodes to some text, or is all there was
        self._run: list[int] = []

    def add(self, token_id: int) -> str:
        token = _token(self._tokenizer, token_id)
        if token is None or token in self._special:
            return ""
        self._run.append(token_id)
        if self._byte_fallback and _BYTE_TOKEN.fullmatch(token):
            return ""
        return self.finish()

    def finish(self) -> str:
        if not self._run:
            return ""
        new, self._run = self._run, []
        before = self._decode(self._context)
        text = self._decode(self._context + new)
        # Once some tokens give text by themselves, nothing before them changes what follows.
        self._context += new
        for count in range(1, min(_CONTEXT, len(self._context)) + 1):
            if self._decode(self._context[-count:]):
                del self._context[:-count]
                break
        return text[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


def _token(tokenizer: Tokenizer, token_id: int) -> str | None:
    """None for ids that are no token, such as spare rows of the logits."""
    return tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
