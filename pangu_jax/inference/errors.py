"""Errors of inference; each is a ValueError whose text says what to change."""


class RequestError(ValueError):
    """A request that cannot be served: its sampling, its length, its grammar or its adapter."""


class ServerClosed(RuntimeError):
    """The engine no longer takes requests."""
