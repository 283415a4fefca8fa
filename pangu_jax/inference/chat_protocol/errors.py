"""Errors of the HTTP server, in the shape of the OpenAI protocol."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer that is an error: status, message, and the field that it is about.

    kind, code: the protocol's `type` and `code`. headers: further headers of the answer.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.kind = _short(message, 2000), status, kind
        self.param = None if param is None else _short(param, 200)
        self.code, self.headers = code, headers or {}

    def body(self) -> dict[str, Any]:
        """The JSON object `{"error": {message, type, param, code}}`."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }


def _short(text: str, most: int) -> str:
    # Messages name what was sent, which may be of any length.
    return text if len(text) <= most else text[: most - 3] + "..."


class ServeError(ValueError):
    """A server that cannot be started as asked."""


def busy(waiting: int, retry_after: int) -> ApiError:
    """429: too many requests wait already."""
    return ApiError(
        f"{waiting} requests are running or waiting, which is all that this server takes; "
        f"try again in {retry_after} s.",
        status=429,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"retry-after": str(retry_after)},
    )


def closing() -> ApiError:
    """503: the engine takes no more requests, or ended this one to shut down."""
    return ApiError(
        "The server is shutting down; the request was not finished.",
        status=503,
        kind="server_error",
        code="shutting_down",
    )


def failed(what: str = "The engine") -> ApiError:
    """500: something broke down; details stand in the server's log, not in the answer."""
    return ApiError(
        f"{what} failed; details are in the server's log.",
        status=500,
        kind="server_error",
        code="engine_error",
    )
