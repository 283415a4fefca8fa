"""One piece of text and what is known about it before cleaning."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

from pangu_jax.data.text.errors import choose_from

# The rows of the Pangu Ultra data mix (paper, section 3.1.1, Table 2).
DOMAINS = ("english", "chinese", "multilingual", "instruction", "math", "code")


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """text: Unicode without lone surrogates. domain: one of DOMAINS, or a name the user has added.

    source: the data set it is from, with its version. id: its place there; unique in a source.
    """

    text: str
    domain: str
    source: str
    id: str


def check_domain(name: str, extra: Iterable[str] = ()) -> str:
    """`name` if it is a known domain.

    Raises:
      TextDataError: it is not; names the known ones.
    """
    known = (*DOMAINS, *extra)
    if name not in known:
        raise choose_from("domain", name, known, "Domains of your own go into extra_domains.")
    return name


def text_digest(text: str) -> bytes:
    """SHA-256 of the UTF-8 bytes, 32 bytes: the identity of a text in splits and shards."""
    return hashlib.sha256(text.encode("utf-8")).digest()
