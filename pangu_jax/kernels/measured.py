"""What `implementation='auto'` may take beside XLA: rules that stand for measurements.

An operation keeps a tuple of `Rule` in its api.py. A rule enters that tuple when a measurement on
that device, named on the operation's page in docs/, shows the implementation ahead; until then
`auto` leaves it alone. An implementation that cannot serve a call still falls back to XLA.
Devices with the same processor, named below, take over its rules; nothing was timed on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from pangu_jax.kernels.implementation import current_platform

# Device -> the device whose rules it takes over. Both hold the H100's processor (GH100, compute
# capability 9.0) with more and faster memory; nothing has been timed on them.
SAME_PROCESSOR = {"NVIDIA H200": "NVIDIA H100", "NVIDIA GH200": "NVIDIA H100"}


class Rule(NamedTuple):
    """`implementation` is ahead of XLA on a device, from a size on.

    device: how the device's kind begins, as `jax.Device.device_kind` has it: 'NVIDIA H100'.
    implementation: name of the implementation.
    at_least: smallest size, in the unit that the operation says.
    variant: variant of the operation, or None for all.
    """

    device: str
    implementation: str
    at_least: int = 0
    variant: str | None = None


def current_device_kind() -> str:
    """Kind of the device a computation traced now is meant for; '' where nothing says."""
    abstract = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if abstract is not None:
        return str(abstract.device_kind)
    device = jax.config.jax_default_device
    if hasattr(device, "device_kind"):
        return str(device.device_kind)
    platform = "gpu" if jax.default_backend() in ("cuda", "rocm") else jax.default_backend()
    return str(jax.devices()[0].device_kind) if platform == current_platform() else ""


def divided_by_compiler() -> bool:
    """Whether the mesh that is set has an axis of several devices that is not manual here."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = jax.sharding.AxisType.Manual
    sizes = zip(mesh.axis_sizes, mesh.axis_types, strict=True) if mesh.axis_names else ()
    return any(size > 1 and kind != manual for size, kind in sizes)


def allowed(
    table: Mapping[str, Callable[[], Any]],
    rules: Iterable[Rule],
    size: int,
    variant: str | None = None,
) -> dict[str, Callable[[], Any]]:
    """The part of an operation's table that `auto` may take from: XLA, and what a rule names.

    XLA alone where arrays may be divided over devices by the compiler, which cannot divide a
    kernel: it would gather the operands on every device. Inside a manual `shard_map` rules hold.
    """
    kind = "" if divided_by_compiler() else current_device_kind()
    for device, measured_on in SAME_PROCESSOR.items():
        kind = measured_on if kind.startswith(device) else kind
    names = {
        rule.implementation
        for rule in rules
        if kind.startswith(rule.device)
        and size >= rule.at_least
        and rule.variant in (None, variant)
    }
    return {name: loader for name, loader in table.items() if name == "xla" or name in names}
