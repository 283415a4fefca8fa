"""One try of an HTTP call: the JSON that came back, or a CallError that says why none did.

Nothing here repeats the key: texts of the endpoint are searched for it before they are shown.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents_jax.llm.errors import CallError
from agents_jax.llm.protocol import malformed
from agents_jax.llm.retry import parse_retry_after
from agents_jax.llm.streaming import assemble

if TYPE_CHECKING:
    import httpx

_SHOWN = 300  # characters of an endpoint's own words in an error


async def post(
    client: httpx.AsyncClient,
    url: str,
    body: Mapping[str, Any],
    *,
    key: str | None,
    timeout: float,
    max_body: int,
) -> dict[str, Any]:
    """The answer to a POST of `body`; an answer in pieces is put together.

    Args:
      key: sent as a bearer token. timeout: seconds until the last byte. max_body: bytes.

    Raises:
      CallError: no answer, or none that is a JSON object.
    """
    import httpx

    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    # json.dumps escapes lone surrogates, which UTF-8 could not carry.
    content = json.dumps(body, allow_nan=False).encode("ascii")
    began = False
    try:
        async with asyncio.timeout(timeout):
            async with client.stream("POST", url, content=content, headers=headers) as response:
                began = True
                data = await _read(response, max_body)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
        kind = "timeout" if isinstance(error, httpx.TimeoutException) else "connection"
        raise CallError(kind, f"No connection to {url}: {_name(error, key)}.") from None
    except (TimeoutError, httpx.TimeoutException):
        raise CallError(
            "timeout", f"{url} did not answer within {timeout:g} s (timeout).", billed=True
        ) from None
    except httpx.DecodingError as error:
        raise CallError(
            "truncated", f"{url} sent a body that cannot be decoded: {_name(error, key)}."
        ) from None
    except httpx.TransportError as error:
        kind = "truncated" if began else "connection"
        what = "closed in the middle of its answer" if began else "closed without an answer"
        raise CallError(kind, f"{url} {what}: {_name(error, key)}.", billed=True) from None
    if response.status_code != 200:
        raise _status_error(response, data, url, key)
    return _parse(response, data, url, key)


async def _read(response: httpx.Response, max_body: int) -> bytes:
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > max_body:
            raise malformed(f"is longer than max_body={max_body} bytes")
    return bytes(data)


def _name(error: Exception, key: str | None) -> str:
    text = str(error)
    return shown(f"{type(error).__name__}{f' ({text})' if text else ''}", key)


def shown(text: str, key: str | None) -> str:
    """An endpoint's words, short, on one line, without the key and without control characters."""
    if key is not None:
        text = text.replace(key, "[redacted]")
    text = "".join(c if c.isprintable() else " " for c in text)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _is_html(response: httpx.Response, data: bytes) -> bool:
    head = data[:200].lstrip().lower()
    kind = response.headers.get("content-type", "").lower()
    return "text/html" in kind or head.startswith((b"<!doctype", b"<html"))


def _words(response: httpx.Response, data: bytes, key: str | None) -> tuple[str, str]:
    """What an error's body says, and its code."""
    text = data[: 1 << 16].decode("utf-8", "replace")
    if _is_html(response, data):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.IGNORECASE | re.DOTALL)
        about = f" titled {shown(title.group(1), key)!r}" if title else ""
        return f"an HTML page{about}", ""
    try:
        error = json.loads(text)
        error = error.get("error", error)
        if isinstance(error, dict):
            words = error.get("message") or error.get("detail") or text
            return shown(str(words), key), str(error.get("code") or "")
        return shown(str(error), key), ""
    except (ValueError, AttributeError, RecursionError):
        return shown(text, key) or "nothing more", ""


def kind_of_status(status: int) -> str:
    """Which kind of failure an HTTP status stands for."""
    if status in (401, 403):
        return "auth"
    if status == 404:
        return "not_found"
    if status == 429:
        return "rate_limit"
    if status in (408, 425):
        return "timeout"
    if status >= 500 and status not in (501, 505):
        return "server"
    return "bad_request" if status >= 400 else "malformed"


def _status_error(response, data, url, key) -> CallError:
    status = response.status_code
    words, code = _words(response, data, key)
    kind = kind_of_status(status)
    hint = {
        "auth": " Check the key in the environment variable that api_key_env names.",
        "not_found": " Check base_url (it ends in /v1) and the model's name.",
        "malformed": " Redirects are not followed; give base_url as it ends up.",
    }.get(kind, "")
    if code == "insufficient_quota":  # said with 429, but waiting does not help
        kind, hint = "budget", " The account has no quota left."
    return CallError(
        kind,
        f"{url} answered HTTP {status}: {words}.{hint}",
        status=status,
        retry_after=parse_retry_after(response.headers.get("retry-after")),
    )


def _constant(text: str) -> float:
    if text == "-Infinity":
        return float("-inf")
    raise ValueError(f"{text} in JSON")


def _parse(response, data, url, key) -> dict[str, Any]:
    if _is_html(response, data):
        words, _ = _words(response, data, key)
        raise CallError(
            "malformed", f"{url} answered {words} where JSON is due; does base_url end in /v1?"
        )
    try:
        if "text/event-stream" in response.headers.get("content-type", "").lower():
            answer = assemble(data.decode("utf-8", "replace"), _constant)
        else:
            answer = json.loads(data, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise CallError(
            "truncated",
            f"{url} answered with broken JSON ({len(data)} bytes; {shown(str(error), key)}).",
            billed=True,
        ) from None
    if not isinstance(answer, dict):
        raise malformed(f"is a JSON {type(answer).__name__}, not an object")
    if answer.get("error") and not answer.get("choices"):
        error = answer["error"]
        code = error.get("code") if isinstance(error, dict) else None
        words = error.get("message", error) if isinstance(error, dict) else error
        kind = kind_of_status(code) if isinstance(code, int) and code >= 400 else "server"
        raise CallError(kind, f"{url} answered an error: {shown(str(words), key)}", billed=True)
    return answer
