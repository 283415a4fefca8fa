"""Quality and difficulty of a document as numbers in [0, 1].

The paper scores cleanliness, fluency, educational value and richness with a fine-tuned model
(section 3.1.2) that was not released, and says that quality and difficulty labels steer sampling.
The heuristics here are reconstructed stand-ins without a trained model; any function from
Document to a number may take their place, for instance a language model's judgement.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable

from pangu_jax.data.text.document import Document

Scorer = Callable[[Document], float]

_WORD = re.compile(r"\w+")
_SAMPLE = 20_000  # characters looked at; longer documents are judged by their beginning


def heuristic_quality(document: Document) -> float:
    """Mean of three shares, in [0, 1]; reconstructed.

    cleanliness: characters that are not control or replacement characters, squared twice so that
    5 % dirt costs a fifth; lines that do not repeat. fluency: how near the mean word length is to
    5 and, outside code, the share of lines of prose that end like a sentence. richness: distinct
    words per word, relative to what a text of this length has (Heaps' law with exponent 0.6).
    """
    text = document.text[:_SAMPLE]
    words = _WORD.findall(text.lower())
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not words or not lines:
        return 0.0
    dirty = sum(c == "\ufffd" or (c < " " and c not in "\n\t\r\f") for c in text)
    clean = (1 - dirty / len(text)) ** 4 * (len(set(lines)) / len(lines)) ** 0.5
    length = sum(map(len, words)) / len(words)
    fluency = math.exp(-(((length - 5) / 4) ** 2)) if document.domain != "chinese" else 1.0
    if document.domain not in ("code", "math"):
        long_lines = [line for line in lines if len(line) >= 40]
        ends = sum(line[-1] in ".!?:;,。！？)\"'" or line[-1].isalnum() for line in long_lines)
        fluency = (fluency + (ends / len(long_lines) if long_lines else 0.5)) / 2
    richness = min(1.0, len(set(words)) / (2.5 * len(words) ** 0.6))
    return (clean + fluency + richness) / 3


def heuristic_difficulty(document: Document) -> float:
    """How hard the text is, in [0, 1]; reconstructed.

    Mean of: deflated size over size (dense text compresses badly) between 0.15 and 0.6; share of
    words of seven letters and more between 0 and 0.5; log length between 2^7 and 2^17 characters.
    """
    text = document.text[:_SAMPLE]
    raw = text.encode("utf-8")
    words = _WORD.findall(text)
    if not words:
        return 0.0
    density = len(zlib.compress(raw, 6)) / len(raw)
    long_words = sum(len(word) >= 7 for word in words) / len(words)
    length = math.log2(max(len(document.text), 1))
    parts = ((density - 0.15) / 0.45, long_words / 0.5, (length - 7) / 10)
    return sum(min(max(part, 0.0), 1.0) for part in parts) / 3
