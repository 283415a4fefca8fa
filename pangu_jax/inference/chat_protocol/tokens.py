"""Single tokens as text and bytes, for log-probabilities.

A token may be part of a character, so its bytes are the truth and its text is how they look.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

from pangu_jax.weights.tokenizer_import import LoadedTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenTexts:
    """Bytes and text of each token of a tokenizer (byte-level BPE or SentencePiece)."""

    def __init__(self, loaded: LoadedTokenizer):
        tokenizer = loaded.tokenizer
        self.size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        self._tokenizer = tokenizer
        self._added = {i: t.content for i, t in tokenizer.get_added_tokens_decoder().items()}
        decoder = tokenizer.decoder
        self._byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()

    def bytes_of(self, token_id: int) -> bytes:
        """The UTF-8 bytes that the token stands for; empty for an id without a token."""
        if token_id in self._added:
            return self._added[token_id].encode()
        piece = self._tokenizer.id_to_token(token_id)
        if piece is None:
            return b""
        if self._byte_level:
            try:
                return bytes(_BYTE_OF[letter] for letter in piece)
            except KeyError:  # a piece that is plain text
                return piece.encode()
        byte = _BYTE_TOKEN.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace("\u2581", " ").encode()

    def text_of(self, token_id: int) -> str:
        """The token's text; U+FFFD where it is part of a character."""
        return self.bytes_of(token_id).decode("utf-8", "replace")

    def length(self, token_ids: Sequence[int]) -> int:
        """Characters of the text that the tokens spell together."""
        joined = b"".join(map(self.bytes_of, token_ids))
        return len(joined.decode("utf-8", "replace"))


class Offsets:
    """Where each token begins in the text, counted in characters, from `start` on.

    A negative start is for tokens that the text lacks (a bos that the tokenizer adds); they begin
    at 0.
    """

    def __init__(self, texts: TokenTexts, start: int = 0):
        self._texts, self._at = texts, start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token_id: int) -> int:
        """The offset of this token, which follows those asked for before."""
        at = self._at
        self._at += len(self._decoder.decode(self._texts.bytes_of(token_id)))
        return max(at, 0)


def _bytes_of_letters() -> dict[str, int]:
    """Byte-level BPE writes each byte as a letter: itself where it is printable, else from U+0100.

    Radford et al. 2019 (GPT-2).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _bytes_of_letters()
