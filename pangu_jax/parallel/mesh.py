"""The device mesh: which devices, in which grid, under which axis names."""

from __future__ import annotations

import dataclasses

import jax
from jax.sharding import AxisType, Mesh


class MeshError(ValueError):
    """Mesh, batch or parameter sizes that do not fit together."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; -1 (at most once) takes whatever devices are left.

    data: ways the batch is split. model: ways item tables or weights are split.
    """

    data: int = -1
    model: int = 1

    def __post_init__(self):
        sizes = (self.data, self.model)
        if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
            raise MeshError(
                f"mesh sizes are data={self.data}, model={self.model}; each must be "
                "at least 1, and at most one may be -1 (all remaining devices)."
            )


def make_mesh(config: MeshConfig | None = None, devices=None) -> Mesh:
    """Mesh with Auto axes ('data', 'model') over `devices` (default: all of the run's).

    Raises:
      MeshError: the sizes do not use every device.
    """
    config = config or MeshConfig()
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    data, model = config.data, config.model
    fixed = data if model == -1 else model
    if -1 in (data, model):
        name = "model" if data == -1 else "data"
        if count % fixed:
            raise MeshError(
                f"{count} devices cannot be divided by train.mesh.{name}={fixed}; "
                f"choose a divisor of {count}."
            )
        data, model = (count // fixed, model) if data == -1 else (data, count // fixed)
    if data * model != count:
        raise MeshError(
            f"train.mesh.data={data} times train.mesh.model={model} is {data * model}, but there "
            f"are {count} devices; set one of them to -1 to take what is left."
        )
    return jax.make_mesh(
        (data, model), ("data", "model"), devices=devices, axis_types=(AxisType.Auto,) * 2
    )
