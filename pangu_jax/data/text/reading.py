"""The rules for bytes that are not UTF-8 and for documents without text, for all sources."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Literal

from pangu_jax.data.text.errors import TextDataError, TextDataWarning


@dataclasses.dataclass
class ReadLog:
    """Counts of one reading; `bytes` are UTF-8 bytes of the documents handed on."""

    documents: int = 0
    bytes: int = 0
    empty: int = 0
    replaced: int = 0
    skipped: int = 0


@dataclasses.dataclass(frozen=True)
class ReadRules:
    """bad_utf8: raise, put U+FFFD in place of bad bytes, or leave the document out.

    empty: leave out (counted) or raise when a document holds nothing but white space.
    """

    bad_utf8: Literal["error", "replace", "skip"] = "error"
    empty: Literal["skip", "error"] = "skip"

    def __post_init__(self):
        for name, allowed in (
            ("bad_utf8", ("error", "replace", "skip")),
            ("empty", ("skip", "error")),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise TextDataError(f"{name} must be one of {', '.join(allowed)}, got {value!r}.")

    def decode(self, raw: bytes, where: str, log: ReadLog, offset: int = 0) -> str | None:
        """Text of `raw`, or None if it is to be left out.

        Args:
          where: file (and line) for the message.
          offset: where `raw` begins in that file.

        Raises:
          TextDataError: not UTF-8 under 'error'; names the place and the byte.
        """
        try:
            return raw.decode("utf-8-sig" if offset == 0 else "utf-8")
        except UnicodeDecodeError as error:
            # A signature that was cut off does not count in the codec's position.
            start = error.start + 3 * (offset == 0 and raw.startswith(b"\xef\xbb\xbf"))
            problem = f"{where}: byte 0x{raw[start]:02x} at offset {offset + start} is not UTF-8"
            return self._bad(problem, raw.decode("utf-8", errors="replace"), log)

    def accept(self, text: str | None, where: str, log: ReadLog) -> str | None:
        """The text if it may become a document, else None; counts either way.

        Raises:
          TextDataError: a lone surrogate under bad_utf8='error', no text under empty='error'.
        """
        if text is None:
            return None
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as error:
            problem = (
                f"{where}: character {error.start} is the lone surrogate "
                f"{text[error.start]!a}, which UTF-8 cannot hold"
            )
            text = self._bad(problem, text.encode("utf-8", "replace").decode("utf-8"), log)
            if text is None:
                return None
            size = len(text.encode("utf-8"))
        if not text.strip():
            if self.empty == "error":
                raise TextDataError(f"{where} holds no text; set empty='skip' to leave it out.")
            log.empty += 1
            return None
        log.documents += 1
        log.bytes += size
        return text

    def _bad(self, problem: str, replaced: str, log: ReadLog) -> str | None:
        if self.bad_utf8 == "error":
            raise TextDataError(
                f"{problem}. Convert the file, or set bad_utf8='replace' or bad_utf8='skip' "
                "(--config.corpus.read=\"{'bad_utf8': 'skip'}\")."
            )
        if self.bad_utf8 == "skip":
            log.skipped += 1
            warnings.warn(f"{problem}: left out.", TextDataWarning, stacklevel=4)
            return None
        log.replaced += 1
        return replaced
