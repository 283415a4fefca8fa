"""What a cluster is: devices, memories and links, as data.

A node is a group of devices joined by the fast links: a server of GPUs or NPUs, a whole slice of
TPUs. Figures are those of data sheets and of the papers named; whatever is not published for a
system stands in its `assumptions`. Latencies are never published and always assumed. Names count
JAX devices; Google's names count cores where a chip has two (its v5p-512 is tpu_v5p_256).

Units: FLOP/s, bytes, bytes/s, s. Bandwidths count one direction. An advertised GB of memory is
taken as 1e9 bytes, which leaves the rest to driver and runtime.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping

from pangu_jax.parallel.mesh import MeshError


class TopologyError(MeshError):
    """An unknown topology, or figures of one that make no sense."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A cluster of equal devices in equal nodes.

    peak_flops: dtype name -> dense FLOP/s of one device.
    memory_bytes, memory_bandwidth: of one device.
    intra_bandwidth, inter_bandwidth: what one device can send in one direction inside a node (all
      its links together) and to other nodes.
    intra_latency, inter_latency: of one message.
    torus: sizes of the torus that the fast links form; () where every pair of a node is linked or
      goes through a switch. A collective along one torus axis has 1 / len(torus) of
      intra_bandwidth.
    device_kind: as JAX names the device, where JAX knows it.
    assumptions: every figure that is not published for this system.
    """

    name: str
    nodes: int
    devices_per_node: int
    peak_flops: Mapping[str, float] = dataclasses.field(hash=False)
    memory_bytes: float
    memory_bandwidth: float
    intra_bandwidth: float
    intra_latency: float
    inter_bandwidth: float
    inter_latency: float
    device_kind: str
    intra_links: str
    inter_links: str
    torus: tuple[int, ...] = ()
    assumptions: tuple[str, ...] = ()

    def __post_init__(self):
        for field in (
            "nodes", "devices_per_node", "memory_bytes", "memory_bandwidth", "intra_bandwidth",
            "inter_bandwidth",
        ):  # fmt: skip
            if not getattr(self, field) > 0:
                raise TopologyError(
                    f"topology {self.name!r}: {field}={getattr(self, field)!r} must be above 0."
                )
        for field in ("intra_latency", "inter_latency"):
            if getattr(self, field) < 0:
                raise TopologyError(
                    f"topology {self.name!r}: {field}={getattr(self, field)!r} must not be "
                    "negative."
                )
        if not self.peak_flops or min(self.peak_flops.values()) <= 0:
            raise TopologyError(
                f"topology {self.name!r}: peak_flops={dict(self.peak_flops)!r} must name at least "
                "one dtype, each with FLOP/s above 0."
            )

    @property
    def devices(self) -> int:
        return self.nodes * self.devices_per_node

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s of one device for products of that dtype.

        Raises:
          TopologyError: the topology has no figure for it.
        """
        if dtype not in self.peak_flops:
            raise TopologyError(
                f"topology {self.name!r} has no peak for dtype {dtype!r}; it has "
                f"{', '.join(self.peak_flops)}. Change the model's dtype or add the figure."
            )
        return self.peak_flops[dtype]


def _ascend(devices: int) -> Topology:
    # Pangu Ultra, arXiv 2504.07866, section 4.1: 8 NPUs of 64 GB a node, HCCS full mesh, 200 Gb/s
    # RoCE per NPU between nodes. The paper names neither the chip's version nor its peak.
    return Topology(
        name=f"ascend_{devices}",
        nodes=devices // 8,
        devices_per_node=8,
        peak_flops={"bfloat16": 313e12, "float16": 313e12, "float32": 75e12},
        memory_bytes=64e9,
        memory_bandwidth=1.6e12,
        intra_bandwidth=196e9,
        intra_latency=5e-6,
        inter_bandwidth=25e9,
        inter_latency=15e-6,
        device_kind="Ascend NPU",
        intra_links="full mesh (HCCS)",
        inter_links="200 Gb/s RoCE per device",
        assumptions=(
            "peak: 313 TFLOP/s dense bfloat16 (the paper names neither peak nor chip version; "
            "280 to 320 are found for chips of this kind)",
            "float32 peak: 75 TFLOP/s",
            "memory bandwidth: 1.6 TB/s",
            "HCCS: 7 links of 28 GB/s per direction and device",
            "latencies: 5 us inside a node, 15 us between nodes (order of magnitude)",
        ),
    )


def _hopper(name, devices, *, memory, bandwidth, kind="NVIDIA H100 80GB HBM3", inter=50e9,
            links="400 Gb/s per device", assumptions=()) -> Topology:  # fmt: skip
    # Data sheets of H100 and H200 SXM: 989 TFLOP/s dense bfloat16, 495 TF32; NVLink 4 with
    # 900 GB/s both ways.
    return Topology(
        name=name,
        nodes=max(devices // 8, 1),
        devices_per_node=min(devices, 8),
        peak_flops={"bfloat16": 989e12, "float16": 989e12, "float32": 495e12},
        memory_bytes=memory,
        memory_bandwidth=bandwidth,
        intra_bandwidth=450e9,
        intra_latency=2e-6,
        inter_bandwidth=inter,
        inter_latency=10e-6,
        device_kind=kind,
        intra_links="NVLink 4 through NVSwitch, 450 GB/s per device and direction",
        inter_links=links,
        assumptions=(
            "float32 peak: that of TF32 products",
            "latencies: 2 us inside a node, 10 us between nodes (order of magnitude)",
            *assumptions,
        ),
    )


def _h100(devices: int) -> Topology:
    # DGX H100: one 400 Gb/s ConnectX-7 per GPU.
    return _hopper(f"h100_{devices}", devices, memory=80e9, bandwidth=3.35e12)


def _h100_a3(devices: int) -> Topology:
    # Google A3 High: 1,000 Gb/s a server of 8.
    return _hopper(
        f"h100_a3_{devices}", devices, memory=80e9, bandwidth=3.35e12, inter=12.5e9,
        links="100 Gb/s per device",
        assumptions=("between servers: 800 of the 1,000 Gb/s serve the GPUs",),
    )  # fmt: skip


def _h100_hbm2e(devices: int) -> Topology:
    # The machine of torchtitan's published figures (its docs/performance.md).
    return _hopper(
        f"h100_hbm2e_{devices}", devices, memory=96e9, bandwidth=2.4e12,
        assumptions=("peak: the data sheet's; at the 500 W of this machine it is not reached",),
    )  # fmt: skip


def _tpu(name, slice_shape, *, kind, peak, memory, bandwidth, inter, assumptions=()) -> Topology:
    # 100 GB/s per link and direction: Cloud TPU's pages give 1,200 GB/s both ways for the 6 links
    # of a v5p and 800 for the 4 of a v6e. inter: their data-centre network per chip.
    return Topology(
        name=name,
        nodes=1,
        devices_per_node=math.prod(slice_shape),
        peak_flops={"bfloat16": peak, "float32": peak / 6},
        memory_bytes=memory,
        memory_bandwidth=bandwidth,
        intra_bandwidth=2 * len(slice_shape) * 100e9,
        intra_latency=1e-6,
        inter_bandwidth=inter,
        inter_latency=50e-6,
        device_kind=kind,
        intra_links=f"torus {'x'.join(map(str, slice_shape))} (ICI), 100 GB/s per link and "
        "direction",
        inter_links=f"data-centre network, {inter * 8e-9:g} Gb/s per device",
        torus=tuple(slice_shape),
        assumptions=(
            "float32 peak: a product in 6 bfloat16 passes",
            "every axis of the torus is closed to a ring",
            "latencies: 1 us per message on ICI, 50 us between slices (order of magnitude)",
            *assumptions,
        ),
    )


def _v5p(*slice_shape: int, assumptions=()) -> Topology:
    return _tpu(
        f"tpu_v5p_{math.prod(slice_shape)}", slice_shape, kind="TPU v5p", peak=459e12,
        memory=95 * 2**30, bandwidth=2.765e12, inter=6.25e9, assumptions=assumptions,
    )  # fmt: skip


_ALL = (
    _ascend(8192),
    _v5p(
        16, 16, 32,
        assumptions=(
            "one slice of 8,192 chips: the TPU compiler accepts it, but no single slice above "
            "6,144 chips is offered",
        ),
    ),
    _v5p(4, 4, 8),
    _v5p(4, 8, 8),
    _v5p(8, 8, 8),
    _tpu(
        "tpu_v6e_256", (16, 16), kind="TPU v6 lite", peak=918e12, memory=32e9, bandwidth=1.638e12,
        inter=12.5e9,
    ),
    *map(_h100, (1, 8, 64, 96, 128, 256, 512, 1024, 2048, 4608, 6144, 8192)),
    *map(_h100_a3, (8, 128)),
    *map(_h100_hbm2e, (8, 128, 256, 512)),
    *(
        _hopper(f"h200_{count}", count, kind="NVIDIA H200", memory=141e9, bandwidth=4.8e12)
        for count in (1, 8)
    ),
    Topology(
        name="cpu_8",
        nodes=1,
        devices_per_node=8,
        peak_flops={"float32": 40e9, "bfloat16": 40e9, "float64": 20e9},
        memory_bytes=2e9,
        memory_bandwidth=5e9,
        intra_bandwidth=2e9,
        intra_latency=50e-6,
        inter_bandwidth=2e9,
        inter_latency=50e-6,
        device_kind="cpu",
        intra_links="shared memory of one process",
        inter_links="none",
        assumptions=("every figure: an ordinary processor core, for tests and examples only",),
    ),
)  # fmt: skip

TOPOLOGIES: dict[str, Topology] = {entry.name: entry for entry in _ALL}


def topology(name: str) -> Topology:
    """The topology of that name.

    Raises:
      TopologyError: unknown name (with the nearest one).
    """
    if name not in TOPOLOGIES:
        near = difflib.get_close_matches(name, TOPOLOGIES, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TopologyError(
            f"topology={name!r} is unknown; allowed: {', '.join(TOPOLOGIES)}.{hint}"
        )
    return TOPOLOGIES[name]
