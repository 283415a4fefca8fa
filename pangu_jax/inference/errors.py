"""Errors of inference; each is a ValueError whose text says what to change."""


class RequestError(ValueError):
    """A request that cannot be served: its sampling, its length, its grammar or its adapter."""


class EngineBusy(RequestError):
    """Too many requests wait already; the same request may be served later."""


class ServerClosed(RuntimeError):
    """The engine no longer takes requests."""
