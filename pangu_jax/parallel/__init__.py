"""Meshes, logical axis rules, batch placement and multi-process start."""

from pangu_jax.parallel.distributed import DistributedConfig, initialize
from pangu_jax.parallel.mesh import MeshConfig, MeshError, make_mesh
from pangu_jax.parallel.sharding import (
    DEFAULT_RULES,
    abstract_with_shardings,
    global_batch,
    shardings_for,
    unbox,
)

__all__ = [
    "DEFAULT_RULES",
    "DistributedConfig",
    "MeshConfig",
    "MeshError",
    "abstract_with_shardings",
    "global_batch",
    "initialize",
    "make_mesh",
    "shardings_for",
    "unbox",
]
