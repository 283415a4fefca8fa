"""Machines that are not here, as the compilers of GPUs and TPUs know them.

Each needs the compiler's plugin, in an environment of its own (extras `aot-cuda` and `aot-tpu`),
but no device. A plugin reads environment variables when it is loaded: one target per process.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import importlib.util
import os
from typing import Literal

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice

from pangu_jax.parallel.topology import Topology, topology


class TargetError(ValueError):
    """An unknown target, or one whose compiler is not installed; the text says what to change."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A machine to compile for.

    platform: whose compiler. shape: the devices, as the plugin wants them: slices x hosts x devices
      of a host, or generation:chips of the torus.
    topology: the name of its figures, if there are any.
    """

    name: str
    platform: Literal["cuda", "tpu"]
    shape: str
    topology: str | None

    @property
    def figures(self) -> Topology | None:
        return topology(self.topology) if self.topology else None

    @property
    def abstract_device(self) -> AbstractDevice:
        """For tracing without the plugin: kernels are chosen for this device."""
        platform, cores = ("tpu", 1) if self.platform == "tpu" else ("gpu", _H100_CORES)
        kind = "TPU v5" if self.platform == "tpu" else _H100_NAME
        return AbstractDevice(device_kind=kind, num_cores=cores, platform=platform)


TARGETS = {
    target.name: target
    for target in (
        *(
            Target(name=f"h100_{n}", platform="cuda", shape=f"1x{n // 8}x8", topology=f"h100_{n}")
            for n in (8, 64, 512, 8192)
        ),
        Target(name="tpu_v5p_8", platform="tpu", shape="v5p:2x2x2", topology=None),
        Target(name="tpu_v5p_8192", platform="tpu", shape="v5p:16x16x32", topology="tpu_v5p_8192"),
    )
}

_H100_NAME, _H100_CORES = "NVIDIA H100 80GB HBM3", 132
# What the CUDA runtime tells of an H100 SXM; clock, cache and bandwidth as in its data sheet.
# Only the compiler's own cost estimates, limits of launches and the memory check depend on them.
_H100 = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * 1024,
    "shared_memory_per_core": 228 * 1024,
    "shared_memory_per_block_optin": 227 * 1024,
    "threads_per_core_limit": 2048,
    "core_count": _H100_CORES,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "memory_bandwidth": 3_350_000_000_000,
    "l2_cache_size": 50 * 2**20,
    "clock_rate_ghz": 1.98,
    "device_memory_size": 80_000_000_000,
}
_PLUGINS = {
    "cuda": ("aot-cuda", ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")),
    "tpu": ("aot-tpu", ("libtpu",)),
}


def target(name: str) -> Target:
    """The target of that name.

    Raises:
      TargetError: unknown, with the nearest name.
    """
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TargetError(f"target={name!r} is unknown; allowed: {', '.join(TARGETS)}.{hint}")
    return TARGETS[name]


def available(platform: str) -> bool:
    """Whether the compiler of a platform is installed here."""
    return any(_found(module) for module in _PLUGINS[platform][1])


def compiler_versions(platform: str) -> dict[str, str]:
    """Of jax, jaxlib and the plugin, by distribution."""
    names = ["jax", "jaxlib"]
    names += ["libtpu"] if platform == "tpu" else ["jax-cuda12-plugin", "jax-cuda13-plugin"]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def target_devices(chosen: Target) -> list[jax.Device]:
    """The devices of a target; they can be compiled for, not computed on.

    Raises:
      TargetError: the compiler's plugin is missing.
    """
    extra = _PLUGINS[chosen.platform][0]
    if not available(chosen.platform):
        raise TargetError(
            f"target={chosen.name!r} needs the compiler for {chosen.platform}, which is not "
            f"installed here; make an environment of its own and run: pip install '.[{extra}]'"
        )
    if chosen.platform == "tpu":
        # Without these libtpu looks for the metadata server of a TPU machine.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-8")
        # Its lock is for the sake of devices, of which none is used.
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        return list(topologies.get_topology_desc(chosen.shape, platform="tpu").devices)
    description = topologies.get_topology_desc(
        topology_name="", platform="cuda", topology=chosen.shape, target_config=_h100_proto()
    )
    return list(description.devices)


def _h100_proto() -> str:
    """A text protobuf (GpuTargetConfigProto of XLA)."""
    fields = " ".join(f"{name}: {value}" for name, value in _H100.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: 9 minor: 0 }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 } '
        "runtime_version { major: 12 minor: 8 } "
        f'device_description_str: "{_H100_NAME}"'
    )


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
