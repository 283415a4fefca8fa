"""Plain JSON values, their canonical text, and hashes of them that stay the same everywhere."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from agents_jax.llm.errors import InvalidRequest

_SEED_RANGE = 2**31


def plain(value: Any, where: str = "value") -> Any:
    """A copy out of dicts, lists, texts, numbers, booleans and None.

    Raises:
      InvalidRequest: anything else inside, or a number that is not finite.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidRequest(f"{where} holds {value!r}; numbers must be finite.")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise InvalidRequest(f"{where} has the key {key!r}; keys must be texts.")
        return {key: plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{index}]") for index, entry in enumerate(value)]
    raise InvalidRequest(
        f"{where} holds a {type(value).__name__}; only what JSON can say is allowed."
    )


def canonical(value: Any) -> str:
    """The one text of a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def digest(value: Any) -> str:
    """SHA-256 of the canonical text, in hexadecimal digits."""
    return hashlib.sha256(canonical(value).encode("ascii")).hexdigest()


def request_key(identity: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Hash that names the answer of one model to one request (of one sample)."""
    return digest({"model": plain(identity, "identity"), "request": content})


def sample_seed(seed: int, sample: int) -> int:
    """Seed of a sample: number 0 has the request's own, others ones that do not run into those
    of neighbouring seeds, as seed + sample would."""
    if sample == 0:
        return seed
    return int(digest([seed, sample])[:15], 16) % _SEED_RANGE
