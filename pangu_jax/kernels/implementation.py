"""The one rule by which an operation picks among its implementations.

An operation owns a table ``name -> loader``; a loader imports its module only when called and
returns the function. An implementation says "not here" by raising ``NotImplementedError('why')``.
``'auto'`` walks the candidates of the device at hand and takes the first that does not; any other
name is a demand, and if it cannot be met the error lists why and what to use instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax

IMPLEMENTATIONS = ("auto", "xla", "pallas_tpu", "pallas_gpu", "interpret")

_AUTO_ORDER = {
    "tpu": ("pallas_tpu", "xla"),
    "gpu": ("pallas_gpu", "xla"),
    "cpu": ("xla",),
}


class UnknownImplementationError(ValueError):
    """The name given as ``implementation`` is not one of `IMPLEMENTATIONS`."""


class ImplementationUnavailableError(NotImplementedError, ValueError):
    """No candidate can serve this shape, type or device; the message lists every reason."""


def current_platform() -> str:
    """The platform a computation traced now is meant for: 'cpu', 'gpu' or 'tpu'.

    An abstract device (lowering for a machine that is not here) wins over the default device,
    which wins over the default back end.
    """
    mesh = jax.sharding.get_abstract_mesh()
    abstract = getattr(mesh, "abstract_device", None)
    platform = getattr(abstract, "platform", None)
    if platform is None:
        device = jax.config.jax_default_device
        platform = getattr(device, "platform", device) or jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else str(platform)


def candidates(implementation: str, platform: str | None = None) -> tuple[str, ...]:
    """Names to try, in order.

    Args:
      implementation: one of `IMPLEMENTATIONS`.
      platform: 'cpu', 'gpu' or 'tpu'; the current one if None.

    Raises:
      UnknownImplementationError: for any other name, with the nearest allowed one.
    """
    if implementation not in IMPLEMENTATIONS:
        near = difflib.get_close_matches(str(implementation), IMPLEMENTATIONS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownImplementationError(
            f"implementation={implementation!r} is unknown; allowed are "
            f"{', '.join(map(repr, IMPLEMENTATIONS))}.{hint}"
        )
    if implementation != "auto":
        return (implementation,)
    return _AUTO_ORDER.get(platform or current_platform(), ("xla",))


def dispatch(
    operation: str,
    table: Mapping[str, Callable[[], Callable[..., Any]]],
    implementation: str,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls the first candidate that does not raise ``NotImplementedError``.

    Args:
      operation: the operation's name, for messages.
      table: implementation name -> function without arguments that returns the implementation.
      implementation: one of `IMPLEMENTATIONS`.
      *args: handed to the implementation.
      **kwargs: handed to the implementation.

    Raises:
      UnknownImplementationError: for an unknown name.
      ImplementationUnavailableError: if no candidate can serve the call.
    """
    reasons = []
    for name in candidates(implementation):
        if name not in table:
            reasons.append(f"{name}: {operation} has no such implementation")
            continue
        try:
            return table[name]()(*args, **kwargs)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
    raise ImplementationUnavailableError(
        f"{operation} cannot run with implementation={implementation!r} "
        f"({'; '.join(reasons)}). Use implementation='auto' or 'xla'."
    )
